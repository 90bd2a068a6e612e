"""What is printed of the comparison of many layers: matrices, what is more than chance, and differences."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from src.evaluation.calibration import Calibration
from src.evaluation.layer_grid import Comparison
from src.metrics import MEASURES
from src.metrics.certainty.calibration import LEVEL
from src.metrics.certainty.uncertainty import Difference
from src.results.text import columns_text, fill, matrix_text

CALIBRATED = ["method", "value", "threshold", "p", "score"]


def versus_lines(spec: str, layer: str, differences: dict[str, Difference | str]) -> list[str]:
    """A row a method: the difference to the third network's layer, with its interval and p."""
    lines = ["", fill(f"minus the same with {spec}, {layer}:")]
    rows = [
        {
            "method": name,
            "difference": f"{difference.value:.4f}",
            "95% interval": f"[{difference.low:.4f}, {difference.high:.4f}]",
            "p": f"{difference.p:.4f}",
            "how": difference.how,
        }
        for name, difference in differences.items()
        if not isinstance(difference, str)
    ]
    if rows:
        lines.append(columns_text(rows, right=("difference", "95% interval", "p")))
    return lines + [fill(f"{name}: none: {reason}") for name, reason in differences.items() if isinstance(reason, str)]


def calibration_record(calibration: Calibration, *, single: bool) -> dict[str, Any]:
    """What the result holds: of a pair {metric: threshold, p, score}; of many a frame, and of each grid as a whole."""
    about = {"draws": calibration.draws, "images": calibration.images, "refused": calibration.unavailable}
    if single:
        values = {name: asdict(grid.cells[0, 0]) for name, grid in calibration.grids.items()}
        return values | {"how": about}
    return {"frame": calibration.frame(), "grid": calibration.whole(), "how": about}


def calibration_lines(calibration: Calibration, *, single: bool) -> list[str]:
    """What is more than chance: of a pair a row a metric; of many the scores of all cells, and of the grid."""
    images, draws = calibration.images, calibration.draws
    lines = ["", fill(f"against {draws} random pairings of {images} images, at 5%:")]
    if single:
        rows = [row | {"p": f"{row['p']:.4f}"} for row in calibration.frame().to_dict("records")]
        cells = [
            {key: f"{row[key]:.4f}" if isinstance(row[key], float) else row[key] for key in CALIBRATED} for row in rows
        ]
        lines.append(columns_text(cells, right=CALIBRATED[1:]))
    for name, grid in calibration.grids.items() if not single else ():
        table = np.full((len(calibration.layers1), len(calibration.layers2)), np.nan)
        for cell, calibrated in grid.cells.items():
            table[cell] = calibrated.score
        lines += [f"\n{name}, score", matrix_text(table, calibration.layers1, calibration.layers2)]
        above = sum(calibrated.p <= LEVEL for calibrated in grid.cells.values())
        lines.append(f"{above} of {len(grid.cells)} pairs are more alike than by chance, each for itself")
        for what, calibrated in (("best", grid.best), ("mean", grid.mean)):
            lines.append(
                f"the {what} of all: {calibrated.value:.4f}, threshold {calibrated.threshold:.4f}, "
                f"p {calibrated.p:.4f}, score {calibrated.score:.4f}"
            )
    lines += [fill(f"{name}: not calibrated: {reason}") for name, reason in calibration.unavailable.items()]
    note = "score: 0 at the threshold and below, 1 for equal representations"
    return [*lines, fill(note + "; that of the best knows that it was chosen" * (not single))]


def grid_text(comparison: Comparison, name: str) -> str:
    """A metric's matrix, and how often a layer is most similar to the layer of its own name."""
    table, layers = comparison.table(name), (comparison.layers1, comparison.layers2)
    metric = MEASURES[name]
    heading = fill(f"{name}: {metric.meaning}; {metric.more_alike} means more alike")
    lines = [f"\n{heading}", matrix_text(table, *layers)]
    if layers[0] == layers[1] and not np.isnan(table).any():
        best = table.argmax(1) if metric.higher_is_better else table.argmin(1)
        hits = int((best == np.arange(len(table))).sum())
        lines.append(f"{hits} of {len(table)} layers are most similar to their namesake")
    return "\n".join(lines)


def doubts_text(comparison: Comparison, refused: pd.DataFrame, warnings: pd.DataFrame) -> list[str]:
    """One line for each method about pairs without a value, and one for each kind of warning."""
    lines = []
    for name, rows in refused.groupby("method", sort=False):
        first = rows.iloc[0]
        lines.append(
            f"{name}: no value for {len(rows)} of {len(comparison.cells)} pairs; "
            f"{first['layer1']} and {first['layer2']}: {first['reason']}"
        )
    if len(warnings):
        first = warnings.iloc[0]
        pairs = len(warnings[["layer1", "layer2"]].drop_duplicates())
        lines.append(
            f"warnings for {pairs} pairs (all in the result); {first['layer1']} and {first['layer2']}: "
            f"{first['warning']}"
        )
    return [fill(line) for line in lines]
