"""Identically represented inputs: images that a layer of a network cannot tell from given ones.

Source: Grounding functional similarity (arXiv 2505.20142 v2), after Nguyen, Raghu and Kornblith; the images start as
noise and descend the squared error of the layer's output by the sign of its gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Generator, Tensor, nn

from src.core.digests import digest
from src.core.errors import UserError
from src.core.precision import full_precision
from src.core.progress import bar
from src.core.records import ARRAY, TEXT, check
from src.core.tensor_files import parse_tensors, write_tensors
from src.cutting.freeze import freeze
from src.cutting.parts import head
from src.dataset import Split
from src.dataset.split import MemorySplit
from src.metrics.algebra.linalg import as_float64

DATA, IDENTICAL = "data", "iri"  # what is measured, or trained, on: images, or inputs that are as good as these
BATCH = 64  # images that descend together: part of what is computed, since a processor's sums depend on it
STEPS, IMAGES = 200, 5000  # steps, and images where there is no GPU, unless somebody says otherwise
ALL_IMAGES = 10**9  # more than there are
CACHE_FOLDER = ".iri"  # in the folder of results
_FORMAT = 1
_KEPT = {"key": TEXT, "images": ARRAY, "errors": ARRAY}
Forward = Callable[[Tensor], Tensor]  # images as a network sees them -> a layer's output, with gradients


@dataclass(frozen=True, slots=True)
class IdenticalCache:
    """Where such images are kept, and what decides them beside layer, steps and number: weights, images and the like.

    `on_message` hears beforehand how long it will take.
    """

    folder: Path | None
    about: Mapping[str, Any]
    on_message: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True)
class IdenticalInputs:
    """Images (n, channels, h, w) in whole numbers 0..255, their labels, and how far each is from its original.

    errors: norm(f(x') - f(x)) / norm(f(x)) of each, (n,), of the bytes that are kept. originals: the images themselves,
    for a network to be trained on both alike.
    """

    split: Split
    originals: Split
    errors: Tensor
    steps: int

    def facts(self) -> dict[str, Any]:
        """What a result says of them."""
        low, middle, high = (float(self.errors.quantile(share)) for share in (0.05, 0.5, 0.95))
        mean = float(self.errors.double().mean())
        error = {"mean": mean, "low": low, "median": middle, "high": high}
        return {"images": len(self.errors), "steps": self.steps, "relative_error": error}


def error_text(inputs: IdenticalInputs, layer: str) -> str:
    """What such inputs are, in words."""
    facts = inputs.facts()
    error = facts["relative_error"]
    return (
        f"{facts['images']} inputs that the first network's {layer} cannot tell from the images: relative error "
        f"{error['mean']:.3f} ({error['low']:.3f} to {error['high']:.3f}) after {facts['steps']} steps"
    )


def fixed_subset(split: Split, count: int) -> Split:
    """So many images of a split, always the same, in its order and never changed at random."""
    if count >= len(split):
        return split.unaugmented()
    chosen = torch.randperm(len(split), generator=Generator().manual_seed(0))[:count].sort().values
    return split.take(chosen).unaugmented()


def identical_inputs(
    forward: Forward, split: Split, layer: str, cache: IdenticalCache, *, steps: int, count: int
) -> IdenticalInputs:
    """For `count` images of a split others with nearly the same output of a layer; from the cache what is there.

    They start as whole numbers drawn uniformly from 0..255, in the data set's own pixels, and take `steps` steps of one
    such number against the sign of the gradient of the squared error, clipped to 0..255. `forward` is of a network in
    eval mode. Batches are kept as they come, so that an interrupted run goes on.
    """
    originals = fixed_subset(split, count)
    raw = originals.with_preprocessing(None)
    key = digest({"format": _FORMAT, **cache.about, "layer": layer, "steps": steps, "images": originals.digest()})
    store = _Store(cache.folder, key)
    images, errors = [], []
    with bar(len(originals), f"inputs alike at {layer or 'output'}", unit="image") as progress:
        told = store.has(0, len(originals))
        for number, (x, _) in enumerate(raw.batches(BATCH)):
            found = store.read(number, x.shape)
            if found is None:
                if not told:
                    seconds = _seconds(forward, originals, x) * steps * (len(originals) / len(x) - number)
                    what = f"{len(originals)} inputs alike at {layer or 'output'}, {steps} steps each"
                    cache.on_message(f"{what}: about {_in_words(seconds)}")
                    told = True
                found = _descend(forward, originals, x, steps, number)
                store.write(number, *found)
            images.append(found[0])
            errors.append(found[1])
            progress.update(len(x))
    made = MemorySplit(split.spec, torch.cat(images).to(split.device), originals.labels)
    made._preprocess = split._preprocess
    return IdenticalInputs(made.unaugmented(), originals, torch.cat(errors), steps)


def identical_rows(
    network: nn.Module, layers: Sequence[str], split: Split, cache: IdenticalCache, *, steps: int, count: int
) -> dict[str, IdenticalInputs]:
    """For each of a network's layers inputs that it cannot tell from the images of a split."""
    how = {"steps": steps, "count": count}
    return {
        layer: identical_inputs(freeze(head(network, layer)).to(split.device), split, layer, cache, **how)
        for layer in layers
    }


def _seconds(forward: Forward, split: Split, x: Tensor) -> float:
    """What a step of a batch takes, measured."""
    _descend(forward, split, x, 1, 0)
    start = monotonic()
    _descend(forward, split, x, 2, 0)
    return (monotonic() - start) / 3  # two steps, and two passes forth


def _in_words(seconds: float) -> str:
    return f"{round(seconds / 60)} min" if seconds > 90 else f"{max(1, round(seconds))} s"


def _descend(forward: Forward, split: Split, x: Tensor, steps: int, number: int) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) in 0..255, uint8 on the CPU, and their relative errors (n,)."""
    with full_precision(), torch.inference_mode(False), torch.no_grad():
        wanted = forward(split.as_seen(x)).detach()
        drawn = torch.randint(0, 256, x.shape, generator=Generator().manual_seed(number))
        made = drawn.to(x.device).float()
        for _ in range(steps):
            made.requires_grad_()
            with torch.enable_grad():
                error = (forward(split.as_seen(made)) - wanted).square().sum()
                (gradient,) = torch.autograd.grad(error, made)
            made = (made.detach() - gradient.sign()).clamp_(0, 255)
        kept = made.to(torch.uint8)
        apart = as_float64((forward(split.as_seen(kept)) - wanted).flatten(1)).norm(dim=1)
        norms = as_float64(wanted.flatten(1)).norm(dim=1)
        return kept.cpu(), (apart / norms.clamp(min=torch.finfo(torch.float64).tiny)).float().cpu()


def read_batch(path: Path, key: str, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Images and relative errors of a file; raises OSError, ValueError or UserError for what is no such batch."""
    record = parse_tensors(path.read_bytes())
    check(record, _KEPT, required=_KEPT)
    images, errors = torch.as_tensor(record["images"]), torch.as_tensor(record["errors"])
    fits = images.dtype == torch.uint8 and images.shape == shape and errors.shape == shape[:1]
    if record["key"] != key or not fits or not errors.is_floating_point() or not errors.isfinite().all():
        raise UserError(f"{path} holds no batch of these inputs")
    return images, errors.float()


class _Store:
    """The batches of one set, a file each, in a folder of the cache; without one nothing is kept."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self.key = key
        self.folder = folder / key[:32] if folder else None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, number: int, count: int) -> bool:
        """Whether all batches from one on are there, of so many images."""
        last = -(-count // BATCH)
        return bool(self.folder) and all(self._file(other).is_file() for other in range(number, last))

    def _file(self, number: int) -> Path:
        assert self.folder
        return self.folder / f"{number:05}.pt"

    def read(self, number: int, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
        """A batch that is kept, of images of this shape; None for one that is not there, or spoilt: it is made anew."""
        if not self.folder or not self._file(number).is_file():
            return None
        try:
            return read_batch(self._file(number), self.key, shape)
        except (UserError, ValueError, OSError):
            return None

    def write(self, number: int, images: Tensor, errors: Tensor) -> None:
        if self.folder:
            write_tensors(self._file(number), {"key": self.key, "images": images, "errors": errors})
