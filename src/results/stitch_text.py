"""The tables of stitches: what still works, how sure that is, and what it is to be held against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from src.core.intervals import is_chance
from src.results.text import columns_text, fill, health_lines
from src.results.titles import ROLES, at_chance, network_names, stitch_title
from src.stitching.controls import CEILING, CONTROLS, FLOOR
from src.stitching.layer import AFFINE
from src.stitching.naming import FAMILY, setting_of, varied
from src.stitching.stages import COMPARED, STAGES
from src.training.endings import risen_loss

EXACT_MARK, MADE_MARK = "*", "="
NOTHING = "; a stitch to it means nothing"
TWO_DECIMALS_FROM = 10_000  # images from which on an accuracy has two decimals


def stitch_table(result: dict[str, Any]) -> str:
    """What still works: a row for each network, and how close each comes to the end network."""
    lines = [fill(stitch_title(result))]
    heads = (f"{title:>{column.width}}" for title, column in columns_of(result).items())
    lines.append(" ".join([f"{'':11}", *heads]))
    marked = exact_fits(result)
    for row, figures in figures_of(result).items():
        lines.append(_line(result, row, EXACT_MARK * (row in marked), figures))
    for row, figures in result.get("controls", {}).items():
        mark = MADE_MARK * bool(figures.get("by_construction"))
        lines.append(_line(result, row, mark, figures))
    lines.append("relative: accuracy / accuracy of end; agrees, CKA, l2: with end")
    lines += [fill(text) for text in [*_notes(result, marked), *verdict_lines(result), *training_lines(result)]]
    lines += ood_lines(result.get("ood", {}), result["params"]["end_layer"])
    lines += health_lines(result["health"]) if "health" in result else []
    return "\n".join([*lines, *(fill(f"warning: {text}") for text in fit_warnings(result))])


def figures_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each network but the controls, by its row, what it reaches and how close it comes to the end network."""
    rows = {}
    for row, stage in STAGES.items():
        if stage.scores in result["model_results"]:
            similar = result["m2_sim"].get(stage.agreement, {})
            cka, l2 = (result.get(f"{name}{stage.suffix}") if row in COMPARED else None for name in ("cka", "l2"))
            rows[row] = result["model_results"][stage.scores] | similar | {"cka": cka, "l2": l2}
    return rows


@dataclass(frozen=True, slots=True)
class Column:
    """A line of COLUMNS: letters across, and what stands there, of a result, a row by its name, and its figures.

    key: what a result has where the column is shown; "" for each. instead_of: the column whose place it takes.
    """

    width: int
    text: Callable[[dict[str, Any], str, dict[str, Any]], str]
    key: str = ""
    instead_of: str = ""


def _share(key: str) -> Callable[[dict[str, Any], str, dict[str, Any]], str]:
    return lambda result, row, figures: _number(figures.get(key), 0, f".{_decimals(result)}%")


def _four(key: str) -> Callable[[dict[str, Any], str, dict[str, Any]], str]:
    return lambda result, row, figures: _number(figures.get(key), 0, ".4f")


def _relative(result: dict[str, Any], row: str, figures: dict[str, Any]) -> str:
    end = result["model_results"]["end"]["acc"]
    relative = None if figures["acc"] is None else figures["acc"] / end if end else float("nan")
    return _number(relative, 0, f".{_decimals(result) + 2}f")


# what stands in a row of the table of one stitch, by its title
COLUMNS = {
    "accuracy": Column(8, _share("acc")),
    "95% interval": Column(14, lambda result, row, figures: interval_text(interval_of(result, row))),
    "loss": Column(8, _four("loss")),
    "relative": Column(8, _relative),
    "agrees": Column(7, _share("same_class_out")),
    "CKA": Column(7, _four("cka")),
    "l2": Column(8, _four("l2")),
    "robust": Column(
        7,
        lambda result, row, figures: _number(result["robust"].get(row), 0, f".{_decimals(result)}%"),
        key="robust",
        instead_of="relative",
    ),
}


def columns_of(result: dict[str, Any]) -> dict[str, Column]:
    """The columns of a result by their titles; one that not all have takes the place of another, for want of room."""
    shown = {title: column for title, column in COLUMNS.items() if not column.key or column.key in result}
    taken = {column.instead_of for column in shown.values()}
    return {title: column for title, column in shown.items() if title not in taken}


def _line(result: dict[str, Any], row: str, mark: str, figures: dict[str, Any]) -> str:
    cells = (f"{column.text(result, row, figures):>{column.width}}" for column in columns_of(result).values())
    return " ".join([f"{row + mark:11}", *cells]).rstrip()


def _decimals(result: dict[str, Any]) -> int:
    """Decimals of a percentage: of few images a second one would be noise."""
    return 2 if result.get("images", {}).get("val", TWO_DECIMALS_FROM) >= TWO_DECIMALS_FROM else 1


def interval_of(result: dict[str, Any], row: str) -> tuple[float, float] | None:
    """The 95% interval of a row's accuracy; of several networks, from the lowest to the highest."""
    if each := result.get("controls", {}).get(row, {}).get("each"):
        found = [one["acc"] for one in each]
        return None if None in found else (min(found), max(found))
    return result.get("intervals", {}).get(row, {}).get("acc")


def interval_text(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _notes(result: dict[str, Any], marked: dict[str, dict[str, int]]) -> list[str]:
    """What the marks of some rows mean."""
    controls, notes = result.get("controls", {}), []
    for row, fit in marked.items():
        notes.append(
            f"{row}{EXACT_MARK}: fitted to {fit['rows']} rows with {fit['unknowns']} unknowns an output, so it "
            "fits whatever it is given, and this row says nothing about the networks"
        )
    for row, figures in controls.items():
        if "each" in figures:
            notes.append(f"{row}: mean and range of {len(figures['each'])} networks, not an interval")
        if figures.get("by_construction"):
            notes.append(f"{row}{MADE_MARK}: end, by construction: this init makes the identity of it")
    return notes


def verdict_lines(result: dict[str, Any]) -> list[str]:
    """The penalty and the score, with their intervals."""
    lines = []
    penalty, score = result.get("penalty"), result.get("score")
    if penalty and "reason" in penalty:
        return [f"penalty{' and score' * bool(score)}: void, {penalty['reason']}"]
    if penalty:
        value, low, high = (100 * penalty[key] for key in ("value", "low", "high"))
        lines.append(f"penalty: {value:.1f} points ({low:.1f} to {high:.1f}), accuracy of end - after")
    if score:
        lines.append(f"score: {score_text(score)}, (after - untrained) / (self - untrained)")
        if score["value"] is None:
            lines[-1] = f"score: undefined, {score['reason']}: self - untrained"
    return lines


def training_lines(result: dict[str, Any]) -> list[str]:
    """What the maps are and what they were trained on, where that is unusual, and what became of an early end."""
    params = SimpleNamespace(**result["params"])
    lines = []
    if bound := result.get("adversarial"):
        lines.append(f"robust: accuracy on images changed against each network, each pixel by up to {bound:.4g}")
    if (family := setting_of(params, FAMILY)) != AFFINE:
        lines.append(f"family: {family}, {result['parameters']:,} parameters")
    if made := result.get("identical"):
        error = made["relative_error"]
        lines.append(
            f"trained on {made['images']} images that front cannot tell from the training images: relative error "
            f"{error['mean']:.3f} ({error['low']:.3f} to {error['high']:.3f}) after {made['steps']} steps"
        )
        if apart := made.get("minus_data"):
            lines.append(f"minus_data: {_points(apart)} points, after here - after of the same images themselves")
    if not (stop := result.get("early_stop")):
        return lines
    asked = result["params"]["epochs"]
    when = f"stopped after {stop['trained']} of {asked}" if stop["trained"] < asked else f"trained for all {asked}"
    return [*lines, f"early stop: of {stop['held_out']} images held out epoch {stop['epoch']} was best; {when}"]


def _points(difference: dict[str, float]) -> str:
    """A difference of shares with its interval, in points."""
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def ood_lines(ood: dict[str, dict[str, dict[str, float]]], layer: str) -> list[str]:
    """At the stitch and at the logits, how far what is handed on can be told from end's own."""
    if not ood:
        return []
    heads = [("AUROC", "auroc"), ("signed", "auroc_signed"), ("fpr95", "fpr95"), ("l2 rel.", "l2_relative")]
    lines = [f"{'':11} {'at ' + (layer or 'the output'):^31}   {'at the logits':^31}".rstrip()]
    lines.append(f"{'':11} " + "   ".join(" ".join(f"{title:>7}" for title, _ in heads) for _ in range(2)))
    for row, scores in ood.items():
        both = (scores[layer or "logits"], scores["logits"])
        lines.append(f"{row:11} " + "   ".join(" ".join(f"{one[key]:7.3f}" for _, key in heads) for one in both))
    return [
        *lines,
        fill("AUROC 0.5, fpr95 0.95: not to be told from end's own; signed below 0.5: closer to the centre"),
    ]


def score_text(score: dict[str, Any] | None) -> str:
    if not score or score["value"] is None:
        return ""
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def exact_fits(result: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The least-squares maps of a result that had no more rows than unknowns, on the very images that score them."""
    fits = result.get("fits", {})
    return {name: fit for name, fit in fits.items() if name == "ps_inv" and fit["rows"] <= fit["unknowns"]}


def networks_at_chance(result: dict[str, Any], roles: Sequence[str] = ROLES) -> list[str]:
    """What is said of the networks of a stitch that decide no better than chance, as untrained ones do."""
    if (chance := result.get("constant_accuracy")) is None or "val" not in result.get("images", {}):
        return []
    warnings, names = [], network_names([result["weights"][role] for role in ROLES])
    for role, name in [pair for pair in zip(ROLES, names, strict=True) if pair[0] in roles]:
        accuracy = result["model_results"].get(role, {}).get("acc")
        if accuracy is not None and is_chance(accuracy, chance, result["images"]["val"]):
            warnings.append(at_chance(f"the {role} network, {name},", accuracy, chance) + NOTHING * (role == "end"))
    return warnings


def fit_warnings(result: dict[str, Any]) -> list[str]:
    """What makes a stitch's numbers doubtful."""
    params, chance = result["params"], result.get("constant_accuracy")
    after, warnings = result["model_results"]["trans"]["acc"], networks_at_chance(result)
    meaningless = any(NOTHING in text for text in warnings)
    if params.get("debug"):
        warnings.append("--debug: a few batches an epoch, so these are no results")
    losses = list(result["trans_fit"]["train_loss"]) if result.get("trans_fit") is not None else []
    if risen := risen_loss(losses, params["lr"]):
        warnings.append(risen)
    if not params.get("epochs") or meaningless:
        after = None
    if chance is not None and after is not None and is_chance(after, chance, result["images"]["val"]):
        warnings.append(
            f"after training the stitch is right on {after:.1%} of the images, no better than one constant answer "
            f"({chance:.1%}); try --whiten, a higher -lr or another init, -i ps_inv"
        )
    for name, fit in result.get("fits", {}).items():
        if name != "ps_inv" and fit["rows"] <= fit["unknowns"]:
            warnings.append(
                f"{name} is fitted to {fit['rows']} rows of training images with {fit['unknowns']} unknowns an output: "
                "it fits these whatever they are"
            )
    return warnings


def _number(value: float | None, width: int, form: str) -> str:
    return " " * width if value is None else f"{value:{width}{form}}"


def stitches_table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each of several stitches: where it is, in what it differs, and what still works; then its controls."""
    first = results[0]
    weights = network_names([first["weights"][role] for role in ("front", "end")])
    end = first["model_results"]["end"]["acc"]
    title = f"{weights[0]} -> {weights[1]} ({first['params'].get('dataset') or first['weights']['front']['dataset']})"
    if end is not None:
        form = f".{_decimals(first)}%"
        front = first["model_results"]["front"]["acc"]
        title += f", accuracy of end {end:{form}}" if front is None else f", accuracy {front:{form}} and {end:{form}}"
    similar = "agrees, CKA, l2" if any(result["cka_frank"] is not None for result in results) else "agrees, l2"
    notes = [f"before, after, ps_inv: accuracy; {similar}: of after, with end"]
    if any(exact_fits(result) for result in results):
        notes.append(f"{EXACT_MARK}: fitted to fewer rows than unknowns, so it says nothing about the networks")
    if any("minus_data" in result.get("identical", {}) for result in results):
        notes.append(
            "minus_data: after minus that of the data themselves, points, on inputs that front cannot tell from them; "
            "error: how far front's activations of these are from those of the images, over their size, on average"
        )
    doubtful = [(result, text) for result in results for text in fit_warnings(result)]
    if doubtful:
        notes.append(f"warning for {len(doubtful)} of {len(results)} stitches, the first: {doubtful[0][1]}")
    settings = varied_settings(results)
    tables = [_aligned([_place(result, settings) | _figures(result) for result in results], settings)]
    lines = [fill(title), *tables, *map(fill, notes)]
    if any(result.get("controls") for result in results) and end is not None:
        for cells in (_between, _beside, _told):
            if any(cells(result) for result in results):
                lines += ["", _aligned([_place(result, settings) | cells(result) for result in results], settings)]
        lines += map(fill, _notes_of_controls(results))
    return "\n".join(lines)


def _place(result: dict[str, Any], settings: Sequence[str]) -> dict[str, str]:
    params = result["params"]
    row = {"front": params["front_layer"] or "output", "end": params["end_layer"] or "output"}
    if FAMILY in settings:
        row["parameters"] = f"{result['parameters']:,}"
    return row | {name: setting_of(SimpleNamespace(**params), name) for name in settings}


def _figures(result: dict[str, Any]) -> dict[str, str]:
    digits, row = _decimals(result), {}
    for stage in ("before", "after", "ps_inv"):
        share = _number(result["model_results"][STAGES[stage].scores]["acc"], 0, f".{digits}%")
        row[stage] = share + EXACT_MARK * (stage in exact_fits(result))
    row["agrees"] = _number(result["m2_sim"]["after"]["same_class_out"], 0, f".{digits}%")
    row |= {"CKA": _number(result["cka_frank"], 0, ".4f"), "l2": _number(result["l2_frank"], 0, ".4f")}
    if "robust" in result:
        row["robust"] = _number(result["robust"]["after"], 0, f".{digits}%")
    if (made := result.get("identical", {})).get("minus_data"):
        row |= {"minus_data": _points(made["minus_data"]), "error": f"{made['relative_error']['mean']:.2f}"}
    return row


def _between(result: dict[str, Any]) -> dict[str, str]:
    """The trained stitch between its two bounds, and its score."""
    row = {"after": _with_interval(result, "after", result["model_results"]["trans"])}
    for control in (FLOOR, CEILING):
        if figures := result.get("controls", {}).get(control):
            made = bool(figures.get("by_construction"))
            row[control] = (
                f"{100 * figures['acc']:.1f}{MADE_MARK}" if made else _with_interval(result, control, figures)
            )
    score = result.get("score") or {}
    return row | {"score": "-" if "reason" in score else score_text(score)}


def _beside(result: dict[str, Any]) -> dict[str, str]:
    """What stitching costs, and the other controls."""
    penalty, controls = result.get("penalty"), result.get("controls", {})
    row = {"penalty": ""}
    if penalty:
        sure = "reason" not in penalty
        row["penalty"] = "{:.1f} ({:.1f} to {:.1f})".format(*(100 * penalty[key] for key in penalty)) if sure else "-"
    for control in (name for name in CONTROLS if name in controls and name not in (FLOOR, CEILING)):
        figures, is_head = controls[control], CONTROLS[control].fit is not None
        if not CONTROLS[control].tells:
            row[control] = _with_interval(result, control, figures) if is_head else f"{100 * figures['acc']:.1f}"
    return row


def _told(result: dict[str, Any]) -> dict[str, str]:
    """What the true labels alone make possible."""
    told = {name: figures for name, figures in result.get("controls", {}).items() if CONTROLS[name].tells}
    return {name: _with_interval(result, name, figures) for name, figures in told.items()}


def _with_interval(result: dict[str, Any], row: str, figures: dict[str, Any]) -> str:
    return f"{100 * figures['acc']:.1f} {interval_text(interval_of(result, row))}"


def _notes_of_controls(results: Sequence[dict[str, Any]]) -> list[str]:
    notes = ["accuracies in % with 95% intervals; penalty: accuracy of end - after, points"]
    if any("score" in result for result in results):
        notes.append("score: (after - untrained) / (self - untrained); -: these are too close to tell")
    if any("reason" in (result.get("penalty") or {}) for result in results):
        notes.append(f"penalty -: void, {FLOOR} fronts do better than end itself")
    controls = {name: figures for result in results for name, figures in result.get("controls", {}).items()}
    for row, figures in controls.items():
        if "each" in figures:
            notes.append(f"{row}: mean and range of {len(figures['each'])} networks")
    if any(one.get("by_construction") for result in results for one in result.get("controls", {}).values()):
        notes.append(f"{MADE_MARK}: end, by construction: this init makes the identity of it")
    return notes


def _aligned(rows: Sequence[dict[str, str]], settings: Sequence[str]) -> str:
    """Rows as a table; a column in which nothing stands is left out."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    kept = [name for name in names if any(row.get(name) for row in rows)]
    right = [name for name in kept if name not in ("front", "end", *settings)] + list(settings)
    return columns_text([{name: row.get(name, "") for name in kept} for row in rows], right=right)


def varied_settings(found: Sequence[dict[str, Any]]) -> list[str]:
    """The options, beside layers, in which results differ."""
    return varied([SimpleNamespace(**result["params"]) for result in found])
