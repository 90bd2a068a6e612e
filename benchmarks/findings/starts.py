"""Whether the start of a stitch matters more than how it is trained."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.findings.drawing import line, panels
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, cell, in_order, means, named, plain, relative
from src.studies.frames import ENDS, Frame

STEPS = ("low", "middle", "high")
KEYS = ["start", "step", "rate"]
PAIR = [*KEYS, *ENDS]


def reduce(runs: Runs) -> dict[str, Frame]:
    """Accuracies relative to the end's, of every seed; of three rates the middle one is that of other sections."""
    found = relative(runs.results("starts").stitches, ["accuracy_before", "accuracy_after"])
    found["start"] = found["init"].where(~found["whiten"].astype(bool), "whitened")
    rates = {start: sorted(part.unique()) for start, part in found.groupby("start")["lr"]}
    found["step"] = [STEPS[rates[start].index(rate)] for start, rate in zip(found["start"], found["lr"], strict=True)]
    columns = {"start": "start", "step": "step", "rate": "lr", "seed": "seed"}
    return {"": named(found, columns | {"before": "accuracy_before", "after": "accuracy_after"})}


def parts(frame: Frame) -> tuple[Frame, Frame]:
    """Stitches to other networks, and of networks to themselves."""
    own = frame[ENDS[0]] == frame[ENDS[1]]
    return frame[~own], frame[own]


def summary(frame: Frame) -> Frame:
    """A row a start and rate: means over pairs with intervals, and what seeds and networks spread."""
    pairs, own = parts(frame)
    by_pair = pairs.groupby(PAIR, sort=False)["after"]
    over_seeds = by_pair.std().groupby(KEYS, sort=False).apply(lambda sd: (sd**2).mean() ** 0.5).rename("seeds")
    over_pairs = by_pair.mean().groupby(KEYS, sort=False).std().rename("networks")
    found = means(by_pair.mean().reset_index(), KEYS, ["after"])
    found = found.merge(over_seeds.reset_index(), on=KEYS).merge(over_pairs.reset_index(), on=KEYS)
    ceiling = means(own.groupby(PAIR, sort=False)["after"].mean().reset_index(), KEYS, ["after"])
    return pd.merge(found, ceiling, on=KEYS, how="left", suffixes=("", "_own"))


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    rows = [["start", "rate", "accuracy", "sd over seeds", "sd over pairs", "to itself"]]
    for row in summary(frames[""]).to_dict(orient="records"):
        shown = [cell(row, "after"), plain(row["seeds"]), plain(row["networks"]), plain(row["after_own"])]
        rows.append([row["start"], f"{row['rate']:g}", *shown])
    return {"starts": rows}


def picture(frames: Mapping[str, Frame]) -> Figure:
    shown = {}
    starts = in_order(frames[""]["start"])
    for title, part in zip(("to another network", "to itself, the ceiling"), parts(frames[""]), strict=True):
        by_pair = part.groupby(PAIR, sort=False)["after"].mean().reset_index()
        rows = means(by_pair, ["start", "step"], ["after"])
        shown[title] = [
            line(start, rows[rows["start"] == start], "step", STEPS, "after", starts.index(start))
            for start in in_order(rows["start"])
        ]
    rates = {
        start: ", ".join(f"{rate:g}" for rate in sorted(part["rate"].unique()))
        for start, part in frames[""].groupby("start", sort=False)
    }
    return panels(
        shown,
        STEPS,
        title="How a stitch begins and how fast it learns, bn3 of three Tiny10",
        x="learning rate",
        y="accuracy / accuracy of end (%)",
        note=f"rates: {'; '.join(f'{start} {values}' for start, values in rates.items())}; bars: 95% over networks",
    )
