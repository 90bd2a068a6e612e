"""How much goes through a stitch: maps of low rank, of few weights, and of a channel from a channel."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.findings.drawing import line, side_by_side
from benchmarks.findings.runs import Runs
from benchmarks.findings.truncated import kept_accuracies
from benchmarks.findings.values import Rows, cell, in_order, means, named, plain
from src import results
from src.studies.frames import ENDS, LAYERS, Frame, subsets

FULL = "full"
KINDS = ("truncated", "before", "after")
STAGES = {"before": "accuracy_before", "after": "accuracy_after"}
NEAR_0 = 0.01  # of the largest weight of a map, in size


def reduce(runs: Runs) -> dict[str, Frame]:
    """Accuracies relative to the end's by rank; those of sparse and masked maps beside their share of weights."""
    found = runs.results("ranks").stitches
    relative = found.assign(**{name: found[name] / found["accuracy_end"] for name in STAGES.values()})
    low_rank = (relative["l1"] == 0) & (relative["mask"] == "identity")
    ranked = relative[low_rank].assign(rank=[rank_text(rank) for rank in relative.loc[low_rank, "low_rank"]])
    ranked["truncated"] = truncated(ranked, runs.folder / "truncated.json")
    columns = {"layer": "front_layer", "rank": "rank", "truncated": "truncated", **STAGES}
    other = relative[~low_rank]
    kinds = [f"l1 {l1:g}" if l1 else mask for l1, mask in zip(other["l1"], other["mask"], strict=True)]
    other = other.assign(kind=kinds, weights=[share_of_weights(Path(path)) for path in other["path"]])
    return {
        "": named(ranked, columns),
        "others": named(other, {"layer": "front_layer", "kind": "kind", "weights": "weights", **STAGES}),
    }


def rank_text(rank: float) -> str:
    return FULL if pd.isna(rank) else f"{rank:.0f}"


def truncated(ranked: Frame, file: Path) -> list[float]:
    """The full least-squares map of each stitch's couple cut to its rank, relative to the end's accuracy."""
    values = pd.Series(np.nan, index=ranked.index)
    for _, part in subsets(ranked, [*ENDS, *LAYERS]):
        full = part[part["rank"] == FULL]
        if full.empty:
            continue
        ranks = [int(rank) for rank in part["rank"] if rank != FULL]
        shares = kept_accuracies(Path(full["path"].iloc[0]), ranks, file)
        for place, row in part.iterrows():
            known = row["rank"] != FULL
            values[place] = shares[int(row["rank"])] / row["accuracy_end"] if known else row["accuracy_before"]
    return list(values)


def share_of_weights(path: Path) -> float:
    """The share of a trained map's weights that are not near 0."""
    w = np.abs(results.read(path)["trans_m"]["after"]["w"])
    return float((w > NEAR_0 * w.max()).mean())


def ranks_of(frame: Frame) -> list[str]:
    return sorted(in_order(frame["rank"]), key=lambda rank: float("inf") if rank == FULL else int(rank))


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    ranked, others = frames[""].astype({"rank": str}), frames["others"]
    rows = [["layer", "rank", "truncated", "best of its rank", "trained"]]
    order = ranks_of(ranked)
    for (layer,), part in subsets(means(ranked, ["layer", "rank"], KINDS), ["layer"]):
        by_rank = {row["rank"]: row for row in part.to_dict(orient="records")}
        for rank in (rank for rank in order if rank in by_rank):
            rows.append([f"`{layer}`", rank, *(cell(by_rank[rank], kind) for kind in KINDS)])
    beside = [["layer", "map", "weights (%)", "before", "trained"]]
    for row in means(others, ["layer", "kind"], ["weights", *STAGES]).to_dict(orient="records"):
        shown = [plain(row["weights"]), *(cell(row, stage) for stage in STAGES)]
        beside.append([f"`{row['layer']}`", f"`{row['kind']}`", *shown])
    return {"ranks": rows, "ranks-others": beside}


def picture(frames: Mapping[str, Frame]) -> Figure:
    ranked, others = frames[""].astype({"rank": str}), frames["others"]
    order = ranks_of(ranked)
    labels = {"truncated": "least squares, truncated", "before": "best of its rank", "after": "trained"}
    shown = {}
    for (layer,), part in subsets(ranked, ["layer"]):
        rows = means(part, ["rank"], KINDS)
        shown[f"{layer}, by rank"] = (
            order,
            [line(labels[kind], rows, "rank", order, kind, number) for number, kind in enumerate(KINDS)],
        )
    kinds = in_order(others["kind"])
    shown["other maps, trained"] = (
        [kind.replace("-", "-\n", 1) for kind in kinds],
        [
            line(str(layer), means(part, ["kind"], ["after"]), "kind", kinds, "after", number + len(KINDS))
            for number, ((layer,), part) in enumerate(subsets(others, ["layer"]))
        ],
    )
    return side_by_side(
        shown,
        title="What stitches of low rank, of few weights and of matched channels hand on",
        x="",
        y="accuracy / accuracy of end (%)",
        note="six Tiny10 on CIFAR-10, means of 6 ordered pairs; bars: 95% intervals over networks",
    )
