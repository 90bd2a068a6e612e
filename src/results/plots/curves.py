"""Lines over places of an axis, beside each other: pictures of sets of stitches, and charts of studies."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from src.results.plots.style import SMALL, finish
from src.stitching.controls import CONTROLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))  # of lines whose colours grey does not tell apart
MARKERS = "osD^vP*X"
CONTROL_LINE, CONTROL_MARKERS = ":", "v^<>xPd"
SPREAD = 0.5  # of the way from one place to the next, over which lines stand beside each other
LETTERS, UPRIGHT = 9, 0.15  # of names that an inch holds; inches of a name that stands upright
DOTS = 0.05  # of the way to the next place, by which dots stand beside the interval of their mean
SIDE_BY_SIDE = 2
# Inches of the axes of a single panel, and of one of several, and of the legend beside them.
WIDTH, HEIGHT, PANEL, LEGEND = 6.0, 4.2, 4.2, 2.0
LABEL = 30  # letters of a line in the legend


@dataclass(frozen=True, slots=True)
class Series:
    """A line through `values` at `places`, NaN for none.

    low, high: the ends of their intervals. dots: (place, value) of what they are means of. colour, marker, line: as
    matplotlib has them, marker "" for a line that is level.
    """

    label: str
    places: Sequence[float]
    values: Sequence[float]
    colour: str
    marker: str = "o"
    line: str | tuple = "-"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: Sequence[tuple[float, float]] = ()


def control_style(name: str) -> dict[str, Any]:
    """How the line of a control is drawn, wherever it stands."""
    number = list(CONTROLS).index(name)
    marker = CONTROL_MARKERS[number % len(CONTROL_MARKERS)]
    return {"colour": CONTROLS[name].colour, "marker": marker, "line": CONTROL_LINE}


def draw_series(axes: Axes, lines: Sequence[Series]) -> list[float]:
    """Draw lines, those with markers beside each other; returns how far each was moved along the axis."""
    marked = [number for number, series in enumerate(lines) if series.marker]
    shifts = [0.0] * len(lines)
    for place, number in enumerate(marked):
        shifts[number] = SPREAD * ((place + 0.5) / len(marked) - 0.5)
    for series, shift in zip(lines, shifts, strict=True):
        places = np.asarray(series.places, float) + shift
        style = {
            "color": series.colour,
            "linestyle": series.line,
            "linewidth": 1.0 if series.line == CONTROL_LINE else 1.4,
        }
        axes.plot(
            places, series.values, marker=series.marker, markersize=4.5, label=series.label, clip_on=False, **style
        )
        if len(series.low):
            axes.vlines(places, series.low, series.high, colors=series.colour, linewidth=1.2)
        if series.dots:
            at, values = np.array(series.dots).T
            dots = {"marker": ".", "linestyle": "", "alpha": 0.4, "markersize": 4, "clip_on": False}
            axes.plot(at + shift + DOTS, values, color=series.colour, **dots)
    return shifts


def draw_panels(
    figure: Figure, panels: Mapping[str, Sequence[Series]], names: Sequence[str], *, x: str = "", y: str = ""
) -> list[tuple[Axes, list[float]]]:
    """Draw lines over places that are called `names`, panels of one scale with a legend for all of them.

    x, y: labels of the axes. Returns each panel with how far its lines were moved. The figure has `panels_size`.
    """
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.08)
    across, down, width = _grid(len(panels), len(names))
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    drawn, entries = [], {}
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        drawn.append((axes, draw_series(axes, lines)))
        _name_places(axes, names, width)
        finish(axes, title=textwrap.fill(title, 60), x=x, y=y, grid="both")
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    for axes in grid[len(panels) :]:
        axes.remove()
    labels = [textwrap.fill(label, LABEL) for label in entries]
    style = {"fontsize": SMALL, "frameon": False, "handlelength": 3}
    figure.legend(entries.values(), labels, loc="outside right center", **style)
    return drawn


def panels_size(panels: int, places: int) -> tuple[float, float]:
    """Inches (width, height) of a figure of so many panels, with so many places along the axis of each."""
    across, down, width = _grid(panels, places)
    return across * width + LEGEND, HEIGHT if panels == 1 else 0.5 + 0.8 * HEIGHT * down


def _grid(panels: int, places: int) -> tuple[int, int, float]:
    """How many panels stand side by side and how many below each other, and how many inches wide each is."""
    needed = UPRIGHT * places
    across = 1 if panels == 1 or needed > PANEL else SIDE_BY_SIDE
    return across, math.ceil(panels / across), max(needed, WIDTH if across == 1 else PANEL)


def _name_places(axes: Axes, names: Sequence[str], inches: float) -> None:
    """Name the places 0, 1, ... of an axis of so many inches; where they have no room side by side, upright."""
    crowded = sum(map(len, names)) > LETTERS * inches
    axes.set_xticks(range(len(names)), names, rotation=90 if crowded else 0)
    axes.set_xlim(-0.5, len(names) - 0.5)
