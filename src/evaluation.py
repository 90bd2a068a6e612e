"""How well networks do their task, and how far two of them agree; every mean is over images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.activations import BATCH_SIZE, Head, feed
from src.config import full_precision
from src.dataset import Split
from src.metrics import Cell, Grid, PairedMoments
from src.metrics.linalg import float64_device
from src.metrics.mapped import MappedSimilarity
from src.metrics.moments import Affine
from src.metrics.plan import plan_grid, require_possible
from src.progress import bar
from src.stitching import Geometry, Pair, StitchLayer
from src.task import Task

STORE_BYTES = 4_000_000_000  # activations that may be kept at once


@torch.inference_mode()
def collect_logits(
    forward: Callable[[Tensor], dict[str, Tensor]], split: Split, *, batch_size: int = BATCH_SIZE, title: str = ""
) -> dict[str, Tensor]:
    """Logits (images, classes) of several networks from one pass over a split, in full float32.

    They are on the split's device, or on the CPU where that has no float64 for what follows. `forward` maps images to
    the logits of each network by name; the networks are to be in eval mode.
    """
    parts: dict[str, list[Tensor]] = {}
    device = float64_device(split.device)
    with full_precision(), bar(len(split), title, unit="image") as progress:
        for images, _ in split.batches(batch_size):
            for name, logits in forward(images).items():
                parts.setdefault(name, []).append(logits.float().to(device))
            progress.update(len(images))
    return {name: torch.cat(chunks) for name, chunks in parts.items()}


def evaluate(network: nn.Module, split: Split, *, batch_size: int = BATCH_SIZE, title: str = "") -> dict[str, float]:
    """Loss (nats) and accuracy (0 to 1) of a network, in eval mode; its own mode is left as it was."""
    was_training = network.training
    network.eval()
    try:
        logits = collect_logits(lambda images: {"": network(images)}, split, batch_size=batch_size, title=title)
    finally:
        network.train(was_training)
    return score(logits[""], split.labels, split.spec.task)


def score(logits: Tensor, labels: Tensor, task: Task) -> dict[str, float]:
    """Loss and accuracy of logits (images, classes)."""
    labels = labels.to(logits.device)
    return {
        "loss": task.loss(logits.double(), labels).item(),
        "acc": task.correct(logits, labels).double().mean().item(),
    }


def hits(first: Tensor, second: Tensor, labels: Tensor, task: Task) -> dict[str, int]:
    """Decisions that both get right (rr), only the first (rw), only the second (wr), or neither (ww)."""
    a, b = (task.correct(logits, labels.to(logits.device)) for logits in (first, second))
    counts = {"rr": a & b, "rw": a & ~b, "wr": ~a & b, "ww": ~a & ~b}
    return {name: int(which.sum()) for name, which in counts.items()}


def agreement(logits: Tensor, target: Tensor, labels: Tensor, task: Task) -> dict[str, Any]:
    """How far logits (images, classes) agree with those of a target network.

    `crossentropy` to the target's probabilities, averaged over images and classes (0 only where both are certain);
    `same_class_out`, the share of equal decisions, 0 to 1; `rel_acc`, accuracy divided by the target's.
    """
    labels = labels.to(logits.device)
    same = task.predictions(logits) == task.predictions(target)
    accuracy, best = (task.correct(values, labels).double().mean().item() for values in (logits, target))
    return {
        "crossentropy": task.crossentropy(logits.double(), task.probabilities(target.double())).item(),
        "same_class_out": same.double().mean().item(),
        "rel_acc": accuracy / best if best else float("nan"),
    }


def stitched_logits(
    pair: Pair, stitches: Mapping[str, StitchLayer], split: Split, *, batch_size: int = BATCH_SIZE
) -> dict[str, Tensor]:
    """Logits of both networks, `front` and `end`, and of each stitch between them by its name, from one pass."""

    def logits(images: Tensor) -> dict[str, Tensor]:
        front, end = pair.front_head(images), pair.end_head(images)
        result = {"front": pair.front_tail(front, images), "end": pair.end_tail(end, images)}
        return result | {name: pair.end_tail(stitch(front), images) for name, stitch in stitches.items()}

    return collect_logits(logits, split, batch_size=batch_size, title="evaluating")


@dataclass(slots=True)
class PairView:
    """What one pass over a split tells of a pair's activations: paired moments and, where they fit, all of them.

    `shared` serves the similarity of every stitch that maps channels; it is None where activations are flattened or
    resized, or too large to be kept, and each similarity then takes a pass of its own.
    """

    pair: Pair
    split: Split
    moments: PairedMoments
    shared: MappedSimilarity | None = None

    @property
    def cka_group(self) -> int | None:
        """Images in a group over which CKA is averaged, since all activations are too large; None: exact."""
        features = sum(math.prod(shape) for shape in (self.pair.geometry.front_shape, self.pair.geometry.end_shape))
        group = max(2, STORE_BYTES // (4 * features))
        return group if self.shared is None and group < len(self.split) else None

    def similarities(self, stitches: Mapping[str, StitchLayer]) -> dict[str, dict[str, float | None]]:
        """`cka` (biased, linear) and `l2` (mean squared difference) to the end network's activation.

        For each stitch by its name, and for the front network's own activation, `front`. `l2` is None for
        activations of different shapes; what is undefined, as the CKA of a constant, is NaN.
        """
        if self.shared is None:
            return {name: self._single(stitch) for name, stitch in {"front": None, **stitches}.items()}
        geometry = self.pair.geometry
        unchanged = Affine(torch.eye(geometry.inputs), torch.zeros(geometry.inputs))
        maps = {"front": unchanged}
        maps |= {name: Affine(stitch.matrix().detach(), stitch.bias.detach()) for name, stitch in stitches.items()}
        ckas = self.shared.cka([affine.w for affine in maps.values()])
        l2 = {name: self.shared.l2(a) if len(a.b) == geometry.outputs else None for name, a in maps.items()}
        return {name: {"cka": cka, "l2": l2[name]} for name, cka in zip(maps, ckas, strict=True)}

    def _single(self, stitch: StitchLayer | None) -> dict[str, float | None]:
        def front(images: Tensor) -> Tensor:
            activation = self.pair.front_head(images)
            return activation if stitch is None else stitch(activation)

        geometry = self.pair.geometry
        shapes = geometry.front_shape if stitch is None else geometry.end_shape, geometry.end_shape

        others = ["l2"] if shapes[0] == shapes[1] else []
        values = compare((front, self.pair.end_head), shapes, self.split, ["cka", *others], group=self.cka_group).values
        # the CKA of a constant is undefined, but not its difference to something
        return {"cka": values.get("cka", math.nan), "l2": values.get("l2")}


def view_pair(pair: Pair, split: Split, *, keep: bool, title: str) -> PairView:
    """Run one pass over a split; `keep` asks for what similarities need, besides the paired moments."""
    geometry = pair.geometry
    if keep and _can_share(geometry, len(split)):
        shared = MappedSimilarity(
            n_images=len(split), shape_x=geometry.front_shape, shape_y=geometry.end_shape, device=split.device
        )
        feed((pair.front_head, pair.end_head), split, shared.update, title=title)
        return PairView(pair, split, shared.moments, shared)
    moments = PairedMoments(geometry.inputs, geometry.outputs, split.device)

    def add(front: Tensor, end: Tensor) -> None:
        moments.update(geometry.front_rows(front), geometry.end_rows(end))

    feed((pair.front_head, pair.end_head), split, add, title=title)
    return PairView(pair, split, moments)


def _can_share(geometry: Geometry, images: int) -> bool:
    """Whether stitches map channels position by position, and the activations fit."""
    if geometry.is_flat or geometry.front_shape[1:] != geometry.end_shape[1:]:
        return False
    features = sum(math.prod(shape) for shape in (geometry.front_shape, geometry.end_shape))
    return 4 * images * features <= STORE_BYTES


def compare(
    heads: tuple[Head, Head],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    group: int | None = None,
    memory: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> Cell:
    """Compare what two heads give, by the named metrics, in one pass over a split.

    `shapes` are those of one image's outputs; `view` and `group` as in `plan_grid`. Raises ValueError, before any
    work, for a metric that these do not allow, and where the rows to be kept take more than `memory` bytes.
    """
    plan = plan_grid(names, view, n_images=len(split), shapes_x=shapes[:1], shapes_y=shapes[1:], group=group)
    require_possible(plan, memory)
    grid = Grid(plan, split.device)
    feed(heads, split, lambda x, y: grid.update([x], [y]), batch_size=batch_size, title="comparing")
    return grid.cells()[0, 0]
