"""Two networks sewn together, from Python."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from src.core.config import MEMORY, choose_device
from src.core.errors import UserError
from src.core.options import FLAG, check_of
from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.core.text import close_to, in_line, visible
from src.cutting.structure import no_logits, share_structure
from src.dataset import DATASETS, DatasetSpec
from src.dataset.split import MemorySplit
from src.face.arrays import tensor_of
from src.results.saved_stitch import with_tail
from src.results.stitch_text import figures_of, interval_of, stitch_table
from src.stitching import LOGITS, CutNetworks, Pair, Stitch, StitchSpec, cut_pair, from_arrays, usual_rate
from src.stitching.controls import choose_controls
from src.stitching.options import OPTIONS, spec_of
from src.stitching.run import Callbacks, StitchPlan, stitch
from src.stitching.stages import MAPS
from src.stitching.stitch_spec import DATA, USUAL
from src.stitching.targets import teachers_of

BATCH: Any = USUAL["batch_size"]
CHECKS = {option.field: check_of(option) for option in OPTIONS} | {"amp": FLAG, "debug": FLAG}
COLUMNS = {
    "acc": "accuracy",
    "loss": "loss",
    "rel_acc": "relative",
    "same_class_out": "agrees",
    "cka": "cka",
    "l2": "l2",
}


@dataclass(frozen=True, slots=True, repr=False)
class Sewn:
    """A stitch of two networks; it prints as the table of stitch_nets.py.

    record: all that a result file of stitch_nets.py holds of it. A stage is "before" or "after" training, "ps_inv", the
    least-squares map on the images that score it, or "ls_train", that on the training images.
    """

    text: str
    record: dict[str, Any]
    pair: Pair
    end: nn.Module
    sample: Tensor

    def __repr__(self) -> str:
        return self.text

    def frame(self) -> pd.DataFrame:
        """A row a network, controls too: row, accuracy (0 to 1), low and high of its 95% interval, loss (nats),
        and with the end network relative (accuracy over its), agrees (0 to 1), cka and l2; NaN where there is none."""
        rows = []
        for row, figures in (figures_of(self.record) | self.record.get("controls", {})).items():
            low, high = interval_of(self.record, row) or (None, None)
            known = {title: figures.get(key) for key, title in COLUMNS.items()}
            rows.append({"row": row, "accuracy": known.pop("accuracy"), "low": low, "high": high, **known})
        frame = pd.DataFrame(rows)
        return frame.astype(dict.fromkeys(frame.columns.drop("row"), float))

    def stitch(self, stage: str = "after") -> Stitch:
        """The map of a stage as a module: activations of the front layer -> those of the end layer."""
        maps = [name for name in MAPS if name in self.record["trans_m"]]
        if stage not in maps:
            raise UserError(f"no map {stage!r}{close_to(stage, maps)}; there are {', '.join(maps)}")
        return from_arrays(self.record["trans_m"][stage], self.pair.geometry).to(self.sample.device).eval()

    def network(self, stage: str = "after") -> nn.Module:
        """The stitched network of a stage, images -> logits, in eval mode; its halves share the weights of the two."""
        layer = self.record["params"]["end_layer"]
        return with_tail(self.pair, self.stitch(stage), self.end, layer, self.sample)


def sew(
    front: nn.Module,
    end: nn.Module,
    front_layer: str,
    end_layer: str,
    data: Any,
    *,
    val: Any = None,
    controls: str = "",
    ood: bool = False,
    similarity: bool = True,
    fresh: Callable[[int], nn.Module] | None = None,
    layouts: tuple[str | None, str | None] = (None, None),
    memory: float = MEMORY / 1e9,
    device: str | None = None,
    on_message: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Sewn:
    """Sew the front of one network to the end of another, train the map between them and hold it against both.

    front, end: modules, images -> logits (images, classes); neither is changed. front_layer, end_layer: names of their
    modules; the front is cut behind the one, and the end goes on behind the other. data: what the stitch is trained on:
    images as both networks take them, (n, ...), floating point as float32, or (images, labels), labels whole numbers
    from 0, or (n, classes) of 0 and 1 for several an image. val: likewise, what all is scored on; None: these.
    options: those of stitch_nets.py by their names with underscores, with its defaults: init="ps_inv", epochs=2,
    target_type="soft_2", lr, mask, low_rank, whiten, seed, kernel and so on, one value each; a batch is never larger
    than data by default. Without labels a target that networks teach is needed, or epochs=0.
    controls: "all" or some with commas. fresh: seed -> an untrained network of the front's architecture, for those that
    need it. ood, similarity, memory (GB): as there. layouts: of the layers' outputs, where they are no maps.
    device: None is where the end network is.
    Raises UserError, a ValueError of one line, for what cannot be sewn, FloatingPointError where training diverges.
    Source: Csiszárik et al. 2021 (arXiv 2110.14633).
    """
    own = [_device_of(network) for network in (front, end)]
    place = choose_device(device) if device else own[1]
    networks = _on(front, place), _on(end, place)
    named = choose_controls(controls) if controls else []
    splits = [_tensors(given, called, place) for given, called in ((data, "data"), (val, "val")) if given is not None]
    images, labelled = splits[0][0], all(labels is not None for _, labels in splits)
    if named and images.dim() != 4:
        raise UserError(f"controls change images (n, channels, height, width), and these are {tuple(images.shape)}")
    spec = _spec({"batch_size": min(BATCH, len(images))} | options, front_layer, end_layer)
    sample = torch.zeros_like(images[:2])
    try:
        cuts = CutNetworks(*networks, [spec], sample, layouts=layouts)
    except RuntimeError as error:
        how = f"{tuple(images.shape[1:])}, {str(images.dtype).removeprefix('torch.')}"
        raise UserError(f"the networks do not take such images ({how}): {in_line(str(error))}") from None
    classes, alike = _classes(cuts, "end"), _classes(cuts, "front") == _classes(cuts, "end")
    _check_teachers(spec, labelled, comparable=alike)
    train, *others = [_split(*given, classes, labelled) for given in splits]
    notes = [f"note: {line}" for line in cuts.notes]

    def hear(line: str) -> None:
        notes.extend([line] * line.startswith(("note:", "warning:")))
        on_message(line)

    asked: dict[str, Any] = {"similarity": similarity, "ood": ood, "controls": named, "memory": 1e9 * memory}
    asked |= {"labelled": labelled, "front_labelled": labelled and alike, "comparable": alike}
    made = fresh and (lambda seed: _on(fresh(seed), place))
    plan = StitchPlan(**asked, fresh=made, callbacks=Callbacks(hear))
    (outcome,) = stitch(cuts, train, others[0] if others else train, plan)
    if isinstance(outcome, FloatingPointError):
        raise outcome
    scored = f"{len(others[0])} images" if others else f"the {len(train)} images that it was fitted to"
    weights = {role: {"model": type(network).__name__} for role, network in (("front", front), ("end", end))}
    record = {"params": asdict(spec) | {"dataset": scored}, "weights": weights, **outcome}
    how = {"flatten": spec.flatten, "resize": spec.resize}
    pair = cut_pair(*networks, front_layer, end_layer, sample, layouts=layouts, **how)
    text = visible("\n".join([stitch_table(record), *dict.fromkeys(notes)]))
    return Sewn(text, record, pair, networks[1], sample)


def _spec(options: Mapping[str, Any], front_layer: str, end_layer: str) -> StitchSpec:
    known: dict[str, Any] = {}
    for name, value in options.items():
        if name not in CHECKS:
            raise UserError(f"unknown option {name!r}{close_to(name, CHECKS)}; known are {', '.join(CHECKS)}")
        if value is not None:
            try:
                known[name] = CHECKS[name](value)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    if known.get("train_on", DATA) != DATA:
        raise UserError(
            f"train_on {known['train_on']!r} makes images of whole numbers 0 to 255; stitch_nets.py does it"
        )
    known.setdefault("lr", usual_rate(whiten=bool(known.get("whiten"))))
    return replace(spec_of(known), front_layer=front_layer, end_layer=end_layer)


def _device_of(network: nn.Module) -> torch.device:
    if not isinstance(network, nn.Module):
        raise UserError(f"a {type(network).__name__} is no torch.nn.Module")
    return next((value.device for value in network.parameters()), torch.device("cpu"))


def _on(network: nn.Module, device: torch.device) -> nn.Module:
    """A network in eval mode on a device, whose weights are those of the given one where that is there already."""
    if all(value.device == device for value in (*network.parameters(), *network.buffers())):
        return share_structure(network).eval()
    return copy.deepcopy(network).to(device).eval()


def _tensors(given: Any, called: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Images, in float32 where they are floating point, and labels, if there are some."""
    images, labels = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    images = tensor_of(images, f"{called}, images")
    if images.dim() < 2 or len(images) < 2:
        raise UserError(
            f"{called}: images have the shape {tuple(images.shape)}; two or more are needed, each with axes"
        )
    if images.is_floating_point():
        images = images.float()
        if not images.isfinite().all():
            raise UserError(f"{called}: images hold NaN or infinite values")
    images = images.to(device)
    if labels is None:
        return images, None
    labels = tensor_of(labels, f"{called}, labels")
    if len(labels) != len(images) or labels.dim() > 2:
        raise UserError(f"{called}: {len(images)} images and labels of the shape {tuple(labels.shape)}")
    return images, (labels.long() if labels.dim() == 1 else labels.float()).to(device)


def _classes(cuts: CutNetworks, source: str) -> int:
    """How many classes a network decides between; raises UserError where it gives no logits."""
    output = cuts.outputs(source, [LOGITS], cuts.sample)[LOGITS]
    if text := no_logits(output):
        raise UserError(f"the {source} network returns {text}, not logits (images, classes)")
    return output.shape[1]


def _check_teachers(spec: StitchSpec, labelled: bool, *, comparable: bool) -> None:
    for name, teachers in teachers_of([spec.target_type]).items() if spec.epochs else ():
        if not teachers and not labelled:
            raise UserError(
                f"target_type {name!r} needs labels: give (images, labels), or another one such as 'soft_2' or 'match'"
            )
        if "front" in teachers and not comparable:
            raise UserError(f"target_type {name!r}: front decides between other classes than end, so it cannot teach")


def _split(images: Tensor, labels: Tensor | None, classes: int, labelled: bool) -> MemorySplit:
    """Images and labels as a split that hands them out as they are."""
    several = labelled and labels is not None and labels.dim() == 2
    if labels is None or not labelled:
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    if several and labels.shape[1] != classes:
        raise UserError(f"labels are of {labels.shape[1]} classes, and end decides between {classes}")
    if not several and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"labels go from {int(labels.min())} to {int(labels.max())}, and end has {classes} classes")
    spec: DatasetSpec = replace(
        DATASETS["digits"],
        name="tensors",
        folder="",
        labels=tuple(map(str, range(classes))),
        task=MULTI_LABEL if several else SINGLE_LABEL,
    )
    return MemorySplit(spec, images, labels).with_preprocessing(None).unaugmented()  # pyright: ignore[reportReturnType]
