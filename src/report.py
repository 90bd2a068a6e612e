"""What the scripts print: tables of text in 80 columns, or one JSON document."""

import json
import math
import textwrap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from src.results.titles import network_name, stitch_title
from src.stitch_folder import setting_text, varied

WIDTH = 80
SMALL = 256  # numbers; larger arrays are left out of JSON
LONG_LABEL = 8  # characters; columns with longer labels get numbers and a legend
_ABSENT = object()


def to_json(record: dict[str, Any]) -> str:
    """A record of built-ins, arrays and frames as one JSON document, numbers in full precision.

    Frames become lists of rows; arrays of more than `SMALL` numbers are left out, and with them what held nothing
    else; NaN and infinity, which JSON does not know, become null.
    """
    plain = _plain(record)
    return json.dumps({} if plain is _ABSENT else plain, indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return _plain(value.to_dict(orient="records"))
    if isinstance(value, np.ndarray):
        return _plain(value.tolist()) if value.size <= SMALL else _ABSENT
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        items = {str(key): _plain(item) for key, item in value.items()}
        kept = {key: item for key, item in items.items() if item is not _ABSENT}
        return kept if kept or not items else _ABSENT
    if isinstance(value, list | tuple):
        kept = [item for item in map(_plain, value) if item is not _ABSENT]
        return kept if kept or not value else _ABSENT
    return value if value is None or isinstance(value, str | int) else str(value)


def fill(text: str) -> str:
    """A sentence folded at 80 columns, its further lines indented; words such as paths stay whole."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def matrix_text(values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A matrix (rows, columns) with its labels, folded into as many parts as 80 columns ask for.

    No label is cut: columns with long ones get numbers and a legend. "-" stands for NaN.
    """
    numbered = max(map(len, columns)) > LONG_LABEL
    heads = [str(index) for index in range(1, len(columns) + 1)] if numbered else list(columns)
    cells = [[_cell(value) for value in row] for row in values]
    margin = max(map(len, rows))
    lines, start = [], 0
    while start < len(columns):
        width = max(len(text) for texts in (heads[start:], *(row[start:] for row in cells)) for text in texts)
        stop = start + max(1, (WIDTH - margin) // (width + 1))
        lines += [""] * bool(lines)
        for label, texts in zip(("", *rows), (heads, *cells), strict=True):
            lines.append(f"{label:{margin}} " + " ".join(f"{text:>{width}}" for text in texts[start:stop]))
        start = stop
    if numbered:
        lines.append(
            fill("columns: " + ", ".join(f"{index} {name}" for index, name in zip(heads, columns, strict=True)))
        )
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def columns_text(rows: Sequence[dict[str, Any]], *, right: Sequence[str] = (), squeeze: str = "") -> str:
    """A table with a heading, each column as wide as its longest entry, those of `right` aligned to the right.

    Where 80 columns do not suffice, the entries of the column `squeeze` are cut, with "~" at the end; no others.
    """
    table = [dict(zip(rows[0], rows[0], strict=True)), *({key: str(row[key]) for key in row} for row in rows)]
    widths = {key: max(len(row[key]) for row in table) for key in table[0]}
    spare = WIDTH - sum(widths.values()) - len(widths) + 1
    if squeeze and spare < 0:
        widths[squeeze] = max(len(squeeze), widths[squeeze] + spare)
    lines = []
    for row in table:
        cells = [_fitted(row[key], widths[key] if key == squeeze else 0) for key in row]
        padded = [
            f"{cell:>{widths[key]}}" if key in right else f"{cell:{widths[key]}}"
            for key, cell in zip(row, cells, strict=True)
        ]
        lines.append(" ".join(padded).rstrip())
    return "\n".join(lines)


def _fitted(text: str, width: int) -> str:
    return text if not width or len(text) <= width else f"{text[: width - 1]}~"


# what a row of the table is called in a result, and how the keys of its similarity end
ROWS = {name: name for name in ("front", "end", "before", "after", "ps_inv", "ls_train")} | {"after": "trans"}
SIMILAR = {"front": "", "before": "_before", "after": "_frank", "ps_inv": "_ps_inv", "ls_train": "_ls_train"}
EXACT_MARK = "*"


def stitch_table(result: dict[str, Any]) -> str:
    """What still works: a row for each network, and how close each comes to the end network."""
    lines = [fill(stitch_title(result))]
    lines += [f"{'':10} {'accuracy':>9} {'loss':>8} {'relative':>9} {'agrees':>8} {'CKA':>7} {'l2':>9}"]
    end, marked = result["model_results"]["end"]["acc"], exact_fits(result)
    for row, key in ROWS.items():
        if key not in result["model_results"]:
            continue
        scores = result["model_results"][key]
        similar = result["m2_sim"].get("m1" if row == "front" else row, {})
        cka, l2 = (result.get(f"{name}{SIMILAR[row]}") if row in SIMILAR else None for name in ("cka", "l2"))
        relative = None if scores["acc"] is None else scores["acc"] / end if end else float("nan")
        cells = [_number(scores["acc"], 9, ".2%"), _number(scores["loss"], 8, ".4f"), _number(relative, 9, ".4f")]
        cells += [_number(similar.get("same_class_out"), 8, ".2%"), _number(cka, 7, ".4f"), _number(l2, 9, ".4f")]
        lines.append(" ".join([f"{row + EXACT_MARK * (row in marked):10}", *cells]).rstrip())
    lines.append("relative: accuracy / accuracy of end; agrees, CKA, l2: with end")
    for row, fit in marked.items():
        lines.append(
            fill(
                f"{row}{EXACT_MARK}: fitted to {fit['rows']} rows with {fit['unknowns']} unknowns an output, so it "
                "fits whatever it is given, and this row says nothing about the networks"
            )
        )
    return "\n".join([*lines, *(fill(f"warning: {text}") for text in doubts(result))])


def exact_fits(result: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The least-squares maps of a result that had no more rows than unknowns, on the very images that score them."""
    fits = result.get("fits", {})
    return {name: fit for name, fit in fits.items() if name == "ps_inv" and fit["rows"] <= fit["unknowns"]}


def doubts(result: dict[str, Any]) -> list[str]:
    """What makes a stitch's numbers doubtful."""
    params, chance = result["params"], result.get("constant_accuracy")
    after, found = result["model_results"]["trans"]["acc"], []
    if params.get("debug"):
        found.append("--debug: a few batches an epoch, so these are no results")
    if chance is not None and after is not None and params.get("epochs"):
        error = math.sqrt(chance * (1 - chance) / result["images"]["val"])
        if after <= chance + 3 * error:
            found.append(
                f"after training the stitch is right on {after:.1%} of the images, no better than one constant answer "
                f"({chance:.1%}); try --whiten, a higher -lr or another init, -i ps_inv"
            )
    return found


def _number(value: float | None, width: int, form: str) -> str:
    return " " * width if value is None else f"{value:{width}{form}}"


def stitches_table(found: Sequence[dict[str, Any]]) -> str:
    """A row for each of several stitches: where it is, in what it differs, and what still works."""
    first = found[0]
    weights = [network_name(first["weights"][role]) for role in ("front", "end")]
    end = first["model_results"]["end"]["acc"]
    title = f"{weights[0]} -> {weights[1]} ({first['params'].get('dataset') or first['weights']['front']['dataset']})"
    title += "" if end is None else f", accuracy {first['model_results']['front']['acc']:.2%} and {end:.2%}"
    settings = varied_settings(found)
    rows = []
    for result in found:
        params, similar = result["params"], result["m2_sim"]
        row = {"front": params["front_layer"] or "output", "end": params["end_layer"] or "output"}
        row |= {name: setting_text(params[name]) for name in settings}
        row |= {
            stage: _number(result["model_results"][ROWS[stage]]["acc"], 0, ".2%")
            + EXACT_MARK * (stage in exact_fits(result))
            for stage in ("before", "after", "ps_inv")
        }
        row |= {"agrees": _number(similar["after"]["same_class_out"], 0, ".2%")}
        row |= {"CKA": _number(result["cka_frank"], 0, ".4f"), "l2": _number(result["l2_frank"], 0, ".4f")}
        rows.append(row)
    kept = [name for name in rows[0] if any(row[name] for row in rows)]
    text = columns_text(
        [{name: row[name] for name in kept} for row in rows],
        right=("before", "after", "ps_inv", "agrees", "CKA", "l2", *settings),
    )
    notes = ["before, after, ps_inv: accuracy; agrees, CKA, l2: of after, with end"]
    if any(exact_fits(result) for result in found):
        notes.append(f"{EXACT_MARK}: fitted to fewer rows than unknowns, so it says nothing about the networks")
    doubtful = [(result, text) for result in found for text in doubts(result)]
    if doubtful:
        notes.append(f"warning for {len(doubtful)} of {len(found)} stitches, the first: {doubtful[0][1]}")
    return "\n".join([fill(title), text, *map(fill, notes)])


def varied_settings(found: Sequence[dict[str, Any]]) -> list[str]:
    """The options, beside layers, in which results differ."""
    return varied([SimpleNamespace(**result["params"]) for result in found])
