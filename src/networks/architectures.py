"""The architectures that specs name: their canonical names, fresh networks of them, and what decides one."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.core.errors import UserError
from src.dataset import DatasetSpec
from src.dataset.preprocessing import SHORTER, Preprocessing
from src.models import canonical_name
from src.networks.checkpoints import Checkpoint
from src.networks.followed import follow
from src.networks.source_spec import Asker, Named, parse_spec
from src.networks.sources import SOURCES
from src.networks.sources.library import LibraryModel, check_forward

OWN = SOURCES["own"]
PIXELS = ("size", "mean", "std", "interpolation", "resize")  # of what stands behind the ?


def canonical_model(name: str) -> str:
    """A model's name in its canonical spelling: one of ours, or the spec of a foreign architecture, without weights.

    Raises UserError for what is neither.
    """
    spec = parse_spec(name)
    if spec.record is None or not spec.record.foreign or not spec.record.build:
        return canonical_name(name)
    if spec.weights or spec.seed is not None or spec.view:
        raise UserError(f"{name} names more than an architecture; start from weights with --init-weights")
    return spec.model


def split_model(name: str) -> tuple[str, dict[str, Any]]:
    """A model that a network is to be trained of: its canonical name, and what stands behind the `?`, in values."""
    spec = parse_spec(name)
    if spec.weights or spec.seed is not None or (spec.record and spec.record.open):
        raise UserError(f"{name} names more than an architecture; start from weights with --init-weights")
    if odd := [key for key in spec.view if key not in PIXELS]:
        raise UserError(f"{name}: training does not ask for that; leave out {', '.join(odd)}")
    return canonical_model(re.sub(r"[?&]\w+=.*", "", name) if spec.view else name), spec.view


def own_size(model: str, images: DatasetSpec) -> int | None:
    """The size of images that a fresh network of ours, or of the user's, is made for; None: its source knows."""
    return images.size if (parse_spec(model).record or OWN).for_images else None


def source_sha256(model: str) -> str | None:
    """The SHA-256 of the Python file that makes a model; None for models that none makes."""
    spec = parse_spec(model)
    return spec.record.digest(spec.name) if spec.record and spec.record.digest else None


def code_of(network: Checkpoint) -> str | None:
    """What decides a network beside its weights: the name of an architecture, of whatever library, or a function with
    the SHA-256 of its file. None for ours, of which no two share the shapes of their weights.
    """
    spec = parse_spec(network.model)
    if (record := spec.record or OWN).code:
        return record.code(spec.name, network.network)
    return network.model


def files_of(text: str) -> list[Path]:
    """The files that the network of a spec is made of, as far as the spec tells, whether they are there or not."""
    spec = parse_spec(text)
    files = spec.record.files(spec.name) if spec.record else [Path(spec.name)]
    said = Path(spec.view.get("classes", ""))
    return [*files, *([Path(spec.weights)] if spec.weights else []), *([said] if said.is_file() else [])]


def architecture(name: str | Named, *, channels: int, classes: int | None, size: int | None) -> LibraryModel:
    """A fresh network of any architecture, ours or foreign, drawn from torch's global generator.

    Raises UserError for a Python file's that the user has not `Named`.
    """
    spec = parse_spec(str(name))
    if (record := spec.record or OWN).runs and not isinstance(name, Named):
        raise Asker().no_run(spec.text)
    assert record.build
    made = record.build(spec.name, channels=channels, classes=classes, size=size)
    eyes = made.preprocessing
    if record.foreign and (seen := eyes.size if eyes else size):
        check_forward(made.network, spec.text, channels=eyes.channels if eyes else channels, size=seen)
    return made


def own_preprocessing(made: LibraryModel, name: str, view: Mapping[str, Any]) -> Preprocessing | None:
    """What a network does to images: what its library does, which is tried, but for what the user says in `view`.

    Raises UserError for what cannot be done here.
    """
    found = made.preprocessing
    if found and made.processor:
        found = follow(made.processor, found, name=name, asked=view)
    return seen_as_asked(found, view, name) if found else None


def seen_as_asked(preprocessing: Preprocessing, view: Mapping[str, Any], name: str) -> Preprocessing:
    """A preprocessing with what the user says instead; a rule of resizing is the plain one of that name.

    Raises UserError for numbers of another number of channels.
    """
    asked = {key: value for key, value in view.items() if key in PIXELS}
    if "resize" in asked:
        asked["shorter"] = 1.0 if asked["resize"] == "squash" else SHORTER
    seen = replace(preprocessing, **asked)
    if seen.channels != preprocessing.channels:
        raise UserError(f"{name}: the network takes {preprocessing.channels} channels, not {seen.channels}")
    return seen


def untrained(like: Checkpoint, seed: int) -> nn.Module:
    """A fresh network of a checkpoint's architecture, for the same images and classes, in eval mode.

    Raises UserError where it has the weights of the checkpoint, or of another seed: a function of the user's may load
    its own.
    """
    fresh = _fresh(like, seed)
    if (record := parse_spec(like.model).record) and record.runs and _same_weights(fresh, _fresh(like, seed + 1)):
        raise UserError(
            f"{like.model} gives the same weights whatever the seed, so none of its networks is untrained; let it load "
            "none, and name them behind an @"
        )
    if _same_weights(fresh, like.network):
        raise UserError(f"{like.model} of seed {seed}, untrained, has the weights of {like.path}; give another --seed")
    return fresh


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether all that was drawn at random is the same."""
    pairs = zip(one.parameters(), other.parameters(), strict=False)
    drawn = [(x.detach(), y.detach()) for x, y in pairs if x.numel() and bool((x != x.flatten()[0]).any())]
    return bool(drawn) and all(x.shape == y.shape and torch.equal(x.cpu(), y.cpu()) for x, y in drawn)


def _fresh(like: Checkpoint, seed: int) -> nn.Module:
    record = parse_spec(like.model).record
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if record and record.fresh:
            return record.fresh(like.network).eval()
        preprocessing, classes = like.preprocessing, len(like.labels) if like.labels else None
        if classes is None and record and record.runs:
            classes = rows_of_head(like.network.state_dict())
        model = Named(like.model)  # it was when the network was opened, or there would be none
        return architecture(
            model, channels=preprocessing.channels, classes=classes, size=preprocessing.size
        ).network.eval()


def rows_of_head(state: dict[str, torch.Tensor]) -> int | None:
    """The rows of the last matrix, which is nearly always that of the head."""
    matrices = [value for value in state.values() if value.dim() == 2]
    return len(matrices[-1]) if matrices else None
