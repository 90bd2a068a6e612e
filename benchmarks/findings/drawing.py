"""What the pictures of findings share. Lines differ in marker, stroke and lightness, so that grey shows them, too."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from src.results.plots.curves import LINES, MARKERS, Series, draw_panels, draw_series, panels_size
from src.results.plots.style import BLUE, GREEN, GREY, INK, ORANGE, SMALL, finish, new_figure
from src.studies.frames import Frame

VERMILION, SKY, PURPLE = "#D55E00", "#56B4E9", "#CC79A7"
# from dark to light by luminance, neighbours in a picture far apart
COLOURS = (INK, ORANGE, BLUE, SKY, VERMILION, PURPLE, GREEN, GREY)


def style(number: int) -> dict[str, Any]:
    """How the line of that number is drawn; those beyond the colours begin anew with other strokes and markers."""
    shifted = number + number // len(COLOURS)
    return {
        "colour": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[shifted % len(MARKERS)],
        "line": LINES[shifted % len(LINES)],
    }


def line(label: str, rows: Frame, along: str, places: Sequence[Any], name: str, number: int) -> Series:
    """Means of shares with intervals as a line, in percent, over the places of an axis; rows as of `values.means`."""
    by_place: dict[Any, Mapping[Any, Any]] = {row[along]: row for row in rows.to_dict(orient="records")}
    known = [(x, by_place[place]) for x, place in enumerate(places) if place in by_place]
    value, low, high = ([100 * row[f"{name}{end}"] for _, row in known] for end in ("", "_low", "_high"))
    return Series(label, [x for x, _ in known], value, low=low, high=high, **style(number))


def panels(
    shown: Mapping[str, Sequence[Series]], names: Iterable[Any], *, title: str, x: str, y: str, note: str = ""
) -> Figure:
    """Panels of lines with one legend; `note` says what lines and bars are."""
    names = [str(name) for name in names]
    figure = new_figure(*panels_size(len(shown), len(names)), title)
    draw_panels(figure, shown, names, x=x, y=y)
    if note:
        figure.supxlabel(note, fontsize=SMALL, color=INK)
    return figure


def side_by_side(
    shown: Mapping[str, tuple[Sequence[str], Sequence[Series]]],
    *,
    title: str,
    x: str,
    y: str,
    note: str,
    one_scale: bool = True,
) -> Figure:
    """Panels of lines over places of their own, {heading: (their names, lines)}, each with its legend."""
    across, down = min(2, len(shown)), math.ceil(len(shown) / 2)
    figure = new_figure(4.8 * across, 0.6 + 3.6 * down, title)
    grid: Any = figure.subplots(down, across, squeeze=False, sharey=one_scale).ravel()
    for axes, (heading, (names, lines)) in zip(grid, shown.items(), strict=True):
        draw_series(axes, lines)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
        finish(axes, title=heading, x=x, y=y, grid="both")
        axes.legend(fontsize=SMALL, frameon=False, handlelength=3)
    figure.supxlabel(note, fontsize=SMALL, color=INK)
    return figure


@dataclass(frozen=True, slots=True)
class Dots:
    """Values of things that stand below each other, with intervals; NaN for none."""

    label: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def ladder(
    shown: Mapping[str, tuple[Sequence[str], Sequence[Dots]]],
    *,
    title: str,
    x: str,
    note: str,
    ends: tuple[float, float],
) -> Figure:
    """Panels side by side: names from top to bottom, and for each its values from left to right, between `ends`."""
    rows = max(len(names) * max(2, len(series)) for names, series in shown.values())
    figure = new_figure(4.6 * len(shown) + 1.2, 1.6 + 0.125 * rows, title)
    grid: Any = figure.subplots(1, len(shown), squeeze=False).ravel()
    entries = {}
    for axes, (heading, (names, series)) in zip(grid, shown.items(), strict=True):
        for number, dots in enumerate(series):
            at = np.arange(len(names)) + 0.5 * ((number + 0.5) / len(series) - 0.5)
            looks = style(number)
            how = {"color": looks["colour"], "clip_on": False}
            axes.hlines(at, dots.low, dots.high, linewidth=1.4, **how)
            axes.plot(dots.values, at, looks["marker"], markersize=5, label=dots.label, **how)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(*ends)
        finish(axes, title=heading, x=x, grid="both")
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries, loc="outside right center", fontsize=SMALL, frameon=False)
    figure.supxlabel(note, fontsize=SMALL, color=INK)
    return figure
