"""A study's table: CSV for programs, LaTeX with booktabs for papers."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import atomic_write
from src.results.text import columns_text
from src.stitching.naming import setting_text
from src.studies.frames import ASKED, ENDS, LAYERS, NETWORKS, Frame, StudyResults
from src.studies.means import FEW, grouped, grouped_comparisons

# what tables and charts call our columns; an accuracy is called after its stage or control, any other as it is
HEADINGS = {
    "front_layer": "front layer",
    "end_layer": "end layer",
    "layer1": "layer 1",
    "layer2": "layer 2",
    "method": "metric",
    "low_rank": "rank",
    "lr": "learning rate",
    "agreement_after": "agrees",
    "cka_after": "CKA",
    "l2_relative_after": "relative l2",
}
UNITS = {"accuracy": "%", "agreement": "%", "penalty": "points"}  # of columns that begin so; they are shares
NAMED = 12  # networks, in a caption
SPECIAL = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "→": r"$\to$"}


def unit(column: str) -> str:
    """The unit in which people read a column: %, points of it, or none."""
    return UNITS.get(column.partition("_")[0], "")


def scale(column: str) -> int:
    return 100 if unit(column) else 1


def heading(column: str) -> str:
    """What stands above a column, with its unit."""
    word = HEADINGS.get(column, column.removeprefix("accuracy_"))
    return f"{word} ({unit(column)})" if unit(column) else word


def measure(column: str) -> str:
    """What a column measures, for the axis of a chart that says otherwise of which stage it is."""
    return "accuracy (%)" if column.startswith("accuracy_") else heading(column)


def share_text(share: float) -> str:
    return f"{100 * share:.2f}%"


def layers_text(front: str, end: str) -> str:
    front, end = (layer or "output" for layer in (front, end))
    return front if front == end else f"{front} \N{RIGHTWARDS ARROW} {end}"


def label(names: Sequence[str], values: Sequence[Any]) -> str:
    """Layers, and options with their values, in words; flags are there or not."""
    pairs = dict(zip(names, values, strict=True))
    parts = [layers_text(*(pairs.pop(name) for name in LAYERS))] if LAYERS[0] in pairs else []
    for name, value in pairs.items():
        if isinstance(value, bool | np.bool_):
            parts += [heading(name)] * bool(value)
        else:
            parts.append(f"{heading(name)} {key_text(name, value)}")
    return ", ".join(parts)


def write_tables(results: StudyResults, over: str, folder: Path) -> dict[str, Path]:
    """Write every stitch and comparison, and means with their intervals; returns the files by what they hold."""
    texts: dict[str, tuple[str, str]] = {}
    name = "table" if over == "pairs" else f"table-{over}"
    parts = []
    if len(results.stitches):
        frame = grouped(results, over)
        texts["every stitch"] = "stitches.csv", results.stitches.to_csv(index=False)
        texts[f"means over {over}"] = f"{name}.csv", frame.to_csv(index=False)
        parts.append(to_latex(frame, caption(results.stitches, ENDS, over)))
    if len(results.comparisons):
        texts["every comparison"] = "comparisons.csv", results.comparisons.to_csv(index=False)
        parts.append(to_latex(grouped_comparisons(results, over), caption(results.comparisons, NETWORKS, over)))
    texts["the same in LaTeX"] = f"{name}.tex", "\n".join(parts)
    places = {}
    for what, (name, text) in texts.items():
        places[what] = folder / name
        with atomic_write(places[what]) as file:
            file.write(text.encode())
    return places


def write_frame(frame: Frame, path: Path) -> Path:
    """Write a frame as CSV; returns the path."""
    with atomic_write(path) as file:
        file.write(frame.to_csv(index=False).encode())
    return path


def caption(frame: Frame, ends: Sequence[str], over: str) -> str:
    """What a table holds: over what its means are, and which networks; `ends` are the columns that name these."""
    names = list(dict.fromkeys(name for end in ends for name in frame[end]))
    pairs = frame["networks"].nunique()
    text = f"{pairs} {'pair' if pairs == 1 else 'pairs'} of the networks {', '.join(names[:NAMED])}"
    text += f" and {len(names) - NAMED} more" * (len(names) > NAMED)
    if over == "pairs":
        text = f"Means over {text}; in brackets 95% intervals, each network left out with its pairs"
    elif "seed" in frame:
        text = f"Means over {frame['seed'].nunique()} seeds, of {text}; in brackets 95% intervals"
    else:
        return f"Of {text}"
    return f"{text}, where there are at least {FEW}"


def to_latex(frame: Frame, caption: str) -> str:
    """A table of `grouped` with the rules of booktabs: means, and their 95% intervals in brackets."""
    keys, values = columns_of(frame)
    if importlib.util.find_spec("jinja2") is None:  # pandas writes LaTeX by it
        raise UserError("jinja2 is not installed: pip install -r requirements-studies.txt")
    texts = {escaped(heading(key)): [escaped(key_text(key, value)) for value in frame[key]] for key in keys}
    texts["n"] = frame["n"].astype(str)
    for name in values:
        texts[escaped(heading(name))] = [_cell(row, name) for row in frame.to_dict(orient="records")]
    table = pd.DataFrame(texts).style.hide(axis="index")
    style = {"column_format": "l" * len(keys) + "r" * (1 + len(values)), "hrules": True}
    return "% needs \\usepackage{booktabs}\n" + table.to_latex(
        **style, caption=escaped(caption), position_float="centering"
    )


def columns_of(frame: Frame) -> tuple[list[str], list[str]]:
    """The columns of `grouped` that tell rows apart, and those that are means."""
    names = [str(name) for name in frame]
    place = names.index("n")
    return names[:place], [name for name in names[place + 1 :] if not name.endswith(("_low", "_high"))]


def key_text(key: str, value: Any) -> str:
    """What tells rows apart, in a word."""
    if key == "low_rank":
        return "full" if pd.isna(value) else str(int(value))
    if key.endswith("_layer"):
        return value or "output"
    if key in ASKED and pd.isna(value):
        return "usual"
    return setting_text(value)


def _cell(row: dict[Any, Any], name: str) -> str:
    """A mean and its interval, in the column's unit."""
    if np.isnan(row[name]):
        return "--"
    digits = 1 if unit(name) else 3
    mean, low, high = (f"{scale(name) * row[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return mean if np.isnan(row[f"{name}_low"]) else f"{mean} [{low}, {high}]"


def escaped(text: str) -> str:
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def text_lines(frame: Frame, shown: int = 40) -> list[str]:
    """The first rows for a terminal: what tells them apart, and the accuracy after training with its interval."""
    keys, _ = columns_of(frame)
    rows = []
    for row in frame.head(shown).to_dict(orient="records"):
        mean, _, ends = _cell(row, "accuracy_after").partition(" ")
        texts = {heading(key): key_text(key, row[key]) for key in keys}
        rows.append(texts | {"n": row["n"], heading("accuracy_after"): mean, "95% interval": ends})
    more = [f"and {len(frame) - shown} more rows"] if len(frame) > shown else []
    return [columns_text(rows, right=("n", heading("accuracy_after"))), *more]
