"""A study's page: one HTML file with everything in it."""

import importlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.core.files import atomic_write
from src.studies import curves, maps
from src.studies.drawing import drawing
from src.studies.frames import LAYERS, StudyResults
from src.studies.table import heading, key_text, scale, unit

SEVERAL = re.compile(r"#rows=(\d+,[\d,]+)")
SHOWN = (
    "accuracy_end",
    "accuracy_before",
    "accuracy_after",
    "accuracy_ps_inv",
    "agreement_after",
    "cka_after",
    "penalty",
)


def write_page(path: Path, results: StudyResults, **about: Any) -> None:
    """Write the page; `about`: name, text of the study file, summary, failures, commands and pictures by name."""
    try:
        jinja2 = importlib.import_module("jinja2")
    except ImportError:
        raise UserError("jinja2 is not installed: pip install -r requirements-studies.txt") from None
    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(source)
    # "<" would end the script element early
    table, parts = table_data(results, about.pop("commands"), about.pop("pictures")), sections(results)
    data = json.dumps(table | {"points": with_points(parts)}, separators=(",", ":")).replace("<", "\\u003c")
    page = template.render(**about, data=data, sections=parts, count=len(results.stitches))
    with atomic_write(path) as file:
        file.write(page.encode())


def sections(results: StudyResults) -> list[dict[str, Any]]:
    """The parts of the page that have charts: title, note, and charts with their titles."""
    parts = []
    with drawing():
        if len(results.stitches):
            parts += [curves.by_layer(results), curves.by_rank(results), maps.by_layers(results)]
        parts += [maps.by_metrics(results), maps.by_networks(results)]
    return [part for part in parts if part["charts"]]


def with_points(parts: list[dict[str, Any]]) -> list[str]:
    """Number the lists of rows that marks lead to, in place: each stands once in the page. Returns the lists."""
    known: dict[str, int] = {}
    for chart in (chart for part in parts for chart in part["charts"]):
        chart["svg"] = SEVERAL.sub(lambda rows: f"#point={known.setdefault(rows[1], len(known))}", chart["svg"])
    return list(known)


def table_data(
    found: StudyResults, commands: Mapping[str, tuple[str, str]], pictures: Mapping[str, str]
) -> dict[str, Any]:
    """The table for the page's script: columns of texts as numbers of a list, so that 10,000 rows stay small."""
    frame = found.stitches
    keys = [name for name in ("networks", *LAYERS, *found.axes, "seed") if name in frame]
    measures = [name for name in (*SHOWN, *found.controls) if name in frame and frame[name].notna().any()]
    texts: list[Any] = []
    columns: list[list[Any]] = []
    for name in keys:
        known, numbers = _numbered([key_text(name, value) for value in frame[name]])
        texts.append(known)
        columns.append(numbers)
    digits = [2 if unit(name) else 4 for name in measures]
    for name, places in zip(measures, digits, strict=True):
        columns.append([None if math.isnan(value) else round(scale(name) * value, places) for value in frame[name]])
    (starts, first), (ends, last) = (_numbered([commands[name][part] for name in frame["name"]]) for part in (0, 1))
    return {
        "heads": [heading(name) for name in (*keys, *measures)],
        "texts": [*texts, *[None] * len(measures)],
        "digits": [*[0] * len(keys), *digits],
        "rows": [list(row) for row in zip(*columns, first, last, strict=True)],
        "commands": starts,
        "ends": ends,
        "pictures": {number: pictures[name] for number, name in enumerate(frame["name"]) if name in pictures},
    }


def _numbered(values: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text once, and for each value its place among these."""
    known = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return list(known), [known[value] for value in values]
