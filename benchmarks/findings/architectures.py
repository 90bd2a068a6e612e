"""Every block of one architecture with every block of another, and what the family of a stitch adds by itself."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, cell, in_order, means, named, relative
from src.results.plots.heatmap import draw_map, draw_scale
from src.results.plots.style import INK, SMALL, finish, new_figure
from src.studies.frames import ENDS, Frame, subsets

SHORT = {"tiny10": "Tiny10", "resnet20_w1": "ResNet20", "vit_w96": "ViT"}
ROLES = ["front", "end"]
LAYERS = {"front_layer": "front_layer", "end_layer": "end_layer"}
FAMILIES = ("kernel", "hidden")


def reduce(runs: Runs) -> dict[str, Frame]:
    """Accuracies relative to the end's: of least squares at all couples of blocks, and of families at one each."""
    frames = {}
    stages = {"before": "accuracy_before", "after": "accuracy_after"}
    columns = {role: role for role in ROLES} | LAYERS
    for key, study in (("", "architectures"), ("families", "families")):
        found = relative(runs.results(study).stitches, stages.values())
        found = found.assign(**{role: found[f"{role}_architecture"].map(SHORT) for role in ROLES})
        family = np.select([found["kernel"] > 0, found["hidden"] > 0], FAMILIES, "affine")
        frames[key] = named(found.assign(family=family), columns | {"family": "family"} | stages)
    return {"": frames[""].drop(columns=["family", "after"]), "families": frames["families"]}


def directions(frame: Frame) -> list[tuple[str, Frame]]:
    return [(f"{front} \N{RIGHTWARDS ARROW} {end}", part) for (front, end), part in subsets(frame, ROLES)]


def map_of(part: Frame) -> tuple[np.ndarray, list[str], list[str]]:
    """Means over pairs of networks, (front layers, end layers)."""
    fronts, ends = (in_order(part[layer]) for layer in LAYERS)
    table = part.pivot_table(index="front_layer", columns="end_layer", values="before").loc[fronts, ends]
    return table.to_numpy(float), fronts, ends


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    rows = [["direction", "pairs", "mean of all couples", "best couple", "it reaches", "best front deepens with end"]]
    for title, part in directions(frames[""]):
        table, fronts, ends = map_of(part)
        front, end = np.unravel_index(table.argmax(), table.shape)
        best = part[(part["front_layer"] == fronts[front]) & (part["end_layer"] == ends[end])]
        every = part.groupby([*ENDS, *ROLES], sort=False)["before"].mean().reset_index()
        shown = [cell(means(some, ROLES, ["before"]).iloc[0], "before") for some in (every, best)]
        deepens = pd.Series(table.argmax(0)).corr(pd.Series(range(len(ends))), method="spearman")
        couple = f"`{fronts[front]}`, `{ends[end]}`"
        rows.append([title, str(len(every)), shown[0], couple, shown[1], f"{deepens:.2f}"])
    return {"architectures": rows, "architectures-families": families(frames["families"])}


def families(frame: Frame) -> Rows:
    """What is reached at one couple a direction, affine, and how many points the other families gain over it."""
    rows = [["direction", "layers", "least squares", "kernel adds", "affine, trained", "kernel adds", "hidden adds"]]
    for title, part in directions(frame):
        affine = part[part["family"] == "affine"]
        first = means(affine, ROLES, ["before", "after"]).iloc[0]
        couple = ", ".join(f"`{affine[layer].iloc[0]}`" for layer in LAYERS)
        before, after = _gains(part, "before"), _gains(part, "after")
        values = [cell(first, "before"), before["kernel"], cell(first, "after"), *(after[name] for name in FAMILIES)]
        rows.append([title, couple, *values])
    return rows


def _gains(part: Frame, stage: str) -> dict[str, str]:
    """What each family adds to the affine map of a direction, with its interval; nothing where it was not sewn."""
    values = part.pivot_table(index=[*ENDS, *ROLES], columns="family", values=stage).reset_index()
    gains = {name: values[name] - values["affine"] for name in FAMILIES if name in values}
    found = means(values.assign(**gains), ROLES, list(gains)).iloc[0]
    return {name: cell(found, name, signed=True) if name in gains else "" for name in FAMILIES}


def picture(frames: Mapping[str, Frame]) -> Figure:
    found = directions(frames[""])
    figure = new_figure(
        11.5, 7.8, "Least-squares stitches between blocks of different architectures: accuracy / accuracy of end (%)"
    )
    grid: Any = figure.subplots(2, 3)
    # a direction above the other way round
    for number, (title, part) in enumerate(found):
        axes = grid[number % 2, number // 2]
        table, fronts, ends = map_of(part)
        image = draw_map(axes, table.T, ends, fronts, low=0, high=1, text=lambda share: f"{100 * share:.0f}")
        finish(axes, title=title, x="front layer", y="end layer")
    draw_scale(figure, image, list(grid.ravel()), "accuracy / accuracy of end (1: as good as the end alone)")
    figure.supxlabel(
        "means over 2 or 3 pairs of networks; framed: the front that serves an end layer best",
        fontsize=SMALL,
        color=INK,
    )
    return figure
