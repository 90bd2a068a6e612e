"""How well a network does its task, and what one pass tells of the activations of two."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.activations import BATCH_SIZE, Head, feed
from src.dataset import Split
from src.metrics import Cell, Grid, PairedMoments
from src.metrics.mapped import MappedSimilarity
from src.metrics.plan import plan_grid, require_possible
from src.scores import Tally, tally
from src.stitching import Geometry, Pair, StitchLayer

STORE_BYTES = 4_000_000_000  # activations that may be kept at once


def evaluate(network: nn.Module, split: Split, *, batch_size: int = BATCH_SIZE, title: str = "") -> dict[str, float]:
    """Loss (nats) and accuracy (0 to 1) of a network, in eval mode; its own mode is left as it was."""
    was_training = network.training
    network.eval()
    try:
        counts = Tally(split.spec.task)
        tally(lambda images: {"": network(images)}, split, counts, batch_size=batch_size, title=title)
    finally:
        network.train(was_training)
    return counts.scores("")


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

    def ckas(self, stitches: Mapping[str, StitchLayer]) -> dict[str, float]:
        """Biased linear CKA with the end network's activation, NaN where one of both is constant.

        For each stitch by its name, and for the front network's own activation, `front`.
        """
        if self.shared is None:
            return {name: self._single(stitch) for name, stitch in {"front": None, **stitches}.items()}
        weights = {"front": torch.eye(self.pair.geometry.inputs)}
        weights |= {name: stitch.matrix().detach() for name, stitch in stitches.items()}
        return dict(zip(weights, self.shared.cka(list(weights.values())), strict=True))

    def _single(self, stitch: StitchLayer | None) -> float:
        def front(images: Tensor) -> Tensor:
            activation = self.pair.front_head(images)
            return activation if stitch is None else stitch(activation)

        geometry = self.pair.geometry
        shapes = geometry.front_shape if stitch is None else geometry.end_shape, geometry.end_shape
        cell = compare((front, self.pair.end_head), shapes, self.split, ["cka"], group=self.cka_group)
        return cell.values.get("cka", math.nan)


def view_pair(pair: Pair, split: Split, *, keep: bool, title: str) -> PairView:
    """Run one pass over a split; `keep` asks for what similarities need, besides the paired moments."""
    geometry = pair.geometry
    if keep and can_share(geometry, len(split)):
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


def can_share(geometry: Geometry, images: int) -> bool:
    """Whether one pass serves the CKA of all stitches: they map channels position by position, and activations fit."""
    if geometry.is_flat or geometry.is_resized or geometry.front_shape[1:] != geometry.end_shape[1:]:
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
    alone: bool = True,
) -> Cell:
    """Compare what two heads give, by the named metrics, in one pass over a split.

    `shapes` are those of one image's outputs; `view` and `group` as in `plan_grid`. Raises ValueError, before any
    work, where these allow none of the metrics, if they are all that is asked for (`alone`), and where the rows to be
    kept take more than `memory` bytes.
    """
    plan = plan_grid(
        names, view, n_images=len(split), shapes_x=shapes[:1], shapes_y=shapes[1:], group=group, memory=memory
    )
    require_possible(plan, memory, alone=alone)
    grid = Grid(plan, split.device)
    how = {"batch_size": batch_size, "grouped": group is not None}
    feed(heads, split, lambda x, y: grid.update([x], [y]), title="comparing", **how)
    return grid.cells()[0, 0]
