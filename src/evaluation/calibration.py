"""How much more alike than chance layers of two networks are: one pass keeps their activations of some images."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from src.core.config import MEMORY
from src.core.errors import UserError
from src.core.progress import bar
from src.cutting.channel_axis import find_outputs, layouts_of
from src.cutting.freeze import freeze
from src.cutting.parts import heads
from src.dataset import Split
from src.evaluation.layer_grid import layer_label
from src.evaluation.passes import feed
from src.metrics.algebra.layer import Layer
from src.metrics.certainty.calibration import CalibratedGrid, calibrate_grid, draw_of, orders, subset
from src.metrics.certainty.uncertainty import Sample, value_of
from src.metrics.engine.plan import plan_cell
from src.metrics.functional import FUNCTIONAL
from src.metrics.registry import METRICS

DRAWS = 200  # where nobody says another number
HOUR = 3600.0


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
    sides = _activations(networks, layers, sample, split, batch_size, memory, layouts)
    grids, count = {}, DRAWS if draws is None else draws
    for name in (name for name in dict.fromkeys(names) if name in METRICS):
        try:
            grids[name] = _grid(name, view, sides, count, on_message, bounded=draws is None)
        except UserError as error:
            unavailable[name] = str(error)
    if not grids:
        raise UserError("--calibrate: " + "; ".join(f"{name}: {reason}" for name, reason in unavailable.items()))
    return Calibration(*labels, grids, unavailable, len(split), count)


def _unpaired(name: str) -> str:
    if FUNCTIONAL[name].paired:
        return "it is of decisions, whatever the layers; --permutations has what chance gives"
    return "no pairing of the images changes it"


def _activations(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[list[str], list[str]],
    sample: Tensor,
    split: Split,
    batch_size: int,
    memory: float,
    layouts: tuple[str | None, str | None],
) -> list[list[tuple[Tensor, tuple[int, ...]]]]:
    """Of each layer of both networks its rows (images, features), on the processor, and the shape of one image's."""
    outputs_of = [find_outputs(*given) for given in zip(networks, layers, (sample, sample), layouts, strict=True)]
    shapes = [[outputs[layer].canonical for layer in names] for outputs, names in zip(outputs_of, layers, strict=True)]
    needed = 4 * len(split) * sum(math.prod(shape) for side in shapes for shape in side)
    if needed > memory:
        raise UserError(
            f"--calibrate keeps {needed / 1e9:.1f} GB of activations here; name fewer layers, or allow it with "
            f"--memory {math.ceil(needed / 1e9)}"
        )
    parts = [
        freeze(heads(network, list(names), layouts_of(outputs))).to(split.device)
        for network, names, outputs in zip(networks, layers, outputs_of, strict=True)
    ]
    kept: list[list[list[Tensor]]] = [[[] for _ in names] for names in layers]

    def keep(*outputs: Sequence[Tensor]) -> None:
        for side, tensors in zip(kept, outputs, strict=True):
            for rows, tensor in zip(side, tensors, strict=True):
                rows.append(tensor.flatten(1).float().cpu())

    feed(parts, split, keep, batch_size=batch_size, title="activations for calibration")
    with torch.inference_mode(False):
        return [
            [(torch.cat(rows).clone(), shape) for rows, shape in zip(side, some, strict=True)]
            for side, some in zip(kept, shapes, strict=True)
        ]


def _samples(
    name: str, view: str | None, sides: list[list[tuple[Tensor, tuple[int, ...]]]]
) -> tuple[list[tuple[int, int]], list[Sample], str]:
    """The pairs that a metric has a value of, a sample for each, and the view of all. UserError where there is none."""
    images, reason = len(sides[0][0][0]), ""
    cells, samples, views = [], [], set()
    coordinates: dict[tuple[int, int], Tensor] = {}  # of a layer of a side, in the space that its images span
    for i, (x, shape_x) in enumerate(sides[0]):
        for j, (y, shape_y) in enumerate(sides[1]):
            plan = plan_cell([name], view, images, shape_x, shape_y, None)
            if name in plan.unavailable:
                reason = plan.unavailable[name]
                continue
            sample = Sample(x, y, shape_x, shape_y)
            if plan.source[name] == "row_space":
                for place, rows in (((0, i), x), ((1, j), y)):
                    if place not in coordinates:
                        coordinates[place] = Layer.of(rows).coordinates()
                inner = coordinates[0, i], coordinates[1, j]
                sample = Sample(*inner, inner[0].shape[1:], inner[1].shape[1:])
            cells.append((i, j))
            samples.append(sample)
            views.add(plan.views[name])
    if not cells:
        raise UserError(reason)
    if len(views) > 1:
        raise UserError("some pairs are compared by images and others by channels; choose one with --view")
    return cells, samples, views.pop()


def _grid(
    name: str,
    view: str | None,
    sides: list[list[tuple[Tensor, tuple[int, ...]]]],
    draws: int,
    on_message: Callable[[str], None],
    *,
    bounded: bool,
) -> CalibratedGrid:
    metric, images = METRICS[name], len(sides[0][0][0])
    if callable(metric.identical):
        raise UserError("its value for equal representations depends on these")
    cells, samples, taken = _samples(name, view, sides)
    shape = len(sides[0]), len(sides[1])
    observed = torch.full(shape, math.nan, dtype=torch.float64)
    for cell, one in zip(cells, samples, strict=True):
        observed[cell] = value_of(metric, taken, one)
    draw, every = draw_of(metric, taken, samples, cells, shape), orders(images, draws)
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
    return calibrate_grid(metric, observed, torch.stack(drawn), metric.identical)
