"""Photographs in a border whose colour tells the class: what exposes a front that looks at the border alone."""

import argparse
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.can_it_mislead import Run, found, networks, table
from benchmarks.cues import EXPERIMENTS, SETS
from benchmarks.findings.drawing import style
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, in_order
from src.results.plots.curves import Series, draw_series
from src.results.plots.style import GREY, INK, SMALL, finish, new_figure
from src.studies.frames import Frame

EXPERIMENT = EXPERIMENTS["border"]
SHOWN = {"hard": "trained for labels", "iri": "match_later on iri"}
USUAL = {"epochs": None, "iri_images": None, "iri_steps": 100, "network_epochs": None}


def reduce(runs: Runs) -> dict[str, Frame]:
    """What the experiment finds, and what its networks are right on alone."""
    run = Run(EXPERIMENT, runs.folder / EXPERIMENT.mark, argparse.Namespace(**USUAL))
    return {"": found(run), "networks": networks(run)}


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    alone = frames["networks"]
    rows = [["network", "trained on", "begins from", *(f"{kind} (%)" for kind in SETS)]]
    for row in alone.to_dict(orient="records"):
        words = [row[name] for name in ("network", "trained on", "begins from")]
        rows.append([*words, *(f"{100 * row[kind]:.1f}" for kind in SETS)])
    return {"mislead": table(frames[""], EXPERIMENT.metrics), "mislead-networks": rows}


def picture(frames: Mapping[str, Frame]) -> Figure:
    frame = frames[""]
    layers, fronts = in_order(frame["layer"]), in_order(frame["front"])
    title = "Stitches to a network of photographs, trained where a border's colour agrees with the photograph"
    figure = new_figure(3.0 * len(layers) + 1.6, 6.0, title)
    grid: Any = figure.subplots(len(SHOWN), len(layers), squeeze=False, sharey=True, sharex=True)
    for row, (variant, words) in enumerate(SHOWN.items()):
        for axes, layer in zip(grid[row], layers, strict=True):
            here = frame[frame["layer"] == layer].set_index("front")
            draw_series(axes, [_line(here.loc[front], front, variant, fronts.index(front)) for front in fronts])
            axes.axhline(10, color=GREY, linewidth=1, zorder=0)
            axes.set_xticks(range(len(SETS)), SETS)
            axes.set_ylim(0, 100)
            finish(axes, title=f"{layer}, {words}", y="accuracy (%)" if layer == layers[0] else "", grid="both")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=SMALL, frameon=False,
        title="front knows", handlelength=3,
    )  # fmt: skip
    note = "images scored: colour agrees with the photograph, has nothing to do with it, or always says another class"
    figure.supxlabel(f"{note}; grey: chance", fontsize=SMALL, color=INK)
    return figure


def _line(row: Any, front: str, variant: str, number: int) -> Series:
    return Series(front, range(len(SETS)), [100 * row[f"{variant} {kind}"] for kind in SETS], **style(number))
