"""The maps of a study's page: of stitches by layers and by networks, and of what compares networks."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.evaluation.identical import IDENTICAL
from src.metrics import MEASURES
from src.results.plots.heatmap import draw_map, draw_scale, map_size, two_decimals
from src.results.plots.layers import draw_metric
from src.results.plots.style import finish, new_figure
from src.studies.drawing import MOST_MARKS, MOST_SAYINGS, Chart, Target
from src.studies.frames import ENDS, LAYERS, NETWORKS, Frame, StudyResults, subsets
from src.studies.means import FEW
from src.studies.table import label, measure, scale

MAX_MAPS = 8  # of one kind, that one looks at
SPAN = 0.1  # of values from the darkest colour to the lightest, where networks differ little
# Inches that a scale of colours and the names of axes take, and the least height of a scale whose words can be read.
SCALE, NAMES, LEAST = 1.4, 0.4, 2.8
LETTERS = 13  # of a scale's words, an inch of its height
Section = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Map:
    """Means of a column, (rows, columns), in the unit that people read it in, and the stitches behind each cell."""

    column: str
    rows: list[str]
    columns: list[str]
    table: np.ndarray
    behind: dict[tuple[str, str], Sequence[int]]

    @classmethod
    def of(cls, frame: Frame, pair: list[str], column: str, rows: list[str], columns: list[str]) -> "_Map":
        """pair: the columns of `frame` that say row and column."""
        groups = frame.groupby(pair, sort=False)
        means = groups[column].mean() * scale(column)
        table = [[means.get((row, other), math.nan) for other in columns] for row in rows]
        linked = "seed" in frame  # stitches have rows in the table of the page
        return cls(column, rows, columns, np.array(table, float), groups.groups if linked else {})

    @property
    def shown(self) -> tuple[list[str], list[str]]:
        """What its rows and columns are called: without the architecture, where networks share it."""
        rows, columns = ([name or "output" for name in names] for names in (self.rows, self.columns))
        return _without_what_is_common(rows), _without_what_is_common(columns)

    def chart(self, least: float = 0.0) -> Chart:
        """A chart with one panel that is large enough, and a mark for each cell where these are not too many."""
        width, height = map_size(*self.shown)
        chart = Chart(new_figure(width + SCALE, max(least, height + NAMES)))
        axes = chart.figure.subplots()
        if self.table.size <= (MOST_MARKS if self.behind else MOST_SAYINGS):
            there = map(tuple, np.argwhere(np.isfinite(self.table)).tolist())
            chart.mark_cells(axes, {(i, j): self._target(i, j) for i, j in there})
        return chart

    def _target(self, i: int, j: int) -> Target:
        cell = self.rows[i], self.columns[j]
        names = ", ".join(name or "output" for name in cell)
        return f"{names}: {self.text(self.table[i, j])}", list(self.behind.get(cell, []))

    def text(self, value: float) -> str:
        return f"{value:.4g}" if scale(self.column) == 1 else f"{value:.2f}%"

    def draw(self, bounds: tuple[float, float], what: str, axes_names: tuple[str, str], **style: Any) -> Chart:
        """Its chart, with colours from one bound to the other; what: the words beside their scale."""
        chart, text = self.chart(), two_decimals if scale(self.column) == 1 else "{:.1f}".format
        (axes,) = chart.figure.axes
        image = draw_map(axes, self.table, *self.shown, low=bounds[0], high=bounds[1], text=text, **style)
        draw_scale(chart.figure, image, axes, what)
        finish(axes, y=axes_names[0], x=axes_names[1])
        return chart


def _without_what_is_common(names: list[str]) -> list[str]:
    """Names of networks without their architecture, where they share it."""
    first = {name.partition(" ")[0] for name in names}
    return [name.partition(" ")[2] or name for name in names] if len(first) == 1 else names


def by_layers(results: StudyResults) -> Section:
    """Layer x layer maps of stitches, one for each combination of the other options."""
    charts, (fronts, ends) = [], (list(dict.fromkeys(results.stitches[layer])) for layer in LAYERS)
    for key, group in subsets(results.stitches, results.axes):
        cells = _Map.of(group, LAYERS, results.value, fronts, ends)
        # of no more cells than layers a curve shows more
        if np.isfinite(cells.table).sum() > max(cells.table.shape) and len(charts) < MAX_MAPS:
            bounds = 0.0, max(100.0, float(np.nanmax(cells.table)))
            chart = cells.draw(bounds, measure(results.value), ("front layer", "end layer"))
            charts.append({"title": label(results.axes, key), "svg": chart.svg(f"layers-{len(charts)}")})
    note = f"means of {measure(results.value)} over networks and seeds; framed: the best of its row"
    return {"title": "Layer by layer", "note": note + _unlinked(len(fronts) * len(ends)), "charts": charts}


def _unlinked(cells: int) -> str:
    return f"; maps of more than {MOST_MARKS:,} cells are pictures, without links" * (cells > MOST_MARKS)


def by_networks(results: StudyResults) -> Section:
    """Network x network maps of stitches, and of comparisons at one layer of both; of three pairs or more."""

    def about(key: tuple) -> tuple[str, str, bool]:
        return label([*LAYERS, *results.axes], key), measure(results.value), True

    def about_metric(key: tuple) -> tuple[str, str, bool]:
        metric = MEASURES[key[0]]
        title = ", ".join(filter(None, [*key[:2], label(results.ways, key[2:])]))
        return title, f"{metric.name} ({metric.more_alike}: more alike)", metric.higher_is_better

    stitches, compared, charts = results.stitches, results.comparisons, []
    if len(stitches):
        charts = _network_maps(stitches, ENDS, [*LAYERS, *results.axes], results.value, about)
    compared = compared[compared["layer1"] == compared["layer2"]]
    charts += _network_maps(compared, NETWORKS, ["method", "layer1", *results.ways], "value", about_metric)
    note = f"means of {measure(results.value)}, and what compares them" if len(stitches) else "what compares them"
    note += f"; colours span what each map spans, at least {100 * SPAN:g} points or {SPAN}"
    count = max(stitches[ENDS[0]].nunique() * stitches[ENDS[1]].nunique(), compared["networks"].nunique())
    return {"title": "Network by network", "note": note + _unlinked(count), "charts": charts}


def _network_maps(
    frame: Frame, pair: list[str], keys: list[str], column: str, about: Callable[[tuple], tuple[str, str, bool]]
) -> list[dict[str, str]]:
    """A map of `column` for each combination of `keys`, the first few. `pair`: the columns that name the networks.

    about: from a combination to a title, the words beside the scale, and whether higher is better.
    """
    charts = []
    for key, group in subsets(frame, keys):
        known = group[group[column].notna()]
        if len(known[pair].drop_duplicates()) < FEW or len(charts) == MAX_MAPS:
            continue
        fronts, ends = ({*known[name]} for name in pair)
        if fronts & ends:  # one order for both, so that a network meets itself on the diagonal
            fronts = ends = fronts | ends
        rows, columns = (sorted(names, key=_by_number) for names in (fronts, ends))
        cells, (title, what, higher) = _Map.of(group, pair, column, rows, columns), about(key)
        low, high = float(np.nanmin(cells.table)), float(np.nanmax(cells.table))
        spread = max(SPAN * scale(column), high - low) / 2
        bounds = (low + high) / 2 - spread, (low + high) / 2 + spread
        axes_names = "front network", "end network"
        chart = cells.draw(bounds, what, axes_names, framed=False, higher_is_better=higher)
        off = cells.table[np.not_equal.outer(rows, columns)]
        if np.isfinite(off).any():
            title += f": median {cells.text(float(np.nanmedian(off)))}"
        charts.append({"title": title, "svg": chart.svg(f"networks-{column.partition('_')[0]}-{len(charts)}")})
    return charts


def _by_number(name: str) -> list[Any]:
    """in2 comes before in10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def by_metrics(found: StudyResults) -> Section:
    """Layer x layer maps of what compares networks, one for each metric."""
    charts, every, largest = [], found.comparisons["networks"].nunique(), 0
    parts = [
        (method, *asked, group)
        for (method,), of_method in subsets(found.comparisons, ["method"])
        for asked, group in subsets(of_method, found.ways)
    ]
    for method, *asked, group in parts:
        rows, columns = (list(dict.fromkeys(group[layer])) for layer in ("layer1", "layer2"))
        cells = _Map.of(group, ["layer1", "layer2"], "value", rows, columns)
        chart = cells.chart(LEAST)
        figure, (axes,) = chart.figure, chart.figure.axes
        letters = int(LETTERS * figure.get_size_inches()[1])
        draw_metric(figure, axes, MEASURES[str(method)], cells.table, *cells.shown, letters=letters)
        finish(axes, y="layer of the first network", x="layer of the second")
        pairs = group.loc[group["value"].notna(), "networks"].nunique()
        titles = [label(found.ways, asked)] * bool(asked) + [f"{pairs} of {every} pairs have a value"] * (
            pairs != every
        )
        charts.append({"title": ", ".join(titles), "svg": chart.svg(f"metric-{len(charts)}")})
        largest = max(largest, cells.table.size)
    note = f"means over {every} pairs of networks; framed: most alike in its row"
    if "on" in found.ways:
        note += f"; on {IDENTICAL}: inputs that the layer of the first network cannot tell from the images"
    return {"title": "Comparisons", "note": note + _unlinked(largest), "charts": charts}
