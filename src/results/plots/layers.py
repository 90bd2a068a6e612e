"""Pictures of comparisons: a heatmap over the layers of two networks for each metric, or bars for one pair."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.metrics import MEASURES, Metric
from src.metrics.certainty.calibration import LEVEL
from src.metrics.functional import Functional
from src.results.plots.heatmap import ANNOTATED, draw_map, draw_scale, map_size
from src.results.plots.style import BLUE, GREY, INK, NORMAL, ORANGE, SMALL, finish, new_figure, save
from src.results.titles import network_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE_BY_SIDE = 2
WIDE_FROM = 30  # layers; heatmaps of more are wide enough alone
# The scale of a metric without bounds ends at so many times this quantile of its values.
OUTLYING, TYPICAL = 2, 0.75
# Inches of a panel, however few its cells are.
LEAST_WIDTH, LEAST_HEIGHT = 4.2, 3.2


def draw_grid(result: dict[str, Any], path: Path) -> None:
    """Draw the heatmaps of every pair of layers, from a result of compare_nets.py, into a file."""
    save(grid_figure(result), path)


def draw_pair(result: dict[str, Any], path: Path) -> None:
    """Draw the values of one pair of layers, from a result of compare_nets.py, into a file."""
    save(pair_figure(result), path)


def grid_figure(result: dict[str, Any]) -> Figure:
    layers1, layers2 = result["layers1"], result["layers2"]
    tables = {
        name: part.pivot(index="layer1", columns="layer2", values="value").loc[layers1, layers2].to_numpy(float)
        for name, part in result["frame"].groupby("method", sort=False)
    }
    across = 1 if len(layers2) > WIDE_FROM else min(SIDE_BY_SIDE, len(tables))
    down = math.ceil(len(tables) / across)
    width, height = map_size(layers1, layers2)
    width, height = max(LEAST_WIDTH, width + 1.5), max(LEAST_HEIGHT, height + 0.7)
    figure = new_figure(across * width, down * height + 0.6, _title(result))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    names = network_names(result["networks"])
    for axes, (name, table) in zip(panels, tables.items(), strict=False):
        draw_metric(figure, axes, MEASURES[str(name)], table, layers1, layers2, letters=int(13 * height))
        _hatch_chance(axes, result, str(name))
        finish(axes, x=f"layer of {names[1]}", y=f"layer of {names[0]}")
        axes.tick_params(labelsize=SMALL if max(len(layers1), len(layers2)) <= ANNOTATED else 7)
    for axes in panels[len(tables) :]:
        axes.remove()
    notes = ["framed: most similar in its row"] * any(
        patch.get_gid() != "chance" for axes in panels[: len(tables)] for patch in axes.patches
    )
    notes += [f"hatched: no more than chance (p > {LEVEL:g})"] * ("frame" in result.get("calibrated", {}))
    notes += ["grey: no value"] * any(bool(np.isnan(table).any()) for table in tables.values())
    figure.supxlabel("; ".join(notes), fontsize=SMALL, color=INK)
    return figure


def _hatch_chance(axes: Axes, result: dict[str, Any], name: str) -> None:
    """Hatch the cells whose values random pairings of the images reach as well."""
    from matplotlib.patches import Rectangle

    frame = result.get("calibrated", {}).get("frame")
    if frame is None:
        return
    rows = frame[(frame["method"] == name) & (frame["p"] > LEVEL)]
    for layer1, layer2 in zip(rows["layer1"], rows["layer2"], strict=True):
        corner = result["layers2"].index(layer2) - 0.5, result["layers1"].index(layer1) - 0.5
        axes.add_patch(
            Rectangle(corner, 1, 1, fill=False, hatch="////", linewidth=0, edgecolor=INK, alpha=0.7, gid="chance")
        )


def _title(result: dict[str, Any]) -> str:
    names = network_names(result["networks"])
    params = result["params"]
    return f"{names[0]} and {names[1]}   ({params['dataset']}, {params['dataset_type']})"


def draw_metric(
    figure: Figure,
    axes: Axes,
    metric: Metric | Functional,
    table: np.ndarray,
    layers1: list[str],
    layers2: list[str],
    *,
    letters: int,
) -> None:
    """Draw one metric; what it means stands beside the scale of colours, in lines of so many letters."""
    low, high = _range(metric, table)
    beyond = "max" if np.nanmax(table, initial=low) > high else "neither"
    image = draw_map(axes, table, layers1, layers2, low=low, high=high, higher_is_better=metric.higher_is_better)
    finish(axes, title=metric.name)
    meaning = textwrap.fill(f"{metric.meaning} ({metric.more_alike}: more alike)", letters)
    draw_scale(figure, image, axes, meaning, extend=beyond)


def _range(metric: Metric | Functional, table: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale: from equal representations as far as the values go, in tenths where these are bounded.

    An end at the metric's own bounds would leave most colours unused, and so would one far beyond most values.
    """
    known = table[np.isfinite(table)]
    if not known.size:
        return 0.0, 1.0
    ends = [float(known.min()), float(known.max())] + ([] if callable(metric.identical) else [metric.identical])
    low, high = min(ends), max(ends)
    if math.isfinite(metric.range[1]):
        low, high = math.floor(10 * low) / 10, math.ceil(10 * high) / 10
    else:
        high = min(high, OUTLYING * float(np.quantile(known, TYPICAL, method="lower")))
    return (low, high) if high > low else (low, low + 1)


def pair_figure(result: dict[str, Any]) -> Figure:
    frame: pd.DataFrame = result["frame"]
    rows = frame.to_dict("records")
    names = [
        f"{name} {layer}"
        for name, layer in zip(network_names(result["networks"]), (rows[0]["layer1"], rows[0]["layer2"]), strict=True)
    ]
    params = result["params"]
    title = f"{names[0]} and {names[1]}   ({params['dataset']}, {params['dataset_type']})"
    figure = new_figure(7.5, 0.95 + 0.62 * len(rows), title)
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False).ravel(), rows, strict=True):
        interval, null = (result.get(key, {}).get(row["method"]) for key in ("intervals", "null"))
        _draw_bar(axes, MEASURES[row["method"]], row["value"], interval, null)
    notes = ["dotted: value of equal representations"] + ["dashed: of unpaired images"] * bool(result.get("null"))
    finish(axes, x="; ".join(notes))
    return figure


def _draw_bar(
    axes: Axes,
    metric: Metric | Functional,
    value: float,
    interval: tuple[float, float] | None = None,
    null: tuple[float, float] | None = None,
) -> None:
    """One metric on its own axis, with a line where equal representations would be, and one where unpaired ones are."""
    high = metric.range[1] if math.isfinite(metric.range[1]) else max(1e-12, 1.25 * value)
    low = min(0.0, value)
    axes.barh([0], [value], color=BLUE, height=0.55)
    if interval:
        bars = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
        axes.errorbar([value], [0], xerr=bars, color=INK, capsize=4, linewidth=1.5)
    if null:
        axes.axvline(null[0], color=GREY, linewidth=1.5, linestyle="--")
    if not callable(metric.identical):
        axes.axvline(metric.identical, color=ORANGE, linewidth=2.5, linestyle=":", clip_on=False)
    finish(axes)
    axes.set_yticks([0], [f"{metric.name}\n({metric.more_alike}: more alike)"], fontsize=NORMAL)
    axes.set_xlim(low, high)
    axes.set_ylim(-0.5, 0.5)
    axes.text(1.02, 0.5, f"{value:.4g}", va="center", fontsize=NORMAL, color=INK, transform=axes.transAxes)
    axes.spines[["top", "right"]].set_visible(False)
