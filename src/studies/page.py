"""A study's page: one HTML file with everything in it."""

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.core.files import atomic_write
from src.studies.charts import LAYERS, sections
from src.studies.frames import StudyResults
from src.studies.table import HEADINGS, key_text

HEADS = {"accuracy_end": "acc. of end", "agreement_after": "agrees", "cka_after": "CKA"}
SHOWN = (
    "accuracy_end",
    "accuracy_before",
    "accuracy_after",
    "accuracy_ps_inv",
    "agreement_after",
    "cka_after",
    "penalty",
)


def write_page(path: Path, found: StudyResults, **about: Any) -> None:
    """Write the page; `about`: name, text of the study file, summary, failures, commands and pictures by name."""
    try:
        jinja2 = importlib.import_module("jinja2")
    except ImportError:
        raise UserError("jinja2 is not installed: pip install -r requirements-studies.txt") from None
    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(source)
    # "<" would end the script element early
    data = json.dumps(table_data(found, about.pop("commands"), about.pop("pictures")), separators=(",", ":"))
    page = template.render(
        **about, data=data.replace("<", "\\u003c"), sections=sections(found), count=len(found.stitches)
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def table_data(
    found: StudyResults, commands: Mapping[str, tuple[str, str]], pictures: Mapping[str, str]
) -> dict[str, Any]:
    """The table for the page's script: columns of texts as numbers of a list, so that 10,000 rows stay small."""
    frame = found.stitches
    keys = [name for name in ("networks", *LAYERS, *found.axes, "seed") if name in frame]
    measures = [name for name in (*SHOWN, *found.controls) if name in frame and frame[name].notna().any()]
    texts: list[list[str] | None] = []
    columns: list[list[Any]] = []
    for name in keys:
        values = [key_text(name, value) if name != "networks" else value for value in frame[name]]
        known = {value: number for number, value in enumerate(dict.fromkeys(values))}
        texts.append(list(known))
        columns.append([known[value] for value in values])
    for name in measures:
        texts.append(None)
        columns.append([None if math.isnan(value) else round(float(value), 4) for value in frame[name]])
    starts, ends = (dict.fromkeys(commands[name][part] for name in frame["name"]) for part in (0, 1))
    for part, known in enumerate((starts, ends)):
        known.update({text: number for number, text in enumerate(known)})
        columns.append([known[commands[name][part]] for name in frame["name"]])
    heads = [
        HEADS.get(name) or HEADINGS.get(name) or name.removeprefix("accuracy_").replace("_", " ")
        for name in (*keys, *measures)
    ]
    shown = {number: pictures[name] for number, name in enumerate(frame["name"]) if name in pictures}
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {
        "heads": heads,
        "texts": texts,
        "rows": rows,
        "commands": list(starts),
        "ends": list(ends),
        "pictures": shown,
    }
