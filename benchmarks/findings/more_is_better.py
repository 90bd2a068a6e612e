"""Whether a front of more data, or of more width, costs its end less (Bansal et al. 2021)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.findings.drawing import line, side_by_side
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, cell, in_order, means, named, spanned
from src.studies.frames import ENDS, Frame, subsets
from src.studies.means import FEW, jackknife

SHARES = {1.0: "all", 0.5: "half", 0.1: "a tenth"}
SHUFFLED = "shuffled labels"
ROLES, KINDS = ("front", "end"), ["front_kind", "end_kind"]
FRONTS = (*SHARES.values(), SHUFFLED, "w1", "w2")
# what is held against what, at the same end
COMPARED = (("all", "half"), ("half", "a tenth"), ("all", "a tenth"), ("all", SHUFFLED), ("w2", "w1"))


def reduce(runs: Runs) -> dict[str, Frame]:
    """What stitches cost the end, in shares of the images, by what front and end were trained on, and by their width.

    Networks of one seed began with the same weights: such pairs are left out, unless their widths differ. An end of
    shuffled labels is no better than chance, so nothing can cost it anything.
    """
    parts = []
    for study, kind_of in {"fractions": _data, "widths": _width}.items():
        found = runs.results(study).stitches
        kinds = {f"{role}_kind": [kind_of(row, role) for row in found.to_dict(orient="records")] for role in ROLES}
        cost = found["accuracy_end"] - found["accuracy_after"]
        same = found["front_init_seed"] == found["end_init_seed"]
        found = found.assign(**kinds, cost=cost, about=study)
        chosen = found[(found["end_kind"] != SHUFFLED) & ~(same & (study == "fractions"))]
        columns = {"about": "about", **{f"{role}_kind": f"{role}_kind" for role in ROLES}, "layer": "front_layer"}
        parts.append(named(chosen, {**columns, "accuracy_end": "accuracy_end", "cost": "cost"}))
    return {"": pd.concat(parts, ignore_index=True)}


def _data(row: Mapping, role: str) -> str:
    return SHUFFLED if row[f"{role}_shuffle_labels"] else SHARES[row[f"{role}_train_fraction"]]


def _width(row: Mapping, role: str) -> str:
    return row[f"{role}_architecture"].rpartition("_")[2]


def gains(frame: Frame, more: str, less: str) -> Frame:
    """What a front of the one kind costs less than one of the other, at each end and layer that has both."""
    costs = frame.pivot_table(index=["end_kind", ENDS[1], "layer"], columns="front_kind", values="cost", observed=True)
    both = costs.reindex(columns=[more, less]).dropna()
    return (both[less] - both[more]).rename("gain").reset_index()


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    frame = frames[""]
    layers = in_order(frame["layer"])
    made = {}
    for (about,), part in subsets(frame, ["about"]):
        here = [layer for layer in layers if layer in set(part["layer"])]
        rows = [["front", "end", *(f"`{layer}`" for layer in here)]]
        for (front, end), some in subsets(means(part, ["front_kind", "end_kind", "layer"], ["cost"]), KINDS):
            by_layer = {row["layer"]: cell(row, "cost", signed=True) for row in some.to_dict(orient="records")}
            rows.append([front, end, *(by_layer.get(layer, "") for layer in here)])
        made[f"data-{about}"] = rows
    return made | {"data": compared(frame)}


def compared(frame: Frame) -> Rows:
    """What more of something saves the end, over all ends and by kinds of ends, and how often it saves anything.

    Intervals leave out one network with all its pairs, and are there where ends are three networks or more.
    """
    rows = [["more", "less", "end", "saves the end (points)", "ends and layers", "of these it saves"]]
    for more, less in COMPARED:
        found = gains(frame, more, less)
        kinds = in_order(found["end_kind"])
        for ends in [kinds, *([kind] for kind in kinds)] if len(kinds) > 1 else [kinds] if kinds else []:
            here = found[found["end_kind"].isin(ends)]
            part = frame[frame["end_kind"].isin(ends)]
            value, half = map(
                float, jackknife(part, lambda some, more=more, less=less: _mean(gains(some, more, less)["gain"]))
            )
            half = half if here[ENDS[1]].nunique() >= FEW else np.nan
            saved = spanned(value, value - half, value + half, scale=100, digits=1, signed=True)
            who = ends[0] if len(ends) == 1 else "any"
            rows.append([more, less, who, saved, str(len(here)), str((here["gain"] > 0).sum())])
    return rows


def _mean(values: Frame) -> float:
    return float(values.mean()) if len(values) else np.nan


def picture(frames: Mapping[str, Frame]) -> Figure:
    """Means over layers, by front along the axis and end by line."""
    titles = {"fractions": "Tiny10 of less data", "widths": "ResNet20 of two widths"}
    shown = {}
    for (about,), part in subsets(frames[""], ["about"]):
        fronts = [kind for kind in FRONTS if kind in set(part["front_kind"])]
        by_pair = part.groupby([*ENDS, *KINDS], sort=False)["cost"].mean().reset_index()
        rows = means(by_pair, KINDS, ["cost"])
        ends = [kind for kind in FRONTS if kind in set(rows["end_kind"])]
        lines = [
            line(f"end: {end}", rows[rows["end_kind"] == end], "front_kind", fronts, "cost", number)
            for number, end in enumerate(ends)
        ]
        shown[titles[about]] = fronts, lines
    return side_by_side(
        shown,
        title="What a front costs its end, by its data and width",
        x="front",
        y="accuracy lost (points)",
        note="means over three layers; bars: 95% over networks, from three on; each panel has its own scale",
        one_scale=False,
    )
