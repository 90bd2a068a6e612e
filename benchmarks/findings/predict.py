"""Which measure predicts what a stitch does, and whether so few networks tell the measures apart."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.findings import calibrated
from benchmarks.findings.drawing import Dots, ladder
from benchmarks.findings.recognition import VIEWS
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, named, of_correlation, one_order, relative, short_name, spanned
from src.metrics import METRICS
from src.studies.frames import ENDS, NETWORKS, Frame, subsets
from src.studies.means import jackknife

SCORES = {"after": "accuracy_after", "before": "accuracy_before"}
IDENTICAL, CALIBRATED = "identical", "calibrated"
PLACE = [*ENDS, "layer"]
Values = np.ndarray


class Group(NamedTuple):
    """Networks that are held against each other: what they are, and which studies stitch and compare them."""

    title: str
    stitched: str
    compared: str
    layers: str  # as compare_nets.py has them


# by what their rows are kept as
GROUPS = {
    "": Group("six seeds of Tiny10", "layers", "metrics", "bn*"),
    "data": Group("Tiny10 of a tenth, half, all images", "fractions", "kinds", "bn3,bn5,bn7"),
    "widths": Group("ResNet20 of two widths", "widths", "kinds", "layer1.2.add,layer2.2.add,layer3.2.add"),
}
STUDIES = tuple(dict.fromkeys((*(name for group in GROUPS.values() for name in group[1:3]), IDENTICAL)))


def reduce(runs: Runs) -> dict[str, Frame]:
    """What stitches reach, both ways averaged, and every metric at the same layer: a row a pair and layer.

    Columns of metrics are called VIEW METRIC, and their values turned so that more is more alike.
    """
    identical = on_identical(runs)
    return {name: _reduce(runs, group).merge(identical, on=PLACE, how="left") for name, group in GROUPS.items()}


def _reduce(runs: Runs, group: Group) -> Frame:
    stitches = runs.results(group.stitched).stitches
    found = both_ways(named(relative(stitches, SCORES.values()), {"layer": "front_layer", **SCORES}))
    files = dict(zip(stitches["front_network"].map(short_name), stitches["front_model"], strict=True))
    comparisons = runs.results(group.compared).comparisons
    metrics = in_name_order(pd.concat([same_layers(comparisons, view) for view in VIEWS]))
    metrics = metrics[metrics[ENDS].isin(list(files)).all(axis=1)]
    pairs = metrics[ENDS].drop_duplicates().itertuples(index=False, name=None)
    known = [(names, (files[names[0]], files[names[1]])) for names in pairs]
    scores = calibrated.scores(known, group.layers, runs.folder / CALIBRATED)
    metrics = pd.concat([metrics, scores.assign(view=CALIBRATED)], ignore_index=True)
    metrics["column"] = metrics["view"] + " " + metrics["method"]
    wide = metrics.pivot(index=PLACE, columns="column", values="value")[list(dict.fromkeys(metrics["column"]))]
    return found.merge(wide.reset_index(), on=PLACE)


def on_identical(runs: Runs) -> Frame:
    """Agreement of stitches that were trained on identically represented inputs, of the pairs that have some."""
    stitches = runs.results(IDENTICAL).stitches
    return both_ways(named(stitches, {"layer": "front_layer", IDENTICAL: "agreement_after"}))


def in_name_order(frame: Frame) -> Frame:
    """Each two networks in the order of their names, whichever came first."""
    pairs = [sorted(pair) for pair in zip(*(frame[end] for end in ENDS), strict=True)]
    return frame.assign(**{end: [pair[side] for pair in pairs] for side, end in enumerate(ENDS)})


def both_ways(frame: Frame) -> Frame:
    """Means of the two directions of each two networks."""
    return in_name_order(frame).groupby(PLACE, sort=False).mean().reset_index()


def same_layers(comparisons: Frame, view: str) -> Frame:
    """The metrics of layers and their namesakes, of each two networks once."""
    found = one_order(comparisons)
    found = found[(found["layer1"] == found["layer2"]) & (found["view"] == view)]
    signs = [1 if METRICS[name].higher_is_better else -1 for name in found["method"]]
    names = {end: found[network].map(short_name) for end, network in zip(ENDS, NETWORKS, strict=True)}
    kept = found.assign(value=found["value"] * signs, layer=found["layer1"], **names)
    return kept[[*ENDS, "layer", "method", "value", "view"]]


def spearman(scores: Frame, metrics: Frame) -> Values:
    """Rank correlation of a score with each metric, (metrics,); NaN of what is constant or missing."""
    x, y = (part.rank().to_numpy(float) for part in (scores, metrics))
    x, y = (part - part.mean(0) for part in (x[:, None], y))
    norms = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.where(norms > 0, (x * y).sum(0) / np.where(norms > 0, norms, 1), np.nan)


def within(frame: Frame, score: str, metrics: Sequence[str]) -> Values:
    """The mean over layers of the correlation between pairs at one layer; NaN where no layer has one."""
    found = [spearman(part[score], part[metrics]) for _, part in subsets(frame, ["layer"])]
    known = ~np.isnan(found)
    return np.where(known.any(0), np.where(known, found, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def overall(frame: Frame, score: str, metrics: Sequence[str]) -> Values:
    return spearman(frame[score], frame[metrics])


KINDS = {"within": within, "overall": overall}
ASKED = [(kind, score) for score in SCORES for kind in KINDS]
SHOWN = {
    "within after": "accuracy\nafter training",
    "within before": "accuracy\nbefore training",
    IDENTICAL: "agreement, trained\non identically\nrepresented inputs",
}
LAST = ("behind the best", "on identically represented inputs")


def summary(frame: Frame) -> Frame:
    """A row a metric: correlations of both KINDS with both SCORES, and how much less than the best; with intervals."""
    metrics = [name for name in frame if " " in name]
    rows = pd.DataFrame({"metric": metrics})
    for kind, score in ASKED:
        rows = _with_interval(rows, f"{kind} {score}", frame, partial(KINDS[kind], score=score, metrics=metrics))
    best = int(np.nanargmax(rows["within after"]))

    def behind(part: Frame) -> Values:
        values = within(part, "after", metrics)
        return values - values[best]

    value, half = jackknife(frame, behind)
    rows = rows.assign(behind=value, behind_low=value - half, behind_high=value + half)
    known = frame.dropna(subset=[IDENTICAL])
    rows = _with_interval(rows, IDENTICAL, known, partial(within, score=IDENTICAL, metrics=metrics))
    return rows.sort_values("within after", ascending=False, kind="stable")


def _with_interval(rows: Frame, name: str, frame: Frame, statistic: Callable[[Frame], Values]) -> Frame:
    """One more column of correlations, a metric each, and two of the ends of their intervals over networks."""
    value, half = jackknife(frame, statistic) if len(frame) else (np.nan, np.nan)
    low, high = of_correlation(value, half)
    return rows.assign(**{name: value, f"{name}_low": low, f"{name}_high": high})


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    words = {"within": "within a layer", "overall": "over all layers"}
    head = ["metric", "a row is of", *(f"{words[kind]}, {score}" for kind, score in ASKED)]
    rows = [[*head, *LAST]]
    for row in summary(frames[""]).to_dict(orient="records"):
        rows.append([*_named(row["metric"]), *(_spanned(row, f"{kind} {score}") for kind, score in ASKED), *_last(row)])
    return {"predict": rows, "predict-others": _others(frames)}


def _others(frames: Mapping[str, Frame]) -> Rows:
    """The same, within a layer, of networks that differ in more than their seed; in the order of the first of them."""
    found = {
        name: {row["metric"]: row for row in summary(frames[name]).to_dict(orient="records")} for name in GROUPS if name
    }
    rows = [["metric", "a row is of", *(f"{name}: {column}" for name in found for column in (*SCORES, *LAST))]]
    for metric in next(iter(found.values())):
        rows.append([*_named(metric)])
        for row in (part[metric] for part in found.values()):
            rows[-1] += [*(_spanned(row, f"within {score}") for score in SCORES), *_last(row)]
    return rows


def _named(metric: str) -> tuple[str, str]:
    """A metric, and what its rows are of."""
    view, _, name = metric.partition(" ")
    return f"`{name}`", view


def _last(row: Mapping) -> tuple[str, str]:
    behind = "is it" if row["behind"] == 0 else _spanned(row, "behind") + " *" * (row["behind_high"] < 0)
    return behind, _spanned(row, IDENTICAL)


def _spanned(row: Mapping, name: str) -> str:
    return spanned(row[name], row[f"{name}_low"], row[f"{name}_high"])


def picture(frames: Mapping[str, Frame]) -> Figure:
    """A panel a group of networks, metrics in the order of the first."""
    summaries = {name: summary(frames[name]).set_index("metric") for name in GROUPS}
    order = list(summaries[""].index)
    names = [f"{name}, {view}" for view, _, name in (metric.partition(" ") for metric in order)]
    shown = {}
    for name, group in GROUPS.items():
        rows, frame = summaries[name].reindex(order), frames[name]
        pairs, layers = len(frame[ENDS].drop_duplicates()), frame["layer"].nunique()
        shown[f"{group.title}\n{pairs} pairs, {layers} layers"] = (
            names,
            [
                Dots(label, *(list(rows[f"{column}{end}"]) for end in ("", "_low", "_high")))
                for column, label in SHOWN.items()
            ],
        )
    return ladder(
        shown,
        title="How well a metric predicts what a stitch does, between pairs at one layer, CIFAR-10",
        x="Spearman's rank correlation",
        note="means over layers (trained on identically represented inputs: three of each panel); "
        "bars: 95% intervals over networks",
        ends=(-1, 1),
    )
