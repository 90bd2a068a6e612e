"""The paired moments of many pairs of layers of two networks, from one pass over the images."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from src.activations import feed
from src.dataset import Split
from src.metrics.moments import PairedMoments, Sums, gather, rows_at_once
from src.stitching import Cuts, Geometry, StitchSpec

LARGE_MOMENTS = 2048  # features of both sides; the sums of products of more take a while to solve
Cut = tuple[str, str, bool, bool]
Moments = dict[Cut, PairedMoments]


def gather_moments(
    cuts: Cuts, specs: Sequence[StitchSpec], split: Split, *, title: str, notice: Callable[[str], None]
) -> Moments:
    """The paired moments of every pair of layers of some stitches, from one pass over a split."""
    if not specs:
        return {}
    gathering = _Gathering(cuts, list(dict.fromkeys(spec.cut for spec in specs)), split.device)
    for geometry in gathering.geometries.values():
        _announce(geometry.inputs, geometry.outputs, len(split), notice)
    fronts = list(dict.fromkeys(cut[0] for cut in gathering.geometries))
    ends = list(dict.fromkeys(cut[1] for cut in gathering.geometries))
    heads = [partial(cuts.outputs, "front", fronts), partial(cuts.outputs, "end", ends)]
    feed(heads, split, gathering.add, title=title)
    return gathering.moments


class _Gathering:
    """Moments of many pairs of layers, which share the sums of a layer that they lay out alike."""

    def __init__(self, cuts: Cuts, chosen: Sequence[Cut], device: torch.device) -> None:
        self.geometries = {cut: cuts.geometries[cut] for cut in chosen}
        self.sums: dict[tuple, Sums] = {}
        self.moments: Moments = {}
        self.groups: dict[tuple, list[Cut]] = {}
        for cut, geometry in self.geometries.items():
            layout = self._layout(geometry)
            front, end = ("front", cut[0], *layout), ("end", cut[1], *layout)
            for key, features in ((front, geometry.inputs), (end, geometry.outputs)):
                self.sums.setdefault(key, Sums(features, device))
            self.moments[cut] = PairedMoments.of(self.sums[front], self.sums[end])
            self.groups.setdefault(layout, []).append(cut)

    @staticmethod
    def _layout(geometry: Geometry) -> tuple:
        """What decides the rows of a batch: flat or the positions, and how many become float64 at a time."""
        return geometry.is_flat, geometry.end_shape[1:], rows_at_once(geometry.inputs, geometry.outputs)

    def add(self, front: dict[str, Tensor], end: dict[str, Tensor]) -> None:
        for layout, cuts in self.groups.items():
            sides: dict[tuple, Tensor] = {}
            for cut in cuts:
                geometry = self.geometries[cut]
                keys = ("front", cut[0], *layout), ("end", cut[1], *layout)
                if keys[0] not in sides:
                    sides[keys[0]] = geometry.front_rows(front[cut[0]])
                if keys[1] not in sides:
                    sides[keys[1]] = geometry.end_rows(end[cut[1]])
            shared = [(self.sums[key], rows) for key, rows in sides.items()]
            gather(shared, [self.moments[cut] for cut in cuts], rows=layout[-1])


def _announce(inputs: int, outputs: int, images: int, notice: Callable[[str], None]) -> None:
    if inputs + outputs > LARGE_MOMENTS:
        held = 8 * (inputs * inputs + inputs * outputs + outputs * outputs) / 1e9
        work = images * (inputs * inputs + inputs * outputs + outputs * outputs) * 2 / 1e12
        notice(
            f"least squares of {outputs} x {inputs} weights from {images} images: {held:.1f} GB of sums, "
            f"{work:.1f} Tflop in float64 and a decomposition of {inputs} x {inputs}; minutes"
        )
