"""Values of a grid of layers against chance: thresholds, p values and calibrated scores, of cells and of the whole.

The second network's images are dealt out at random, the same way for all layers, so that what many cells have by chance
in common stays in common, and the best of them can be held against the best by chance.
Source of the score: Gröger, Wen and Brbić 2026, "Calibrated similarity" (arXiv 2602.14486), there with an interpolated
quantile; why an order statistic is taken here stands under `threshold`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from src.metrics.algebra.layer import Layer
from src.metrics.certainty.uncertainty import FEW, Sample, threshold, value_of
from src.metrics.registry import Metric

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A value against those of random pairings.

    threshold: what it must pass to be more than chance at LEVEL. p: the share of pairings, this one among them, that
    are as much alike or more. score: 0 at the threshold and below, 1 where representations are equal.
    """

    value: float
    threshold: float
    p: float
    score: float


def calibrated(observed: float, drawn: Sequence[float], *, best: float, higher_is_better: bool = True) -> Calibrated:
    """Hold a value against those of random pairings; `best` is the value of equal representations."""
    sign = 1 if higher_is_better else -1
    passed = threshold(observed, drawn, higher_is_better=higher_is_better, level=LEVEL)
    beyond = sum(sign * value >= sign * observed for value in drawn)
    room = sign * (best - passed)
    score = min(1.0, max(0.0, sign * (observed - passed) / room)) if room > 0 else 0.0
    return Calibrated(observed, passed, (1 + beyond) / (1 + len(drawn)), score)


@dataclass(frozen=True, slots=True)
class CalibratedGrid:
    """A metric of layers with layers: each cell, and the best and the mean of all cells, against their own nulls."""

    cells: dict[tuple[int, int], Calibrated]
    best: Calibrated
    mean: Calibrated


def calibrate_grid(metric: Metric, observed: Tensor, drawn: Tensor, identical: float) -> CalibratedGrid:
    """observed: (a, b), NaN where there is no value; drawn: (draws, a, b); identical: the value of equal rows."""
    there = [(i, j) for i in range(len(observed)) for j in range(observed.shape[1]) if torch.isfinite(observed[i, j])]
    how = {"best": identical, "higher_is_better": metric.higher_is_better}
    cells = {(i, j): calibrated(float(observed[i, j]), drawn[:, i, j].tolist(), **how) for i, j in there}
    chosen = torch.stack([observed[cell] for cell in there])
    null = torch.stack([drawn[:, i, j] for i, j in there], 1)
    extreme = torch.Tensor.amax if metric.higher_is_better else torch.Tensor.amin
    return CalibratedGrid(
        cells,
        calibrated(float(extreme(chosen, 0)), extreme(null, 1).tolist(), **how),
        calibrated(float(chosen.mean()), null.mean(1).tolist(), **how),
    )


def subset(images: int, seed: int = 0) -> Tensor:
    """The images, at most FEW, that are dealt out: numbers in their order."""
    if images <= FEW:
        return torch.arange(images)
    return torch.randperm(images, generator=Generator().manual_seed(seed))[:FEW].sort()[0]


def orders(images: int, draws: int, seed: int = 0) -> list[Tensor]:
    """As many random orders of so many images."""
    generator = Generator().manual_seed(seed + 1)
    return [torch.randperm(images, generator=generator) for _ in range(draws)]


def draw_of(
    metric: Metric, view: str, xs: Sequence[Sample], cells: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> Callable[[Tensor], Tensor]:
    """An order of the second side's images -> the metric's values (first, second), NaN where there is no cell.

    xs: a sample for each cell, in the order of `cells`. Where the metric has a shorter way, what belongs to a layer is
    computed once.
    """
    if metric.permuted and view == "images":
        first = {i: Layer.of(sample.x) for (i, _), sample in zip(cells, xs, strict=True)}
        second = {j: Layer.of(sample.y) for (_, j), sample in zip(cells, xs, strict=True)}
        inner = metric.permuted(list(first.values()), list(second.values()))
        rows, columns = torch.tensor(list(first)), torch.tensor(list(second))

        def draw_all(order: Tensor) -> Tensor:
            values = torch.full(shape, math.nan, dtype=torch.float64)
            values[rows[:, None], columns] = inner(order)
            return values

        return draw_all

    def draw_each(order: Tensor) -> Tensor:
        values = torch.full(shape, math.nan, dtype=torch.float64)
        every = torch.arange(len(order))
        for cell, sample in zip(cells, xs, strict=True):
            values[cell] = value_of(metric, view, sample.take(every, order))
        return values

    return draw_each
