"""A study's table: CSV for programs, LaTeX with booktabs for papers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.files import atomic_write
from src.stitching.naming import setting_text
from src.studies.frames import Frame, StudyResults, grouped

# our column -> its heading; shares are printed in per cent
SHARES = {
    "accuracy_before": "before",
    "accuracy_after": "after",
    "accuracy_ps_inv": "least squares",
    "agreement_after": "agrees",
}
NUMBERS = {"cka_after": "CKA", "l2_relative_after": r"rel.\ $\ell_2$"}
HEADINGS = {"front_layer": "front", "end_layer": "end", "low_rank": "rank", "lr": "rate"}
SPECIAL = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "→": r"$\to$"}


def write_tables(found: StudyResults, over: str, folder: Path) -> dict[str, Path]:
    """Write every stitch and comparison, and means with their intervals; returns the files by what they hold."""
    texts: dict[str, tuple[str, str]] = {}
    if len(found.stitches):
        frame = grouped(found, over)
        texts["every stitch"] = "stitches.csv", found.stitches.to_csv(index=False)
        name = "table" if over == "pairs" else f"table-{over}"
        texts[f"means over {over}"] = f"{name}.csv", frame.to_csv(index=False)
        texts["the same in LaTeX"] = f"{name}.tex", to_latex(frame, over)
    if len(found.comparisons):
        texts["every comparison"] = "comparisons.csv", found.comparisons.to_csv(index=False)
    places = {}
    for what, (name, text) in texts.items():
        places[what] = folder / name
        with atomic_write(places[what]) as file:
            file.write(text.encode())
    return places


def to_latex(frame: Frame, over: str) -> str:
    """A table of `grouped` with the rules of booktabs: mean and half of the 95% interval."""
    keys = [str(name) for name in frame.columns[: list(frame.columns).index("n")]]
    controls = {name: name.removeprefix("accuracy_") for name in frame if _is_control(str(name))}
    shares = {name: head for name, head in (SHARES | controls).items() if name in frame}
    numbers = {name: head for name, head in NUMBERS.items() if name in frame}
    heads = [HEADINGS.get(key, key) for key in keys] + ["n"]
    top = [escaped(head.replace("_", " ")) for head in heads]
    top += [rf"{head.replace('_', ' ')} (\%)" for head in shares.values()] + list(numbers.values())
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% means over {over}, with half the width of their 95% intervals by Student's t, from three values on"
        + ", each network left out with its pairs" * (over == "pairs"),
        rf"\begin{{tabular}}{{{'l' * len(keys)}{'r' * (1 + len(shares) + len(numbers))}}}",
        r"\toprule",
        " & ".join(top) + r" \\",
        r"\midrule",
    ]
    for row in frame.to_dict(orient="records"):
        cells = [escaped(key_text(key, row[key])) for key in keys] + [str(row["n"])]
        cells += [_cell(row, name, 100, 1) for name in shares] + [_cell(row, name, 1, 3) for name in numbers]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _is_control(name: str) -> bool:
    return name.startswith("accuracy_") and name not in SHARES and not name.endswith(("_low", "_high"))


def key_text(key: str, value: Any) -> str:
    """What tells rows apart, in a word."""
    if key == "low_rank":
        return "full" if pd.isna(value) else str(int(value))
    if key.endswith("_layer"):
        return value or "output"
    return setting_text(value)


def _cell(row: dict[Any, Any], name: str, scale: float, digits: int) -> str:
    mean, low = row[name], row[f"{name}_low"]
    if np.isnan(mean):
        return "--"
    text = f"{scale * mean:.{digits}f}"
    return text if np.isnan(low) else rf"{text} $\pm$ {scale * (mean - low):.{digits}f}"


def escaped(text: str) -> str:
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def text_lines(frame: Frame, shown: int = 40) -> list[str]:
    """The first rows for a terminal: what tells them apart, and the accuracy after training with its interval."""
    keys = [str(name) for name in frame.columns[: list(frame.columns).index("n")]]
    rows = [[*(HEADINGS.get(key, key) for key in keys), "n", "after", "95% interval"]]
    for row in frame.head(shown).to_dict(orient="records"):
        low, high = row["accuracy_after_low"], row["accuracy_after_high"]
        interval = "" if np.isnan(low) else f"[{100 * low:.1f}, {100 * high:.1f}]"
        rows.append([*(key_text(key, row[key]) for key in keys), str(row["n"]), _percent(row), interval])
    return _aligned(rows) + ([f"and {len(frame) - shown} more rows"] if len(frame) > shown else [])


def _percent(row: dict[Any, Any]) -> str:
    value = row["accuracy_after"]
    return "-" if np.isnan(value) else f"{100 * value:.1f}%"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
