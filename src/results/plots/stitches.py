"""The picture of several stitches: a map over pairs of layers, or curves over what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from src.results.plots.curves import LINES, Series, control_style, draw_panels, panels_size
from src.results.plots.heatmap import draw_map, draw_scale, map_size
from src.results.plots.style import (
    GREY,
    INK,
    SMALL,
    finish,
    new_figure,
    save,
)
from src.results.titles import network_names
from src.stitching.naming import FAMILY, setting_of, setting_text
from src.stitching.stages import STAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES_SHOWN = ("before", "after", "ps_inv")
KINDS = ("init", "mask", "target_type", "train_on", FAMILY)  # what makes another line, or another panel
NUMBERS = ("low_rank", "lr")  # what an axis can show in its order


def draw_stitches(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw several results of stitch_nets.py between the same two networks into a file."""
    save(stitches_figure(found), path)


def stitches_figure(found: Sequence[dict[str, Any]]) -> Figure:
    """A map of relative accuracy where front layers meet several end layers each, else curves with all seeds."""
    layers = [ordered(result["params"][f"{role}_layer"] for result in found) for role in ("front", "end")]
    pairs = ordered((result["params"]["front_layer"], result["params"]["end_layer"]) for result in found)
    is_grid = len(pairs) == len(layers[0]) * len(layers[1]) and min(map(len, layers)) > 1
    return grid_figure(found, *layers) if is_grid else curves_figure(found)


def ordered(values: Any) -> list[Any]:
    """Each value once, in the order in which they come."""
    return list(dict.fromkeys(values))


def value_of(result: dict[str, Any], stage: str) -> float:
    """Relative accuracy, 0 to 1 and above; agreement with the end network where accuracy has no meaning."""
    scores, end = result["model_results"], result["model_results"]["end"]["acc"]
    if end is None:
        return result["m2_sim"][stage]["same_class_out"]
    return scores[STAGES[stage].scores]["acc"] / end if end else float("nan")


def measure(found: Sequence[dict[str, Any]]) -> str:
    labelled = found[0]["model_results"]["end"]["acc"] is not None
    return "accuracy / accuracy of end" if labelled else "agreement with end"


def figure_title(found: Sequence[dict[str, Any]]) -> str:
    weights = found[0]["weights"]
    dataset = found[0]["params"].get("dataset") or weights["front"]["dataset"]
    front, end = network_names([weights[role] for role in ("front", "end")])
    return f"{front} \N{RIGHTWARDS ARROW} {end}   ({dataset})"


def variant(result: dict[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {setting_of(SimpleNamespace(**result['params']), name)}" for name in names)


def differing(found: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    options = [SimpleNamespace(**result["params"]) for result in found]
    return [name for name in names if len({setting_of(option, name) for option in options}) > 1]


def grid_figure(results: Sequence[dict[str, Any]], fronts: list[str], ends: list[str]) -> Figure:
    """A row of maps, before and after, for each combination of what else differs; means over seeds."""
    names = differing(results, (*KINDS, *NUMBERS))
    variants = ordered(variant(result, names) for result in results)
    untrained = all(not result["params"]["epochs"] for result in results)
    stages = ["before", "ps_inv"] if untrained else ["before", "after"]
    rows, columns = ([name or "output" for name in names] for names in (fronts, ends))
    width, height = map_size(rows, columns)
    width, height = max(2.4, width + 0.8), max(3.0, height + 0.7)
    figure = new_figure(len(stages) * width + 0.8, len(variants) * height + 0.6, figure_title(results))
    panels = figure.subplots(len(variants), len(stages), squeeze=False)
    low, high = 0.0, max(1.0, max(value_of(result, stage) for result in results for stage in stages))
    for line, which in zip(panels, variants, strict=True):
        same = [result for result in results if variant(result, names) == which]
        for axes, stage in zip(line, stages, strict=True):
            table = _table(same, fronts, ends, stage)
            image = draw_map(axes, table, rows, columns, low=low, high=high)
            finish(axes, title=f"{stage}{', ' * bool(which)}{which}", x="end layer", y="front layer")
    draw_scale(figure, image, panels, measure(results))
    seeds = len({result["params"]["seed"] for result in results})
    notes = ["framed: the best of its row"] + [f"means over {seeds} seeds"] * (seeds > 1)
    figure.supxlabel("; ".join(notes), fontsize=SMALL, color=INK)
    return figure


def _table(found: Sequence[dict[str, Any]], fronts: list[str], ends: list[str], stage: str) -> np.ndarray:
    values: dict[tuple[str, str], list[float]] = {}
    for result in found:
        cell = result["params"]["front_layer"], result["params"]["end_layer"]
        values.setdefault(cell, []).append(value_of(result, stage))
    return np.array([[np.mean(values.get((one, other), [np.nan])) for other in ends] for one in fronts])


def curves_figure(results: Sequence[dict[str, Any]]) -> Figure:
    """Relative accuracy over a number that varies, or over pairs of layers: every seed a dot, their mean the line."""
    names = differing(results, NUMBERS)
    across = names[0] if names else "layers"
    others = [name for name in differing(results, ("front_layer", "end_layer", *KINDS, *NUMBERS)) if name != across]
    if across == "layers":
        others = [name for name in others if not name.endswith("layer")]
    places = ordered(_place(result, across) for result in results)
    if across != "layers":
        places = sorted(places, key=lambda value: float("inf") if value is None else value)
    panels = _panels(results, across, places, others)
    figure = new_figure(*panels_size(len(panels), len(places)), figure_title(results))
    x = {"low_rank": "rank", "lr": "learning rate"}.get(across, "front - end layer")
    for axes, _ in draw_panels(figure, panels, [_label(place) for place in places], x=x, y=measure(results)):
        axes.axhline(1, color=GREY, linewidth=1, zorder=0)
    figure.supxlabel("dots: seeds; lines: their means", fontsize=SMALL, color=INK)
    return figure


def _panels(
    results: Sequence[dict[str, Any]], across: str, places: list[Any], others: Sequence[str]
) -> dict[str, list[Series]]:
    """The lines of all that differ in `others`: in one panel, or in one each where each has controls of its own."""
    groups = ordered(variant(result, others) for result in results)
    stages = ["before", "ps_inv"] if all(not result["params"]["epochs"] for result in results) else list(STAGES_SHOWN)
    controls = ordered(name for result in results for name, figures in result.get("controls", {}).items() if figures)
    apart = bool(controls) and len(groups) > 1
    panels: dict[str, list[Series]] = {}
    for number, group in enumerate(groups):
        same = [result for result in results if variant(result, others) == group]
        at = [[result for result in same if _place(result, across) == place] for place in places]
        # one line a pair of layers would do: no setting changes it
        shown = [stage for stage in stages if stage != "ps_inv" or apart or across == "layers" or not number]
        lines = [_stage_line(at, stage, 0 if apart else number) for stage in shown]
        lines += [line for name in controls if (line := _control_line(at, name))]
        if not apart and group:
            lines = [replace(line, label=f"{line.label}, {group}") for line in lines]
        panels.setdefault(group if apart else "", []).extend(lines)
    return panels


def _stage_line(at: Sequence[Sequence[dict[str, Any]]], stage: str, number: int) -> Series:
    """The line of a stage, from the results at each place; those of a further `number` look otherwise."""
    values = [[value_of(result, stage) for result in some] for some in at]
    dots = [(x, value) for x, some in enumerate(values) if len(some) > 1 for value in some]
    means, line, looks = _means(values), LINES[number % len(LINES)], STAGES[stage]
    return Series(stage, range(len(at)), means, looks.colour, looks.marker, line, dots=dots)


def _control_line(at: Sequence[Sequence[dict[str, Any]]], name: str) -> Series | None:
    shares = [[result.get("controls", {}).get(name, {}).get("rel_acc") for result in some] for some in at]
    values = [[share for share in some if share] for some in shares]
    return Series(name, range(len(at)), _means(values), **control_style(name)) if any(values) else None


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(some)) if some else float("nan") for some in values]


def _place(result: dict[str, Any], across: str) -> Any:
    params = result["params"]
    return (params["front_layer"], params["end_layer"]) if across == "layers" else params[across]


def _label(place: Any) -> str:
    if isinstance(place, tuple):
        names = [name or "output" for name in place]
        return names[0] if names[0] == names[1] else "-".join(names)
    return setting_text(place)
