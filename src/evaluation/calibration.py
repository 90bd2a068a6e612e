"""How much more alike than chance layers of two networks are: one pass keeps their activations of some images."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from src.core.config import MEMORY
from src.core.errors import UserError
from src.core.progress import bar
from src.dataset import Split
from src.evaluation.activations import Activations, keep_activations
from src.evaluation.layer_grid import layer_label
from src.metrics.certainty.calibration import CalibratedGrid, calibrate_grid, draw_of, orders, subset
from src.metrics.certainty.uncertainty import Sample
from src.metrics.engine.plan import plan_cell
from src.metrics.functional import FUNCTIONAL
from src.metrics.registry import METRICS, Metric

DRAWS = 200  # where nobody says another number
HOUR = 3600.0
CLOSE = 1e-6  # of values that are taken to be one


@dataclass(frozen=True, slots=True)
class Calibration:
    """Metrics of every pair of layers against chance, from so many draws of so many images.

    grids: by metric. unavailable: metric -> why there is none.
    """

    layers1: list[str]
    layers2: list[str]
    grids: dict[str, CalibratedGrid]
    unavailable: dict[str, str]
    images: int
    draws: int

    def frame(self) -> pd.DataFrame:
        """A row a metric and pair of layers: method, layer1, layer2, value (of these images), threshold, p, score."""
        rows = [
            {"method": name, "layer1": self.layers1[i], "layer2": self.layers2[j], **asdict(cell)}
            for name, grid in self.grids.items()
            for (i, j), cell in grid.cells.items()
        ]
        return pd.DataFrame(rows, columns=["method", "layer1", "layer2", "value", "threshold", "p", "score"])

    def whole(self) -> dict[str, dict[str, dict[str, float]]]:
        """By metric, the best cell and the mean of all, each against its own null, which knows of the choice."""
        return {name: {"max": asdict(grid.best), "mean": asdict(grid.mean)} for name, grid in self.grids.items()}


def calibrate(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[list[str], list[str]],
    sample: Tensor,
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    draws: int | None = None,
    batch_size: int = 64,
    memory: float = MEMORY,
    layouts: tuple[str | None, str | None] = (None, None),
    on_message: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Hold metrics of every pair of layers against random pairings of the images.

    sample: two blank images. view: how activations become rows, None for each metric's own. draws: None for DRAWS; then
    more than an hour of them is refused. At most FEW images are dealt out, and their activations kept, in float32.
    Raises UserError where these take more than `memory` bytes, or where no metric can be calibrated.
    """
    labels = [layer_label(name) for name in layers[0]], [layer_label(name) for name in layers[1]]
    unavailable = {name: _unpaired(name) for name in names if name in FUNCTIONAL}
    split = split.take(subset(len(split)))
    room: dict[str, Any] = {"batch_size": batch_size, "memory": memory, "layouts": layouts}
    kept = keep_activations(networks, layers, sample, split, options="--calibrate", **room)
    grids, count = {}, DRAWS if draws is None else draws
    for name in (name for name in dict.fromkeys(names) if name in METRICS):
        try:
            grids[name] = _grid(name, view, kept, count, on_message, bounded=draws is None)
        except UserError as error:
            unavailable[name] = str(error)
    if not grids:
        raise UserError("--calibrate: " + "; ".join(f"{name}: {reason}" for name, reason in unavailable.items()))
    return Calibration(*labels, grids, unavailable, len(split), count)


def _unpaired(name: str) -> str:
    if FUNCTIONAL[name].paired:
        return "it is of decisions, whatever the layers; --permutations has what chance gives"
    return "no pairing of the images changes it"


def _samples(name: str, view: str | None, kept: Activations) -> tuple[list[tuple[int, int]], list[Sample], str]:
    """The pairs that a metric has a value of, a sample for each, and the view of all. UserError where there is none."""
    reason, cells, samples, views = "", [], [], set()
    for cell in kept.pairs:
        sample = kept.sample(*cell)
        plan = plan_cell([name], view, len(sample), sample.shape_x, sample.shape_y, None)
        if name in plan.unavailable:
            reason = plan.unavailable[name]
            continue
        cells.append(cell)
        samples.append(sample.in_row_space() if plan.source[name] == "row_space" else sample)
        views.add(plan.views[name])
    if not cells:
        raise UserError(reason)
    if len(views) > 1:
        raise UserError("some pairs are compared by images and others by channels; choose one with --view")
    return cells, samples, views.pop()


def _of_equal(metric: Metric, view: str, samples: Sequence[Sample]) -> float:
    """The value of equal representations; raises UserError where it is another one for each."""
    if not callable(metric.identical):
        return metric.identical
    sides = {id(side): rows for sample in samples for side, rows in _sides(sample, view)}
    values = [metric.of_equal(rows) for rows in sides.values()]
    if max(values) - min(values) > CLOSE * max(1.0, abs(values[0])):
        raise UserError("its value for equal representations depends on these")
    return values[0]


def _sides(sample: Sample, view: str) -> list[tuple[Tensor, Tensor]]:
    """The activations of either layer, and their rows."""
    return list(zip((sample.x, sample.y), sample.rows(view), strict=True))


def _grid(
    name: str,
    view: str | None,
    kept: Activations,
    draws: int,
    on_message: Callable[[str], None],
    *,
    bounded: bool,
) -> CalibratedGrid:
    metric = METRICS[name]
    cells, samples, taken = _samples(name, view, kept)
    best = _of_equal(metric, taken, samples)
    shape = len(kept.sides[0]), len(kept.sides[1])
    draw, every = draw_of(metric, taken, samples, cells, shape), orders(len(samples[0]), draws)
    observed = draw(torch.arange(len(samples[0])))
    start = time.monotonic()
    drawn = [draw(order) for order in every[:1]]
    left = (time.monotonic() - start) * (draws - 1)
    if bounded and left > HOUR:
        raise UserError(f"{draws} draws would take {left / 3600:.1f} hours; say how many, as in --calibrate 39")
    if left > 10:
        on_message(f"{name}: {draws} random pairings, about {left:.0f} s")
    with bar(draws, f"{name} by chance", unit="draw", initial=1) as progress:
        for order in every[1:]:
            drawn.append(draw(order))
            progress.update(1)
    return calibrate_grid(metric, observed, torch.stack(drawn), best)
