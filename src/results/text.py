"""What the scripts print: tables of text in 80 columns, or one JSON document."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

WIDTH = 80
SMALL = 256  # numbers; larger arrays are left out of JSON
LONG_LABEL = 8  # characters; columns with longer labels get numbers and a legend
_ABSENT = object()


def to_json(record: dict[str, Any]) -> str:
    """A record of built-ins, arrays and frames as one JSON document, numbers in full precision.

    Frames become lists of rows; arrays of more than `SMALL` numbers are left out, and with them what held nothing
    else; NaN and infinity, which JSON does not know, become null. All of it is ASCII, whatever names hold.
    """
    plain = _plain(record)
    return json.dumps({} if plain is _ABSENT else plain, indent=2, allow_nan=False)


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


def health_lines(health: Mapping[str, Any]) -> list[str]:
    """What a comparison's numbers rest on, as `Health` has it, and what makes them doubtful."""
    facts = [f"{health['images']} images", "features {} and {}".format(*health["features"])]
    if health["rank"]:
        least, why = ("at least ", " of fewer images, evenly picked") if health["rank_is_bound"] else ("", "")
        facts.append("rank {}{} and {}{}".format(least, *health["rank"], why))
    if health.get("participation_ratio"):
        facts.append("participation ratio {:.1f} and {:.1f}".format(*health["participation_ratio"]))
    facts.append("dead channels {} and {}".format(*health["dead_channels"]))
    if health["cka_bias"] is not None:
        facts.append(f"biased - debiased CKA {health['cka_bias']:.4f}")
    if health.get("cka_chance") is not None:
        facts.append(f"cka by chance {health['cka_chance']:.4f}")
    return [
        fill(f"{health['view']}: {', '.join(facts)}"),
        *(fill(f"warning: {warning}") for warning in health["warnings"]),
    ]
