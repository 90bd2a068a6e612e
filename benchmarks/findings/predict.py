"""Which measure predicts what a stitch does, and whether so few networks tell the measures apart."""

from collections.abc import Mapping, Sequence

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


def reduce(runs: Runs) -> dict[str, Frame]:
    """What stitches reach, both ways averaged, and every metric at the same layer: a row a pair and layer.

    Columns of metrics are called VIEW METRIC, and their values turned so that more is more alike.
    """
    stitches = runs.results("layers").stitches
    found = both_ways(named(relative(stitches, SCORES.values()), {"layer": "front_layer", **SCORES}))
    files = dict(zip(stitches["front_network"].map(short_name), stitches["front_model"], strict=True))
    pairs = found[ENDS].drop_duplicates().itertuples(index=False, name=None)
    known = [(names, (files[names[0]], files[names[1]])) for names in pairs]
    parts = [same_layers(runs, view) for view in VIEWS]
    parts.append(calibrated.scores(known, runs.folder / CALIBRATED).assign(view=CALIBRATED))
    metrics = pd.concat(parts, ignore_index=True)
    metrics["column"] = metrics["view"] + " " + metrics["method"]
    metrics = in_name_order(metrics.rename(columns=dict(zip(NETWORKS, ENDS, strict=True))))
    wide = metrics.pivot(index=PLACE, columns="column", values="value")[list(dict.fromkeys(metrics["column"]))]
    return {"": found.merge(on_identical(runs), on=PLACE, how="left").merge(wide.reset_index(), on=PLACE)}


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


def same_layers(runs: Runs, view: str) -> Frame:
    """The metrics of layers and their namesakes, of each two networks once."""
    found = one_order(runs.results("metrics").comparisons)
    found = found[(found["layer1"] == found["layer2"]) & (found["view"] == view)]
    signs = [1 if METRICS[name].higher_is_better else -1 for name in found["method"]]
    names = {network: found[network].map(short_name) for network in NETWORKS}
    kept = found.assign(value=found["value"] * signs, layer=found["layer1"], **names)
    return kept[[*NETWORKS, "layer", "method", "value", "view"]]


def spearman(scores: Frame, metrics: Frame) -> Values:
    """Rank correlation of a score with each metric, (metrics,); NaN of what is constant or missing."""
    x, y = (part.rank().to_numpy(float) for part in (scores, metrics))
    x, y = (part - part.mean(0) for part in (x[:, None], y))
    norms = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.where(norms > 0, (x * y).sum(0) / np.where(norms > 0, norms, 1), np.nan)


def within(frame: Frame, score: str, metrics: Sequence[str]) -> Values:
    """The mean over layers of the correlation between pairs at one layer."""
    found = [spearman(part[score], part[metrics]) for _, part in subsets(frame, ["layer"])]
    known = ~np.isnan(found)
    return np.where(known, found, 0).sum(0) / np.maximum(known.sum(0), 1)


def overall(frame: Frame, score: str, metrics: Sequence[str]) -> Values:
    return spearman(frame[score], frame[metrics])


KINDS = {"within": within, "overall": overall}
ASKED = [(kind, score) for score in SCORES for kind in KINDS]


def summary(frame: Frame) -> Frame:
    """A row a metric: correlations of both KINDS with both SCORES, and how much less than the best; with intervals."""
    metrics = [name for name in frame if " " in name]
    rows = pd.DataFrame({"metric": metrics})
    for kind, score in ASKED:
        value, half = jackknife(frame, lambda part, kind=kind, score=score: KINDS[kind](part, score, metrics))
        low, high = of_correlation(value, half)
        rows = rows.assign(
            **{f"{kind} {score}{end}": one for end, one in zip(("", "_low", "_high"), (value, low, high), strict=True)}
        )
    best = int(rows["within after"].argmax())

    def behind(part: Frame) -> Values:
        values = within(part, "after", metrics)
        return values - values[best]

    value, half = jackknife(frame, behind)
    rows = rows.assign(behind=value, behind_low=value - half, behind_high=value + half)
    rows[IDENTICAL] = within(frame.dropna(subset=[IDENTICAL]), IDENTICAL, metrics)
    return rows.sort_values("within after", ascending=False, kind="stable")


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    words = {"within": "within a layer", "overall": "over all layers"}
    head = ["metric", "a row is of", *(f"{words[kind]}, {score}" for kind, score in ASKED)]
    rows = [[*head, "behind the best", "on identically represented inputs"]]
    for row in summary(frames[""]).to_dict(orient="records"):
        view, _, name = row["metric"].partition(" ")
        shown = [_spanned(row, f"{kind} {score}") for kind, score in ASKED]
        behind = "is it" if row["behind"] == 0 else _spanned(row, "behind") + " *" * (row["behind_high"] < 0)
        rows.append([f"`{name}`", view, *shown, behind, f"{row[IDENTICAL]:.2f}"])
    return {"predict": rows}


def _spanned(row: Mapping, name: str) -> str:
    return spanned(row[name], row[f"{name}_low"], row[f"{name}_high"])


def picture(frames: Mapping[str, Frame]) -> Figure:
    rows = summary(frames[""])
    names = [f"{name}, {view}" for view, _, name in (metric.partition(" ") for metric in rows["metric"])]
    titles = {"within": "between pairs at one layer", "overall": "over all layers and pairs"}
    shown = {
        title: (
            names,
            [
                Dots(f"{score} training", *(list(rows[f"{kind} {score}{end}"]) for end in ("", "_low", "_high")))
                for score in SCORES
            ],
        )
        for kind, title in titles.items()
    }
    return ladder(
        shown,
        title="How well a metric predicts the accuracy of a stitch, six Tiny10 on CIFAR-10",
        x="Spearman's rank correlation",
        note="15 pairs of networks, both ways averaged, 8 layers; bars: 95% intervals over networks",
        ends=(-1, 1),
    )
