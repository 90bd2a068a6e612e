"""The picture of a stitch: its matrices, their singular values, the learning curve, and what still works."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.core.intervals import wilson
from src.results.plots.style import (
    GREY,
    INK,
    NORMAL,
    SMALL,
    empty,
    finish,
    legend,
    logarithmic,
    new_figure,
    save,
    whole_numbers,
)
from src.results.stitch_text import EXACT_MARK, MADE_MARK, exact_fits, interval_of, verdict_lines
from src.results.titles import stitch_title
from src.stitching.controls import CONTROLS
from src.stitching.stages import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MAPS = ("before", "after", "ps_inv")
# Smaller side of a matrix: beyond it, singular values take minutes.
MAX_SIDE = 4096
# Singular values below this share of the largest are rounding of float32.
RANK_FLOOR = 1e-6
# The shared colour scale ends at this quantile of |w|: a single large weight would make all others white.
SHOWN = 0.998


def draw_stitch(result: dict[str, Any], path: Path) -> None:
    """Draw a stitch result, as stitch_nets.py writes it, into a file."""
    save(stitch_figure(result), path)


def stitch_figure(result: dict[str, Any]) -> Figure:
    doubtful = "   (debug: no result)" * bool(result["params"].get("debug"))
    controls = bool(result.get("controls")) and result["model_results"]["end"]["acc"] is not None
    figure = new_figure(12.4 if controls else 9.6, 6.6, stitch_title(result, "\N{RIGHTWARDS ARROW}") + doubtful)
    parts = figure.subfigures(2, 1, height_ratios=[1, 0.95], hspace=0.02)
    top, bottom = parts  # pyright: ignore[reportGeneralTypeIssues]
    maps = {name: result["trans_m"][name] for name in MAPS}
    matrices = {name: _matrix(arrays["w"]) for name, arrays in maps.items() if "family" not in arrays}
    _draw_matrices(top, matrices, result)
    grid = bottom.add_gridspec(2, 3 + controls, hspace=0.05, wspace=0.04)
    _draw_singular_values(bottom.add_subplot(grid[:, 0]), matrices)
    loss = bottom.add_subplot(grid[0, 1])
    accuracy = bottom.add_subplot(grid[1, 1], sharex=loss)
    _draw_curves(loss, accuracy, result)
    bottom.align_ylabels([loss, accuracy])
    _draw_accuracies(bottom.add_subplot(grid[:, 2]), result)
    if controls:
        _draw_controls(bottom.add_subplot(grid[:, 3]), result)
    return figure


def _matrix(w: np.ndarray) -> np.ndarray:
    """(out, in, 1, 1) or (out, in) -> (out, in)."""
    return np.asarray(w, dtype=np.float64).reshape(w.shape[:2])


def _draw_matrices(figure: SubFigure, matrices: dict[str, np.ndarray], result: dict[str, Any]) -> None:
    panels: dict[str, Axes] = dict(zip(MAPS, figure.subplots(1, len(MAPS)), strict=True))
    sizes = np.concatenate([np.abs(matrix).ravel() for matrix in matrices.values()])
    limit = float(np.quantile(sizes, SHOWN)) or float(sizes.max()) or 1.0
    unit = "channel" if result["trans_m"]["ps_inv"]["w"].ndim == 4 else "feature"
    epochs = len(result["trans_fit"])
    titles = {
        "before": f"before: init {result['params']['init']}",
        "after": f"after: {epochs} epoch{'s' * (epochs != 1)}",
        "ps_inv": "ps_inv: least squares",
    }
    for name in (name for name in MAPS if name not in matrices):
        finish(panels[name], title=titles[name])
        empty(panels[name], f"no matrix: {result['trans_m'][name]['family']}")
    for name, matrix in matrices.items():
        axes = panels[name]
        tall = max(matrix.shape) > 3 * min(matrix.shape)
        image = axes.imshow(
            matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto" if tall else "equal", interpolation="nearest"
        )
        finish(axes, title=titles[name], x=f"front {unit}", y=f"end {unit}" if name == "before" else "")
        whole_numbers(axes.xaxis, axes.yaxis)
    bar = figure.colorbar(
        image, ax=list(panels.values()), extend="both" if sizes.max() > limit else "neither", aspect=16, pad=0.015
    )
    bar.set_label("weight (end units per front unit)", fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL)


def _draw_singular_values(axes: Axes, matrices: dict[str, np.ndarray]) -> None:
    shape = next(iter(matrices.values())).shape
    finish(axes, title="singular values", x="index", y="end units per front unit", grid="both")
    if min(shape) > MAX_SIDE:
        empty(axes, f"left out: the matrix is {shape[0]} x {shape[1]}")
        return
    lowest, highest = np.inf, 0.0
    for name, matrix in matrices.items():
        values = np.linalg.svd(matrix, compute_uv=False)
        kept = values[values > RANK_FLOOR * values[0]]
        label = name if len(kept) == min(shape) else f"{name}, rank {len(kept)}"
        marker = STAGES[name].marker if len(values) <= 64 else ""
        numbers = np.arange(1, len(kept) + 1)
        size = {"before": 6.5, "after": 2.5}.get(name, 4.5)  # so that equal values show all three
        (line,) = axes.plot(
            numbers, kept, color=STAGES[name].colour, marker=marker, markersize=size, linewidth=1, label=label
        )
        if name != "after":
            line.set_markerfacecolor("none")
        lowest, highest = min(lowest, kept.min(initial=np.inf)), max(highest, kept.max(initial=0))
    if highest > 30 * lowest:
        logarithmic(axes)
    else:
        axes.set_ylim(0, 1.12 * highest or 1.0)
    whole_numbers(axes.xaxis)
    legend(axes)


def _draw_curves(loss: Axes, accuracy: Axes, result: dict[str, Any]) -> None:
    fit, scores = result["trans_fit"], result["model_results"]
    epochs = np.arange(1, len(fit) + 1)
    target = result["params"].get("target_type", "hard")
    trained_on = "train" if target == "hard" else f"train ({target})"
    is_labelled = scores["before"]["acc"] is not None
    for axes, key, score, unit in ((loss, "loss", "loss", 1), (accuracy, "accuracy", "acc", 100)):
        marker = "." if len(fit) < 25 else ""
        style = {"marker": marker, "linewidth": 1.3}
        if is_labelled or key == "loss":  # without labels no decision is right
            axes.plot(epochs, unit * fit[f"train_{key}"], color=GREY, linestyle="--", label=trained_on, **style)
        reached = {name: _reached(result, name, score) for name in ("before", "after")}
        # before training there is a score on the validation images, but none on those of training
        val = np.array([math.nan if reached["before"] is None else reached["before"], *fit[f"val_{key}"]])
        axes.plot(np.arange(len(fit) + 1), unit * val, color=INK, label="val", **style)
        for place, name in ((0, "before"), (len(fit), "after")):
            if (value := reached[name]) is None:
                continue
            axes.plot(
                place,
                unit * value,
                color=STAGES[name].colour,
                marker=STAGES[name].marker,
                markersize=7.5 if name == "before" else 5,
                linestyle="",
                label=name,
                zorder=3,
                clip_on=False,
            )
    finish(loss, y="loss (nats)", grid="both")
    loss.set_title("learning curve", fontsize=NORMAL, color=INK, pad=20)
    finish(accuracy, x="epoch", y="accuracy (%)" if is_labelled else "agrees with end (%)", grid="both")
    loss.tick_params(labelbottom=False)
    last = max(1, len(fit))
    accuracy.set_xlim(-0.03 * last, 1.03 * last)
    whole_numbers(accuracy.xaxis)
    legend(loss, ncols=4, columnspacing=0.8, loc="lower center", bbox_to_anchor=(0.5, 1.0), handletextpad=0.4)


def _reached(result: dict[str, Any], name: str, score: str) -> float | None:
    """Loss or accuracy of a stage; without labels of these classes how often it agrees with the end."""
    value = result["model_results"][STAGES[name].scores][score]
    if value is None and score == "acc":
        return result["m2_sim"][STAGES[name].agreement]["same_class_out"]
    return value


def _draw_accuracies(axes: Axes, result: dict[str, Any]) -> None:
    """Accuracies with 95% intervals, on the range that these span; chance is a line, or named where it is far below."""
    finish(axes, title="accuracy on val, 95% intervals", y="accuracy (%)", grid="y")
    shares = {name: result["model_results"].get(stage.scores, {}).get("acc") for name, stage in STAGES.items()}
    shown = {name: share for name, share in shares.items() if share is not None}
    if not shown:
        empty(axes, "none: no labels\nof these classes")
        return
    images, marked = result.get("images", {}).get("val"), exact_fits(result)
    lowest, highest = 100.0, 0.0
    for place, (name, share) in enumerate(shown.items()):
        low, high = interval_of(result, name) or (wilson(share, images) if images else (share, share))
        bars = [[100 * max(0.0, share - low)], [100 * max(0.0, high - share)]]
        axes.errorbar(
            [place],
            [100 * share],
            yerr=bars,
            color=STAGES[name].colour,
            markerfacecolor="none" if name in marked else STAGES[name].colour,
            marker="o",
            markersize=6,
            capsize=3,
        )
        axes.text(place + 0.16, 100 * share, f"{100 * share:.1f}", fontsize=SMALL, color=INK, va="center")
        lowest, highest = min(lowest, 100 * low), max(highest, 100 * high)
    margin = max(0.5, 0.12 * (highest - lowest))
    chance = result.get("constant_accuracy")
    if chance is not None and 100 * chance > lowest - 3 * margin:
        lowest = min(lowest, 100 * chance)
    axes.set_ylim(max(-2.0, lowest - margin), min(102.0, highest + margin))
    if chance is not None:
        inside = 100 * chance >= axes.get_ylim()[0]
        if inside:
            axes.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1.3)
        text = f"{'chance' if inside else 'chance, below:'} {100 * chance:.1f}"
        axes.text(0.02, 0.02, text, fontsize=SMALL, color=GREY, transform=axes.transAxes)
    axes.set_xlim(-0.5, len(shown) - 0.1)
    names = [name + EXACT_MARK * (name in marked) for name in shown]
    axes.set_xticks(range(len(shown)), names, rotation=30 if len(shown) > 5 else 0)
    axes.grid(False, axis="x")
    if marked:
        axes.set_xlabel(f"{EXACT_MARK} fits whatever it is given", fontsize=SMALL, color=INK)


def _draw_controls(axes: Axes, result: dict[str, Any]) -> None:
    """The trained stitch among its controls, from 0 to 100%, with 95% intervals; of several networks, their range."""
    made = [name for name, figures in result["controls"].items() if figures.get("by_construction")]
    rows = dict(reversed([("after", result["model_results"]["trans"]), *result["controls"].items()]))
    for place, (name, figures) in enumerate(rows.items()):
        share = figures["acc"]
        low, high = interval_of(result, name) or (share, share)
        colour = (STAGES | CONTROLS)[name].colour
        bars = [[100 * max(0.0, share - low)], [100 * max(0.0, high - share)]]
        axes.errorbar([100 * share], [place], xerr=bars, color=colour, marker="o", markersize=6, capsize=3)
        text = {"fontsize": SMALL, "color": INK, "ha": "right" if share > 0.5 else "left", "va": "center"}
        axes.text(100 * share, place + 0.32, f"{100 * share:.1f}", **text)
    axes.axvline(100 * rows["after"]["acc"], color=STAGES["after"].colour, linewidth=0.8, zorder=0)
    axes.set_xlim(-2, 104)
    axes.set_ylim(-0.6, len(rows) - 0.3)
    notes = [
        *(line.partition(", ")[0] for line in verdict_lines(result)),
        *[f"{MADE_MARK} by construction"] * bool(made),
    ]
    finish(axes, title="after, among its controls", x="\n".join(["accuracy (%)", *notes]), grid="x")
    axes.set_yticks(range(len(rows)), [name + MADE_MARK * (name in made) for name in rows])
