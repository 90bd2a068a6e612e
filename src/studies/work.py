"""One bundle, done: the networks and images are loaded once, and all its results made and written.

What a killed process had come to is not lost: the states of trainings and comparisons lie beside the results until they
are there.
"""

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from src import results
from src.core.config import MEMORY, choose_device
from src.core.digests import digest
from src.core.errors import UserError
from src.core.files import is_failing
from src.core.precision import device_facts, full_precision, require_tf32
from src.dataset import Split
from src.evaluation.identical import (
    CACHE_FOLDER,
    IDENTICAL,
    IdenticalCache,
    IdenticalInputs,
    identical_rows,
)
from src.evaluation.kept_passes import Keep
from src.evaluation.layer_grid import compare_rows, layer_label
from src.evaluation.saving import save_activations
from src.metrics.algebra.products import described
from src.metrics.own import is_own, load_own, name_own
from src.networks.architectures import untrained
from src.networks.feature_networks import FeaturePair
from src.networks.presentation import NetworksOnDataset
from src.results.stitch_text import networks_at_chance
from src.stitching import CutNetworks, StitchSpec
from src.stitching.keys import front_inputs, key_inputs, stitch_keys
from src.stitching.options import blind_labels
from src.stitching.run import Callbacks, StitchPlan, stitch
from src.stitching.states import resume_states
from src.studies.deaths import Death
from src.studies.feature_work import about_sides, digest_of_images
from src.studies.images import networks_on_data, sides_of, split_of
from src.studies.jobs import Bundle, CompareSpec
from src.studies.leases import Leases
from src.studies.store import Store

EVERY = 5.0  # seconds of work that a killed process may lose, beside the epoch, or block, that it was at


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """A bundle with all that a process needs to do it: where results go, who is at it, on which device.

    decoders: processes that decode images; None: as many as the machine has it.
    """

    bundle: Bundle
    folder: Path
    runner: str
    patience: float
    device: str = "auto"
    memory: float = MEMORY
    decoders: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a task: whether somebody else is at it, a traceback, stitches that diverged, and notes.

    `death`: its process ended without a word, so that what it had learnt may still be there.
    """

    task: WorkerTask
    held: bool = False
    trace: str = ""
    death: Death | None = None
    diverged: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def perform(task: WorkerTask, *, alive: Callable[[], bool] = lambda: True) -> Report:
    """Do a task, unless another process is at it; errors come back as text."""
    store = Store(task.folder)
    leases = Leases(store.leases, runner=task.runner, patience=task.patience)
    notes: dict[str, None] = {}
    try:
        with full_precision(), leases.held(task.bundle.name, alive=alive) as mine:
            if not mine:
                return Report(task, held=True)
            make = compare_bundle if task.bundle.is_comparison else stitch_bundle
            diverged = make(task, lambda line: notes.update({line: None}))
            store.forget_states(task.bundle.name)
            return Report(task, diverged=diverged, notes=tuple(notes))
    except OSError as error:
        if not is_failing(error):
            store.forget_states(task.bundle.name)
            return Report(task, trace=traceback.format_exc(), notes=tuple(notes))
        words = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        return Report(task, death=Death(f"a disk failed ({words})"), notes=tuple(notes))
    except Exception:  # whatever it is, the driver decides; a worker has others to do
        store.forget_states(task.bundle.name)
        return Report(task, trace=traceback.format_exc(), notes=tuple(notes))


@lru_cache(maxsize=8)
def _provenance(device: torch.device, *, tf32: bool = False) -> dict[str, Any]:
    return results.provenance(device, tf32=tf32)


def stitch_bundle(task: WorkerTask, on_message: Callable[[str], None]) -> dict[str, str]:
    """Train, score and write all stitches of a bundle; returns why some have no result, by name."""
    bundle, settings = task.bundle, task.bundle.settings
    (on_data, scored), device = networks_on_data(bundle), choose_device(task.device)
    front, end = on_data.networks
    specs = [item.spec for item in bundle.items if isinstance(item.spec, StitchSpec)]
    networks, layouts = (front.network.to(device), end.network.to(device)), (front.layout, end.layout)
    cuts = CutNetworks(*networks, specs, on_data.sample.to(device), layouts=layouts)
    if any(spec.tf32 for spec in specs):
        require_tf32(device)
    for line in [*cuts.notes, *on_data.notes, *on_data.missing_columns, *blind_labels(specs)]:
        on_message(f"note: {line}")
    pairs = ((on_data, "train"), (scored, "val"))
    how: dict[str, Any] = {"images": settings.images, "decoders": task.decoders}
    train, val = (split_of(seen, name, device, **how) for seen, name in pairs)
    about = key_inputs(on_data, [split.digest() for split in (train, val)])
    _check_keys(bundle, stitch_keys(cuts, about))  # a plan knows of no device; what comes of it says where it was made
    about = key_inputs(on_data, about["images"], about["weights"], device=device)
    keys = stitch_keys(cuts, about)
    store, diverged = Store(task.folder), {}
    states = _states(store, bundle, device)
    plan = StitchPlan(
        similarity=settings.similarity,
        labelled=on_data.end_labelled,
        front_labelled=on_data.shares_classes[0],
        comparable=on_data.comparable,
        ood=settings.ood,
        controls=settings.controls,
        fresh=lambda seed: on_data.with_preprocessing(untrained(front, seed), front),
        memory=task.memory,
        resume=resume_states(states, [item.name for item in bundle.items], about, every=EVERY),
        identical=IdenticalCache(task.folder / CACHE_FOLDER, front_inputs(about), on_message),
        callbacks=Callbacks(on_message),
    )
    facts = {"weights": {"front": front.facts(), "end": end.facts()}}
    for item, key, spec, outcome in zip(bundle.items, keys, specs, stitch(cuts, train, val, plan), strict=True):
        if isinstance(outcome, FloatingPointError):
            diverged[item.name] = f"FloatingPointError: {outcome}"
            continue
        params = parameters(bundle) | on_data.dataset_param | asdict(spec)
        result = {"params": params, "key": key, **facts, **outcome, **_provenance(device, tf32=spec.tf32)}
        store.publish(item.name, result)
        for line in networks_at_chance(result):
            on_message(f"warning: {line}")
    return diverged


def compare_bundle(task: WorkerTask, on_message: Callable[[str], None]) -> dict[str, str]:
    """Compare the layers of two networks, and write what came of it."""
    (item,) = task.bundle.items
    spec = item.spec
    assert isinstance(spec, CompareSpec)
    on_data, device = sides_of(task.bundle), choose_device(task.device)
    front, end = on_data.networks
    split = split_of(on_data, spec.split, device, task.bundle.settings.images, decoders=task.decoders)
    for name in filter(is_own, spec.metrics if task.bundle.named else ()):
        name_own(name)
    about = _about(on_data, split, on_message)
    _check_keys(task.bundle, [spec.key(**about)])  # as above
    key = spec.key(**about, **({"device": made_on} if (made_on := device_facts(device)) else {}))
    networks, layers = (front.network, end.network), (list(spec.front_layers), list(spec.end_layers))
    given = networks, layers, on_data.sample, split
    alike = _alike(task, on_data, split, on_message)
    comparison = compare_rows(
        *given,
        spec.metrics,
        rows={layer: inputs.split for layer, inputs in alike.items()},
        view=spec.view,
        group=spec.group_at,
        memory=task.memory,
        layouts=(front.layout, end.layout),
        **on_data.classes_known,
        keep=Keep(Store(task.folder).states(task.bundle.name), {"key": key, "device": str(device)}, EVERY),
        on_message=lambda line: on_message(line) if line.startswith("note") else None,
    )
    asked = {"methods": list(spec.metrics), "view": spec.view, "group_at": spec.group_at, "dataset_type": spec.split}
    asked |= {name: getattr(spec, name) for name in ("on", "iri_images", "iri_steps") if alike}
    params = parameters(task.bundle) | asked | {"dataset": on_data.dataset}
    params |= {"front_layer": ",".join(spec.front_layers), "end_layer": ",".join(spec.end_layers)}
    found = {"networks": [front.facts(), end.facts()], **comparison.record(), "products": described(device)}
    found |= {"own_metrics": own} if (own := load_own(spec.metrics)) else {}
    found |= {"identical": {layer_label(layer): inputs.facts() for layer, inputs in alike.items()}} if alike else {}
    if spec.save:
        path = Store(task.folder).path(item.name).with_suffix(".safetensors")
        facts = {"networks": found["networks"], "dataset": on_data.dataset, "split": spec.split}
        facts |= {"made_by": _provenance(device)["runner_code"], "key": key}
        save_activations(path, *given, about=facts, overwrite=True, layouts=(front.layout, end.layout))
    Store(task.folder).publish(item.name, {"params": params, "key": key, **found, **_provenance(device)})
    return {}


def _alike(
    task: WorkerTask, sides: NetworksOnDataset | FeaturePair, split: Split, on_message: Callable[[str], None]
) -> dict[str, IdenticalInputs]:
    """For each layer of the first network inputs that it cannot tell from the images, where these are compared."""
    (item,) = task.bundle.items
    spec = item.spec
    if not isinstance(spec, CompareSpec) or spec.on != IDENTICAL:
        return {}
    assert isinstance(sides, NetworksOnDataset)
    about = front_inputs(key_inputs(sides, [], device=split.device))
    cache = IdenticalCache(task.folder / CACHE_FOLDER, about, on_message)
    how = {"steps": spec.iri_steps, "count": spec.iri_images}
    return identical_rows(sides.networks[0].network, spec.front_layers, split, cache, **how)


def _about(sides: NetworksOnDataset | FeaturePair, split: Split, on_message: Callable[[str], None]) -> dict[str, Any]:
    """What decides a comparison beside its spec and the device."""
    if not isinstance(sides, FeaturePair):
        return key_inputs(sides, [split.digest()])
    for line in sides.notes:
        on_message(f"note: {line}")
    return about_sides(sides, digest_of_images(split))


def _states(store: Store, bundle: Bundle, device: torch.device) -> Path:
    """Where a bundle's trainings keep their states: what another kind of device began is begun anew."""
    facts = device_facts(device)
    return store.states(bundle.name) / digest(facts)[:16] if facts else store.states(bundle.name)


def _check_keys(bundle: Bundle, keys: list[str]) -> None:
    """What is loaded here must be what was planned."""
    if keys != [item.key for item in bundle.items]:
        raise UserError(
            f"weights or images of {' and '.join(bundle.pair)} are others than those of the plan; "
            "remove the .plan-*.json of the study's folder"
        )


def parameters(bundle: Bundle) -> dict[str, Any]:
    """The arguments of the command that makes the same results, beside those of a stitch."""
    settings = asdict(bundle.settings)
    own = {"controls": list(settings.pop("controls")) or None, "no_similarity": not settings.pop("similarity")}
    names = dict(zip(("front_model", "end_model"), bundle.pair, strict=True))
    return names | {"model1": None, "model2": None} | settings | own
