"""The charts of a study's page: curves by layer and by rank, maps of layers and of networks, and of comparisons."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from src.metrics import MEASURES
from src.results.plots.style import BLUE, GREEN, GREY, ORANGE
from src.stitching.controls import CONTROLS
from src.studies import svg
from src.studies.frames import ENDS, FEW, Frame, StudyResults, grouped
from src.studies.table import HEADINGS, key_text

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#222222")
MAX_LINES = len(COLOURS)  # lines or maps that one looks at
SPAN = 0.1  # of values from the darkest colour to the lightest, where networks differ little
RANK, LAYERS = "low_rank", ["front_layer", "end_layer"]


def sections(found: StudyResults) -> list[dict[str, Any]]:
    """The parts of the page that have charts: title, note, and charts with their titles."""
    parts = []
    if len(found.stitches):
        parts += [by_layer(found), by_rank(found), maps(found)]
    return [part for part in [*parts, comparison_maps(found), by_network(found)] if part["charts"]]


def _value(found: StudyResults) -> str:
    """What the curves show: accuracy, or agreement where the labels are of other classes."""
    return "accuracy_after" if found.stitches["accuracy_after"].notna().any() else "agreement_after"


def _over(found: StudyResults) -> str:
    return "pairs" if found.stitches["networks"].nunique() > 1 else "seeds"


def _note(found: StudyResults) -> str:
    pairs, seeds = found.stitches["networks"].nunique(), found.stitches["seed"].nunique()
    over = f"{pairs} pairs of networks" + f", each the mean of {seeds} seeds" * (seeds > 1)
    return f"{_value(found).replace('_', ' ')}; means, and from three on 95% intervals, over " + (
        over if _over(found) == "pairs" else f"{seeds} seeds"
    )


def _rows_of(found: StudyResults, keys: Sequence[str]) -> dict[tuple, list[int]]:
    """The positions of the stitches behind each combination of some columns."""
    groups = found.stitches.groupby(list(keys), sort=False, dropna=False).indices
    return {_plain(key if isinstance(key, tuple) else (key,)): list(rows) for key, rows in groups.items()}


def _plain(key: tuple) -> tuple:
    return tuple(None if isinstance(part, float) and math.isnan(part) else part for part in key)


def _label(names: Sequence[str], values: Sequence[Any]) -> str:
    """Options and their values in words; flags are there or not."""
    parts = []
    for name, value in zip(names, values, strict=True):
        head = HEADINGS.get(name, name)
        if isinstance(value, bool | np.bool_):
            parts += [head] * bool(value)
        else:
            parts.append(f"{head} {key_text(name, value)}")
    return ", ".join(parts)


def _layers(front: str, end: str) -> str:
    one, other = (layer or "output" for layer in (front, end))
    return one if one == other else f"{one} \N{RIGHTWARDS ARROW} {other}"


def _series(
    found: StudyResults, frame: Frame, across: Sequence[str], names: Sequence[str], places: Mapping[tuple, int]
) -> list[svg.Series]:
    """A line for each combination of `names`, over the places that the columns `across` name; the first few."""
    rows, value, lines = _rows_of(found, [*across, *names]), _value(found), []
    for number, (key, group) in enumerate(_groups(frame, names)):
        if number == MAX_LINES:
            break
        points = []
        for row in group.to_dict(orient="records"):
            place = _plain(tuple(row[name] for name in across))
            behind = rows[place + _plain(key)]
            points.append(svg.Point(places[place], row[value], row[f"{value}_low"], row[f"{value}_high"], behind))
        points.sort(key=lambda point: point.x)
        lines.append(svg.Series(_label(names, key) or "after", COLOURS[number], points))
    return lines


def _groups(frame: Frame, names: Sequence[str]) -> list[tuple[tuple, Frame]]:
    if not names:
        return [((), frame)]
    return [
        (key if isinstance(key, tuple) else (key,), group)
        for key, group in frame.groupby(list(names), sort=False, dropna=False)
    ]


def _references(
    found: StudyResults, frame: Frame, across: Sequence[str], places: Mapping[tuple, int]
) -> list[svg.Series]:
    """Controls, chance and the end network itself, means over all that stands at one place."""
    if _value(found) != "accuracy_after":
        return []
    styles = {
        name: (name.removeprefix("accuracy_"), CONTROLS[name.removeprefix("accuracy_")].colour, "2 3")
        for name in found.controls
    }
    styles |= {"accuracy_end": ("end network", GREY, ""), "accuracy_chance": ("chance", GREY, "6 4")}
    means = frame.groupby(list(across), sort=False, dropna=False)[list(styles)].mean()
    lines = []
    for name, (label, colour, dash) in styles.items():
        points = [
            svg.Point(places[_plain(key if isinstance(key, tuple) else (key,))], value)
            for key, value in means[name].items()
        ]
        if any(not math.isnan(point.y) for point in points):
            lines.append(svg.Series(label, colour, sorted(points, key=lambda point: point.x), dash))
    return lines


def by_layer(found: StudyResults) -> dict[str, Any]:
    """Curves over layers: those stitched to their namesakes, or all couples where there are none."""
    stitches = found.stitches
    same = stitches["front_layer"] == stitches["end_layer"]
    chosen = StudyResults(stitches[same].reset_index(drop=True), found.comparisons, found.axes) if same.any() else found
    positions = np.flatnonzero(same) if same.any() else np.arange(len(stitches))
    couples = list(dict.fromkeys(zip(chosen.stitches["front_layer"], chosen.stitches["end_layer"], strict=True)))
    if len(couples) < 2:
        return {"title": "By layer", "note": "", "charts": []}
    places = {couple: number for number, couple in enumerate(couples)}
    frame = _one_pair_each(grouped(chosen, _over(found)))
    lines = _series(chosen, frame, LAYERS, found.axes, places)
    lines = [_moved(line, positions) for line in lines]
    chart = svg.curves(
        [_layers(*couple) for couple in couples],
        [*lines, *_references(found, chosen.stitches, LAYERS, places)],
        "accuracy",
    )
    more = frame[found.axes].drop_duplicates().shape[0] - len(lines) if found.axes else 0
    note = _note(found) + (f"; {more} more lines are in the table" if more > 0 else "")
    return {"title": "By layer", "note": note, "charts": [{"title": "", "svg": chart}]}


def _one_pair_each(frame: Frame) -> Frame:
    return frame.drop(columns="networks", errors="ignore")


def _moved(line: svg.Series, positions: np.ndarray) -> svg.Series:
    """The same with rows counted in the whole table."""
    points = [
        svg.Point(one.x, one.y, one.low, one.high, [int(positions[row]) for row in one.rows]) for one in line.points
    ]
    return svg.Series(line.label, line.colour, points, line.dash)


def by_rank(found: StudyResults) -> dict[str, Any]:
    """Curves over ranks, a line a couple of layers."""
    none = {"title": "By rank", "note": "", "charts": []}
    if RANK not in found.axes:
        return none
    ranks = sorted(
        {_plain((rank,)) for rank in found.stitches[RANK]}, key=lambda rank: math.inf if rank[0] is None else rank[0]
    )
    places = {rank: number for number, rank in enumerate(ranks)}
    names = [*LAYERS, *(axis for axis in found.axes if axis != RANK)]
    frame = _one_pair_each(grouped(found, _over(found)))
    lines = _series(found, frame, [RANK], names, places)
    chart = svg.curves(
        [key_text(RANK, rank[0]) for rank in ranks],
        [*lines, *_references(found, found.stitches, [RANK], places)],
        "accuracy",
    )
    return none | {"note": _note(found), "charts": [{"title": "", "svg": chart}]}


def maps(found: StudyResults) -> dict[str, Any]:
    """Layer x layer maps, one for each combination of the other options."""
    stitches, value, charts = found.stitches, _value(found), []
    fronts, ends = (list(dict.fromkeys(stitches[layer])) for layer in LAYERS)
    if len(stitches[LAYERS].drop_duplicates()) <= max(len(fronts), len(ends)):
        return {"title": "Layer by layer", "note": "", "charts": []}
    rows = _rows_of(found, [*LAYERS, *found.axes])
    for key, group in _groups(stitches, found.axes)[:MAX_LINES]:
        means = group.groupby(LAYERS, sort=False)[value].mean()
        if len(means) <= max(len(fronts), len(ends)):
            continue  # layer by layer: a curve shows more
        table = [[float(means.get((one, other), math.nan)) for other in ends] for one in fronts]
        behind = [[rows.get((one, other, *_plain(key)), []) for other in ends] for one in fronts]
        charts.append(
            {"title": _label(found.axes, key), "svg": svg.heatmap(_names(fronts), _names(ends), table, behind)}
        )
    return {
        "title": "Layer by layer",
        "note": f"rows: front layers; columns: end layers; mean {value.replace('_', ' ')}",
        "charts": charts,
    }


def _names(layers: Sequence[str]) -> list[str]:
    return [layer or "output" for layer in layers]


def by_network(found: StudyResults) -> dict[str, Any]:
    """Network x network maps of stitches, and of comparisons at one layer of both; of three pairs or more."""

    def about(key: tuple) -> str:
        return ", ".join(filter(None, (_layers(*key[:2]), _label(found.axes, key[2:]))))

    stitches, compared, charts = found.stitches, found.comparisons, []
    if len(stitches):
        charts = _network_maps(stitches, ENDS, [*LAYERS, *found.axes], _value(found), about, clickable=True)
    compared = compared[compared["layer1"] == compared["layer2"]]
    charts += _network_maps(compared, ["network1", "network2"], ["method", "layer1"], "value", ", ".join)
    note = "rows: front networks; columns: end networks; "
    note += f"mean {_value(found).replace('_', ' ')}, and what compares them" if len(stitches) else "what compares them"
    note += f"; colours span what each map spans, {SPAN} at least"
    return {"title": "Network by network", "note": note, "charts": charts}


def _network_maps(
    frame: Frame,
    pair: list[str],
    keys: list[str],
    value: str,
    about: Callable[[tuple], str],
    *,
    clickable: bool = False,
) -> list[dict[str, str]]:
    """A map of `value` for each combination of `keys`, the first few. `pair`: the columns that name the networks."""
    charts = []
    for key, group in _groups(frame, keys):
        cells = group.groupby(pair, sort=False)
        means = cells[value].mean().dropna()
        if len(means) < FEW or len(charts) == MAX_LINES:
            continue
        names = sorted({name for both in means.index for name in both}, key=_by_number)
        behind = {both: list(rows.index) for both, rows in cells} if clickable else {}
        table = [[float(means.get((one, other), math.nan)) for other in names] for one in names]
        sources = [[behind.get((one, other), []) for other in names] for one in names]
        others = [mean for (one, other), mean in means.items() if one != other]
        title = about(_plain(key)) + (f": median {np.median(others):.3f}" if others else "")
        short = _without_what_is_common(names)
        middle, span = (means.min() + means.max()) / 2, max(SPAN, means.max() - means.min())
        bounds = {"low": middle - span / 2, "high": middle + span / 2}
        charts.append({"title": title, "svg": svg.heatmap(short, short, table, sources, **bounds, decimals=3)})
    return charts


def _by_number(name: str) -> list[Any]:
    """in2 comes before in10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def _without_what_is_common(names: Sequence[str]) -> list[str]:
    """Names of networks without their architecture, where they share it."""
    first = {name.partition(" ")[0] for name in names}
    return [name.partition(" ")[2] or name for name in names] if len(first) == 1 else list(names)


def _bounds(values: Iterable[float]) -> tuple[float, float]:
    """What the colours of a map go from and to: 0 to 1, or further where values do."""
    finite = [value for value in values if math.isfinite(value)]
    return min(0.0, *finite, 0.0), max(1.0, *finite, 1.0)


def comparison_maps(found: StudyResults) -> dict[str, Any]:
    charts, every = [], found.comparisons["networks"].nunique()
    for method, group in found.comparisons.groupby("method", sort=False):
        fronts, ends = (list(dict.fromkeys(group[layer])) for layer in ("layer1", "layer2"))
        means = group.groupby(["layer1", "layer2"], sort=False)["value"].mean()
        table = [[float(means.get((one, other), math.nan)) for other in ends] for one in fronts]
        low, high = _bounds(means)
        title = f"{method}: {MEASURES[method].more_alike} means more alike" if method in MEASURES else str(method)
        if (pairs := group.loc[group["value"].notna(), "networks"].nunique()) != every:
            title += f"; {pairs} of {every} pairs have a value"
        charts.append({"title": title, "svg": svg.heatmap(fronts, ends, table, low=low, high=high)})
    return {"title": "Comparisons", "note": f"means over {every} pairs of networks", "charts": charts}
