"""Whether accuracy and similarity go together from before training to after, whatever a stitch is trained for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.findings.predict import overall, within
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, cell, in_order, means, named, of_correlation, spanned
from src.results.plots.curves import MARKERS
from src.results.plots.style import INK, SMALL, finish, new_figure
from src.studies.frames import ENDS, Frame, subsets
from src.studies.means import jackknife

MEASURES = ("accuracy", "l2_relative", "cka")
WORDS = {"accuracy": "accuracy (points)", "l2_relative": "relative l2", "cka": "CKA"}
OTHERS = ["l2_relative", "cka"]
FIRST, SHOWN = "hard", ("accuracy", "l2_relative")  # what others are held against, and in what


def reduce(runs: Runs) -> dict[str, Frame]:
    """Accuracy, relative l2 and CKA before and after, of all pairs, layers and objectives."""
    stages = {f"{name}_{stage}": f"{name}_{stage}" for name in MEASURES for stage in ("before", "after")}
    columns = {"objective": "target_type", "layer": "front_layer", **stages}
    found = [named(runs.results(study).stitches, columns) for study in ("layers", "objectives")]
    return {"": pd.concat(found, ignore_index=True)}


def changes(frame: Frame) -> Frame:
    return frame.assign(**{name: frame[f"{name}_after"] - frame[f"{name}_before"] for name in MEASURES})


def correlations(frame: Frame) -> np.ndarray:
    """Spearman's of the change of accuracy with those of the others: over all stitches, and as a mean over layers."""
    return np.array([kind(frame, "accuracy", OTHERS) for kind in (overall, within)]).T.ravel()


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    changed = changes(frames[""])
    rows = [["trained for", "layer", *WORDS.values()]]
    for row in means(changed, ["objective", "layer"], MEASURES).to_dict(orient="records"):
        accuracy = cell(row, "accuracy", signed=True)
        others = [cell(row, name, scale=1, digits=2 if name == "l2_relative" else 3, signed=True) for name in OTHERS]
        rows.append([f"`{row['objective']}`", f"`{row['layer']}`", accuracy, *others])
    heads = [f"{WORDS[name]}{where}" for name in OTHERS for where in (", all", ", within a layer")]
    beside = [["trained for", "stitches", *heads]]
    for (objective,), part in subsets(changed, ["objective"]):
        value, half = jackknife(part, correlations)
        shown = [spanned(*one) for one in zip(value, *of_correlation(value, half), strict=True)]
        beside.append([f"`{objective}`", str(len(part)), *shown])
    return {"part-ways": rows, "part-ways-beside": _beside_labels(changed), "part-ways-ranks": beside}


def _beside_labels(changed: Frame) -> Rows:
    """How much more an objective changes than `hard`, at the same layers of the same pairs."""
    places = [*ENDS, "layer"]
    plain = changed.loc[changed["objective"] == FIRST, [*places, *SHOWN]]
    both = changed.merge(plain, on=places, suffixes=("", "_plain"))
    more = both.assign(**{name: both[name] - both[f"{name}_plain"] for name in SHOWN})
    rows = [["trained for", "layer", *(f"{WORDS[name]}, beyond {FIRST}" for name in SHOWN)]]
    for row in means(more[more["objective"] != FIRST], ["objective", "layer"], SHOWN).to_dict(orient="records"):
        accuracy = cell(row, "accuracy", signed=True)
        l2 = cell(row, "l2_relative", scale=1, digits=2, signed=True)
        rows.append([f"`{row['objective']}`", f"`{row['layer']}`", accuracy, l2])
    return rows


def picture(frames: Mapping[str, Frame]) -> Figure:
    frame = frames[""]
    objectives, layers = in_order(frame["objective"]), in_order(frame["layer"])
    figure = new_figure(
        3.1 * len(objectives) + 1.2, 6.6, "From before to after training: accuracy against closeness to end's own"
    )
    grid: Any = figure.subplots(2, len(objectives), squeeze=False, sharey=True, sharex="row")
    for column, (objective, part) in enumerate(frame.groupby("objective", sort=False)):
        for row, name in enumerate(OTHERS):
            axes = grid[row, column]
            for number, layer in enumerate(layers):
                _arrows(axes, part[part["layer"] == layer], name, number, len(layers), str(layer))
            heading = f"trained for {objective}" if not row else ""
            finish(axes, title=heading, x=WORDS[name], y="" if column else "accuracy (%)", grid="both")
    for axes in grid[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=SMALL, frameon=False, title="layer")
    note = "a line is a stitch, its mark the end of training; relative l2: 0 is end's own activation, CKA: 1"
    figure.supxlabel(note, fontsize=SMALL, color=INK)
    return figure


def _arrows(axes: Any, part: Frame, name: str, number: int, of: int, layer: str) -> None:
    """A line for each stitch of a layer, from where it began to its mark."""
    colour = colormaps["cividis"](0.9 * number / max(1, of - 1))
    x, y = ([part[f"{one}_{stage}"] for stage in ("before", "after")] for one in (name, "accuracy"))
    axes.plot(np.array(x), 100 * np.array(y), color=colour, linewidth=0.6, alpha=0.6)
    style = {"linestyle": "", "markersize": 4, "markeredgewidth": 0, "label": layer}
    axes.plot(x[1], 100 * y[1], MARKERS[number % len(MARKERS)], color=colour, **style)
