"""The paired moments of many pairs of layers of two networks, from one pass over the images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from src.dataset import Split
from src.evaluation.passes import feed
from src.evaluation.probe import PooledFeatures
from src.metrics import channels_last_rows
from src.metrics.algebra.linalg import as_float64
from src.metrics.algebra.moments import PairedMoments, Sums, gather, rows_at_once
from src.stitching.cut_networks import CutNetworks, Outputs, Shared
from src.stitching.geometry import Geometry
from src.stitching.stitch_spec import Cut, StitchSpec
from src.stitching.upsampling import Upsampled, is_upsampled

LARGE_MOMENTS = 2048  # features of both sides; the sums of products of more take a while to solve
Moments = dict[Cut, PairedMoments]


def gather_moments(
    cuts: CutNetworks,
    specs: Sequence[StitchSpec],
    split: Split,
    *,
    title: str,
    on_message: Callable[[str], None],
    averages: PooledFeatures | None = None,
) -> Moments:
    """The paired moments of every pair of layers of some stitches, from one pass over a split.

    The same pass gives `averages` its layers of the front network.
    """
    specs = [spec for spec in specs if not spec.constant]
    if not specs and not averages:
        return {}
    gathering = _Gathering(cuts, list(dict.fromkeys(spec.cut for spec in specs)), split.device)
    for geometry in gathering.geometries.values():
        _announce(geometry.inputs, geometry.outputs, len(split), on_message)
    more = {"end": [spec.end_layer for spec in specs]} | ({"front": averages.layers} if averages else {})

    def add(outputs: Shared) -> None:
        gathering.add(outputs)
        if averages:
            averages.add(outputs["front"])

    feed([partial(cuts.front_activations, specs, more=more)], split, add, title=title)
    return gathering.moments()


class Spread:
    """The mean variance of a layer's channels, streamed in float64: of rows that come batch by batch."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, output: Tensor) -> None:
        """Take in a layer's output for a batch of images, (n, channels, ...), in canonical form."""
        rows = channels_last_rows(output)
        rows = as_float64(rows)
        apart = rows.mean(0) - self.mean
        self.squares = self.squares + (rows - rows.mean(0)).square().sum(0)
        self.squares = self.squares + apart.square() * self.n * len(rows) / (self.n + len(rows))
        self.mean = self.mean + apart * len(rows) / (self.n + len(rows))
        self.n += len(rows)

    @property
    def variance(self) -> float:
        return float(self.squares.mean()) / self.n


def end_variances(cuts: CutNetworks, layers: Sequence[str], split: Split) -> dict[str, float]:
    """The mean variance of layers of the end network over a split, from one pass."""
    spreads = {layer: Spread() for layer in layers}

    def add(outputs: Outputs) -> None:
        for layer, spread in spreads.items():
            spread.add(outputs[layer])

    if layers:
        feed([lambda images: cuts.outputs("end", layers, images)], split, add, title="variance of final features")
    return {layer: spread.variance for layer, spread in spreads.items()}


def mean_variance(moments: PairedMoments) -> float:
    """The mean variance of the end network's activation."""
    return float(moments.yy.trace()) / moments.n / len(moments.mean_y)


class _Gathering:
    """Moments of many pairs of layers, which share the sums of a layer that they lay out alike."""

    def __init__(self, cuts: CutNetworks, chosen: Sequence[Cut], device: torch.device) -> None:
        self.geometries = {cut: cuts.geometry(cut) for cut in chosen}
        small = {cut: geometry for cut, geometry in self.geometries.items() if is_upsampled(geometry)}
        self.upsampled = Upsampled(small, device) if small else None
        self.device = device
        self.sums: dict[tuple, Sums] = {}
        self.direct: Moments = {}
        self.groups: dict[tuple, list[Cut]] = {}
        for cut, geometry in self.geometries.items():
            layout = self._layout(geometry)
            self.groups.setdefault(layout, []).append(cut)
            end = self._sums(("end", cut.end_layer, *layout), geometry.outputs, device)
            if cut not in small:
                front = self._sums((cut.source, cut.front_layer, *layout), geometry.inputs, device)
                self.direct[cut] = PairedMoments.of(front, end)

    def _sums(self, key: tuple, features: int, device: torch.device) -> Sums:
        return self.sums.setdefault(key, Sums(features, device))

    def _layout(self, geometry: Geometry) -> tuple:
        """What decides the rows of a batch: flat or the positions, and how many become float64 at a time."""
        return geometry.is_flat, geometry.places, rows_at_once(geometry.inputs, geometry.outputs, self.device)

    def add(self, outputs: Shared) -> None:
        if self.upsampled:
            self.upsampled.add(outputs)
        for layout, cuts in self.groups.items():
            sides: dict[tuple, Tensor] = {}
            for cut in cuts:
                geometry = self.geometries[cut]
                front, end = (cut.source, cut.front_layer, *layout), ("end", cut.end_layer, *layout)
                if cut in self.direct and front not in sides:
                    sides[front] = geometry.front_rows(outputs[cut.source][cut.front_layer])
                if end not in sides:
                    sides[end] = geometry.end_rows(outputs["end"][cut.end_layer])
            shared = [(self.sums[key], rows) for key, rows in sides.items()]
            gather(shared, [self.direct[cut] for cut in cuts if cut in self.direct], rows=layout[-1])

    def moments(self) -> Moments:
        for sums in self.sums.values():
            sums.require_finite()
        by_cut = dict(self.direct)
        if self.upsampled:
            ends = {
                cut.end_layer: self.sums[("end", cut.end_layer, *self._layout(geometry))]
                for cut, geometry in self.upsampled.geometries.items()
            }
            by_cut |= dict(self.upsampled.finish(ends))
        return {cut: by_cut[cut] for cut in self.geometries}


def _announce(inputs: int, outputs: int, images: int, on_message: Callable[[str], None]) -> None:
    if inputs + outputs > LARGE_MOMENTS:
        held = 8 * (inputs * inputs + inputs * outputs + outputs * outputs) / 1e9
        work = images * (inputs * inputs + inputs * outputs + outputs * outputs) * 2 / 1e12
        on_message(
            f"least squares of {outputs} x {inputs} weights from {images} images: {held:.1f} GB of sums, "
            f"{work:.1f} Tflop in float64 and a decomposition of {inputs} x {inputs}; minutes"
        )
