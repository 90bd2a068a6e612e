"""The curves of a study's page: by layer and by rank, with intervals, what they are means of, controls and chance."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.results.plots.curves import DOTS, LINES, MARKERS, Series, control_style, draw_panels, panels_size
from src.results.plots.style import BLUE, GREEN, GREY, INK, ORANGE, new_figure
from src.stitching.controls import CONTROLS
from src.stitching.stages import STAGES
from src.studies.drawing import MOST_MARKS, Chart, Target
from src.studies.frames import LAYERS, Frame, StudyResults, plain, subsets
from src.studies.means import FEW, grouped
from src.studies.table import heading, key_text, label, layers_text, measure, share_text

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", INK)
MAX_LINES = len(COLOURS)  # or panels, that one looks at
RANK = "low_rank"
Section = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Axis:
    """What stands along the axis of a chart: values of some columns, what these are called, and all of its stitches."""

    columns: list[str]
    places: list[tuple]
    names: list[str]
    stitches: Frame

    def along(self, stitches: Frame) -> list[Frame]:
        """Stitches by place."""
        there = dict(subsets(stitches, self.columns))
        return [there.get(place, stitches.iloc[:0]) for place in self.places]


@dataclass(frozen=True, slots=True)
class _Line:
    """What is drawn of a line, and what its points and its dots say and lead to."""

    series: Series
    points: list[Target]
    dots: Sequence[Target] = ()


def by_layer(results: StudyResults) -> Section:
    """Curves over layers: those stitched to their namesakes, or all couples where there are none."""
    same = results.stitches["front_layer"] == results.stitches["end_layer"]
    stitches = results.stitches[same] if same.any() else results.stitches
    couples = list(dict.fromkeys(zip(stitches["front_layer"], stitches["end_layer"], strict=True)))
    if len(couples) < 2:
        return {"title": "By layer", "charts": []}
    names = [layers_text(*couple) for couple in couples]
    return _section("By layer", "layer", results, _Axis(LAYERS, couples, names, stitches), results.axes)


def by_rank(results: StudyResults) -> Section:
    """Curves over ranks, a line a couple of layers."""
    if RANK not in results.axes:
        return {"title": "By rank", "charts": []}
    ranks = sorted({plain((rank,)) for rank in results.stitches[RANK]}, key=lambda rank: rank[0] or math.inf)
    names = [key_text(RANK, rank[0]) for rank in ranks]
    others = [*LAYERS, *(axis for axis in results.axes if axis != RANK)]
    return _section("By rank", heading(RANK), results, _Axis([RANK], ranks, names, results.stitches), others)


def _section(title: str, x: str, results: StudyResults, axis: _Axis, others: list[str]) -> Section:
    """A section with one chart: a line for each combination of `others`, in a panel each where it has controls."""
    column, over = results.value, "pairs" if results.stitches["networks"].nunique() > 1 else "seeds"
    groups = list(subsets(axis.stitches, others))
    means = dict(subsets(grouped(StudyResults(axis.stitches, results.comparisons, results.axes), over), others))
    references = [*results.controls, "accuracy_end", "accuracy_chance"] if column == "accuracy_after" else []
    apart = bool(results.controls) and bool(references) and len(groups) > 1
    dotted, notes = axis.stitches.index, [_note(results, over)]
    if len(dotted) > MOST_MARKS:
        notes.append(f"{MOST_MARKS:,} of {len(dotted):,} dots are shown, drawn by lot")
        dotted = np.random.default_rng(0).choice(dotted, MOST_MARKS, replace=False)
    panels: dict[str, list[_Line]] = {}
    for number, (key, stitches) in enumerate(groups[:MAX_LINES]):
        text, along, dots = label(others, key), axis.along(stitches), set(dotted)
        if apart:
            style: dict[str, Any] = {"colour": STAGES["after"].colour, "marker": STAGES["after"].marker}
            line = _line_of_means("after", axis, along, means[key], column, dots, style)
            panels[text] = [line, *_references(axis, along, references)]
        else:
            style = {"colour": COLOURS[number], "marker": MARKERS[number], "line": LINES[number % len(LINES)]}
            line = _line_of_means(text or "after", axis, along, means[key], column, dots, style)
            panels.setdefault("", []).append(line)
    if not apart:
        panels[""] += _references(axis, axis.along(axis.stitches), references)
    if (more := len(groups) - MAX_LINES) > 0:
        notes.append(f"{more} more lines are in the table")
    svg = _drawn(panels, axis, x, column).svg(title.replace(" ", "-").lower())
    return {"title": title, "note": "; ".join(notes), "charts": [{"title": "", "svg": svg}]}


def _note(found: StudyResults, over: str) -> str:
    pairs, seeds = found.stitches["networks"].nunique(), found.stitches["seed"].nunique()
    of = f"{seeds} seeds"
    if over == "pairs":
        of = f"{pairs} pairs of networks" + f", each the mean of {seeds} seeds" * (seeds > 1)
    text = f"lines: means over {of}; dots: single stitches"
    if max(pairs, seeds) < FEW:
        return text
    left_out = ", each network left out with its pairs" * (over == "pairs")
    return f"{text}; bars, from {FEW} on: 95% intervals by Student's t on the logit scale{left_out}"


def _line_of_means(
    name: str,
    axis: _Axis,
    along: Sequence[Frame],
    means: Frame,
    column: str,
    dotted: Collection[int],
    style: Mapping[str, Any],
) -> _Line:
    """Means of `column` with their intervals, from rows of `grouped`; those of `dotted` among the stitches are dots."""
    rows = {plain(tuple(row[key] for key in axis.columns)): row for row in means.to_dict(orient="records")}
    shown = [(x, rows[place]) for x, place in enumerate(axis.places) if place in rows]
    shown = [(x, row) for x, row in shown if not math.isnan(row[column])]
    mean, low, high = ([100 * row[column + end] for _, row in shown] for end in ("", "_low", "_high"))
    points = []
    for x, row in shown:
        text = f"{name}, {axis.names[x]}: {share_text(row[column])}"
        if not math.isnan(row[f"{column}_low"]):
            text += f" ({share_text(row[f'{column}_low'])} to {share_text(row[f'{column}_high'])})"
        points.append((text, list(along[x].index)))
    places, dots = [], []
    for x, stitches in enumerate(along):
        for row, networks, seed, value in zip(
            stitches.index, stitches["networks"], stitches["seed"], stitches[column], strict=True
        ):
            if len(stitches) > 1 and row in dotted and not math.isnan(value):
                places.append((x, 100 * value))
                dots.append((f"{networks}, seed {seed}: {share_text(value)}", [row]))
    return _Line(Series(name, [x for x, _ in shown], mean, low=low, high=high, dots=places, **style), points, dots)


def _references(axis: _Axis, along: Sequence[Frame], columns: Sequence[str]) -> list[_Line]:
    """What stitches are to be held against, means over those at each place: controls, the end network, chance."""
    lines = []
    for column in columns:
        name = column.removeprefix("accuracy_")
        means = [(x, stitches[column].mean(), list(stitches.index)) for x, stitches in enumerate(along)]
        means = [one for one in means if not math.isnan(one[1])]
        style: dict[str, Any] = {"colour": STAGES["end"].colour if name == "end" else GREY, "marker": ""}
        style |= control_style(name) if name in CONTROLS else {"line": "-" if name == "end" else "--"}
        points: list[Target] = [(f"{name}, {axis.names[x]}: {share_text(mean)}", rows) for x, mean, rows in means]
        series = Series(name, [x for x, *_ in means], [100 * mean for _, mean, _ in means], **style)
        lines += [_Line(series, points)] if means else []
    return lines


def _drawn(panels: Mapping[str, Sequence[_Line]], axis: _Axis, x: str, column: str) -> Chart:
    chart = Chart(new_figure(*panels_size(len(panels), len(axis.names))))
    series = {title: [line.series for line in lines] for title, lines in panels.items()}
    drawn = draw_panels(chart.figure, series, axis.names, x=x, y=measure(column))
    for (axes, shifts), lines in zip(drawn, panels.values(), strict=True):
        axes.set_ylim(0, 100)
        for line, shift in zip(lines, shifts, strict=True):
            one = line.series
            dots = [at + shift + DOTS for at, _ in one.dots]
            chart.mark_points(axes, dots, [value for _, value in one.dots], line.dots)
            chart.mark_points(axes, [at + shift for at in one.places], one.values, line.points)
    return chart
