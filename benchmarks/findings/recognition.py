"""Which metric finds the namesake of a layer in a network of another seed (Kornblith et al. 2019, section 6.1)."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.findings.drawing import Dots, ladder
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, cell, in_order, one_order, percent, short_name
from src.metrics import METRICS
from src.studies.frames import ENDS, NETWORKS, Frame, subsets
from src.studies.means import with_intervals

VIEWS = ("images", "channels")
KEYS = ["view", "method"]
TIED = 1e-6
FOUND, TIE = "found", "ties"
SHOWN = 3  # of what is taken for another


def recognised(table: np.ndarray, layers: list[str], *, lower: bool) -> tuple[Counter[str], list[float]]:
    """What the layers of a square table are taken for, row by row and column by column, and each one's chance.

    A layer is found where its best value is on the diagonal. It competes with those that have a value; without a rival
    it is not counted. A tie is no recognition: a metric that says 1 everywhere has found nothing.
    """
    counts: Counter[str] = Counter()
    chances = []
    for one in (table, table.T):
        values = np.where(np.isnan(one), -np.inf, -one if lower else one)
        others = np.where(np.eye(len(values), dtype=bool), -np.inf, values)
        rivals = np.isfinite(others).sum(1)
        for i in np.flatnonzero((rivals > 0) & np.isfinite(values.diagonal())):
            ahead = values[i, i] - others[i].max()
            taken = f"{layers[i]}:{layers[others[i].argmax()]}"
            counts[FOUND if ahead > TIED else taken if ahead < -TIED else TIE] += 1
            chances.append(1 / (1 + rivals[i]))
    return counts, chances


def reduce(runs: Runs) -> dict[str, Frame]:
    """How many layers each metric finds in each pair of networks."""
    rows, found = [], one_order(runs.results("metrics").comparisons)
    for (view, one, other, method), part in subsets(found, ["view", *NETWORKS, "method"]):
        layers = in_order(part["layer1"])
        table = part.pivot(index="layer1", columns="layer2", values="value").loc[layers, layers].to_numpy(float)
        counts, chances = recognised(table, layers, lower=not METRICS[method].higher_is_better)
        names = dict(zip(ENDS, map(short_name, (one, other)), strict=True))
        missed = [f"{pair} {count}" for pair, count in counts.most_common() if pair != FOUND]
        kept = {"found": counts[FOUND], "of": counts.total(), "chance": sum(chances), "missed": ", ".join(missed)}
        rows.append({**names, "view": view, "method": method, **kept})
    return {"": pd.DataFrame(rows)}


def summary(frame: Frame) -> Frame:
    """A row a metric and view: the share that is found with its interval, and that by chance."""
    shares = frame.assign(share=frame["found"] / frame["of"], expected=frame["chance"] / frame["of"])
    return with_intervals(shares, KEYS, ["share", "expected"])


def missed(frame: Frame) -> str:
    """What is most often taken for what, over all pairs."""
    counts: Counter[str] = Counter()
    for text in frame["missed"].dropna():
        for part in filter(None, text.split(", ")):
            name, _, number = part.rpartition(" ")
            counts[name] += int(number)
    more = f" and {len(counts) - SHOWN} more" * (len(counts) > SHOWN)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common(SHOWN)) + more


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    frame = frames[""]
    parts = dict(subsets(frame, KEYS))
    rows = [["metric", "a row is of", "found (%)", "of", "by chance (%)", "taken for another"]]
    for row in summary(frame).to_dict(orient="records"):
        part = parts[row["view"], row["method"]]
        shown = [cell(row, "share"), f"{part['of'].sum():,}", f"{100 * row['expected']:.1f}", missed(part)]
        rows.append([f"`{row['method']}`", row["view"], *shown])
    return {"recognition": rows}


def picture(frames: Mapping[str, Frame]) -> Figure:
    shown = {}
    for (view,), rows in subsets(summary(frames[""]), ["view"]):
        bounds = [percent(rows[f"share{end}"]) for end in ("", "_low", "_high")]
        chance = percent(rows["expected"])
        shown[f"a row is of {view}"] = list(rows["method"]), [Dots("found", *bounds), Dots("by chance", *[chance] * 3)]
    return ladder(
        shown,
        title="How many layers a metric finds in a network of another seed",
        x="layers found (%)",
        note="six Tiny10 on CIFAR-10, 15 pairs, both ways; bars: 95% intervals over networks",
        ends=(0, 100),
    )
