"""Photographs in a border whose colour tells the class: what exposes a front that looks at the border alone."""

import argparse
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.can_it_mislead import Run, found, networks, span, table
from benchmarks.cues import EXPERIMENTS, RUNS, SETS
from benchmarks.findings.drawing import style
from benchmarks.findings.runs import Runs
from benchmarks.findings.values import Rows, in_order
from src.results.plots.curves import Series, draw_series
from src.results.plots.style import GREY, INK, SMALL, finish, new_figure
from src.studies.frames import Frame, subsets

EXPERIMENT = EXPERIMENTS["border"]
SHOWN = {"hard": "trained for labels", "iri": "match_later on iri"}
USUAL = {"epochs": None, "iri_images": None, "iri_steps": 100, "network_epochs": None}


def reduce(runs: Runs) -> dict[str, Frame]:
    """What the experiment finds, and what its networks are right on alone."""
    usual = argparse.Namespace(**USUAL)
    made = [Run(EXPERIMENT, runs.folder / EXPERIMENT.mark, usual, number) for number in range(RUNS)]
    return {"": found(made), "networks": networks(made)}


def tables(frames: Mapping[str, Frame]) -> dict[str, Rows]:
    rows = [["network", "trained on", "begins from", *(f"{kind} (%)" for kind in SETS)]]
    for (name, about), part in subsets(frames["networks"], ["network", "trained on"]):
        shares = [span(100 * part[kind]) for kind in SETS]
        rows.append([name, about, ", ".join(dict.fromkeys(part["begins from"])), *shares])
    return {"mislead": table(frames[""], EXPERIMENT.metrics), "mislead-networks": rows}


def picture(frames: Mapping[str, Frame]) -> Figure:
    frame = frames[""]
    layers, fronts = in_order(frame["layer"]), in_order(frame["front"])
    title = "Stitches to a network of photographs, trained where a border's colour agrees with the photograph"
    figure = new_figure(3.0 * len(layers) + 1.6, 6.0, title)
    grid: Any = figure.subplots(len(SHOWN), len(layers), squeeze=False, sharey=True, sharex=True)
    for row, (variant, words) in enumerate(SHOWN.items()):
        for axes, layer in zip(grid[row], layers, strict=True):
            here = {front: part for (front,), part in subsets(frame[frame["layer"] == layer], ["front"])}
            draw_series(axes, [_line(here[front], front, number, variant) for number, front in enumerate(fronts)])
            axes.axhline(10, color=GREY, linewidth=1, zorder=0)
            axes.set_xticks(range(len(SETS)), SETS)
            axes.set_ylim(0, 100)
            finish(axes, title=f"{layer}, {words}", y="accuracy (%)" if layer == layers[0] else "", grid="both")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=SMALL, frameon=False,
        title="front knows", handlelength=3,
    )  # fmt: skip
    note = "images scored: colour agrees with the photograph, has nothing to do with it, or always says another class"
    note += f"\nlines: means of {RUNS} runs, bars: from the least to the most; grey: chance"
    figure.supxlabel(note, fontsize=SMALL, color=INK)
    return figure


def _line(rows: Frame, front: str, number: int, variant: str) -> Series:
    """The mean over runs, from the least to the most."""
    shares = 100 * rows[[f"{variant} {kind}" for kind in SETS]]
    ends = {"low": list(shares.min()), "high": list(shares.max())}
    return Series(front, range(len(SETS)), list(shares.mean()), **ends, **style(number))
