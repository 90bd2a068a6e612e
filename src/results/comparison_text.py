"""What is printed of comparisons: values, matrices, intervals, what is more than chance, and differences."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.evaluation.calibration import Calibration
from src.evaluation.certainty import Certainty
from src.evaluation.layer_grid import Comparison
from src.metrics import MEASURES, Cell
from src.metrics.certainty.calibration import LEVEL
from src.metrics.certainty.uncertainty import Difference
from src.metrics.engine.plan import Pair
from src.results.text import columns_text, fill, health_lines, matrix_text

UNPAIRED = "unpaired (mean, and what 5% of pairings pass by chance)"
CALIBRATED = ["method", "value", "threshold", "p", "score"]


def pair_report(
    comparison: Comparison, networks: list[str], certainties: dict[Pair, Certainty]
) -> tuple[list[str], dict[str, Any]]:
    """Lines, a title first, and result for one layer of each network."""
    text, result = comparison_report(comparison.cells[0, 0], certainties.get((0, 0)))
    places = zip(networks, comparison.layers1 + comparison.layers2, strict=True)
    return [
        " and ".join(network if network == layer else f"{network}, {layer}" for network, layer in places),
        text,
    ], result


def grid_report(
    comparison: Comparison, networks: list[str], certainties: dict[Pair, Certainty]
) -> tuple[list[str], dict[str, Any]]:
    """Lines, a title first, and result for every pair of many layers."""
    result = {name: value for name, value in comparison.record().items() if name != "frame"}
    lines = [
        f"{networks[0]} (rows) and {networks[1]} (columns)",
        *(grid_text(comparison, name) for name in comparison.names),
        *doubts_text(comparison, result["refused"], result["warnings"]),
    ]
    if certainties:
        result |= certainty_record(comparison, certainties)
        lines += certainty_lines(comparison, result)
    return lines, result


def comparison_report(cell: Cell, certainty: Certainty | None = None) -> tuple[str, dict[str, Any]]:
    """Text for stdout, a line a measure and what stands behind it, and the same for the result file.

    Raises UserError where there is no value at all.
    """
    if not cell.values:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in cell.unavailable.items()))
    wide = max(12 if certainty else 14, *map(len, cell.views))
    heading = f"{'method':{wide}} {'view':9} {'value':>12}  more alike"
    heading += f"{'95% interval':>17}" * bool(certainty and certainty.intervals)
    heading += f"{'unpaired':>16}" * bool(certainty and certainty.null)
    lines = [heading]
    for name, view in cell.views.items():
        value = f"{cell.number(name):12.6f}" if name in cell.values else f"{'-':>12}"
        line = f"{name:{wide}} {view:9} {value}  {MEASURES[name].more_alike:10}"
        if certainty:
            line += _pair_text(certainty.intervals, name, 17, "[{:.4f}, {:.4f}]")
            line += _pair_text(certainty.null, name, 16, "{:.4f} {:.4f}")  # both may be negative
        lines.append(line.rstrip())
    lines += [fill(f"{name}: no value: {reason}") for name, reason in cell.unavailable.items()]
    record = comparison_record(cell)
    if certainty:
        lines += [fill(f"{name}: none: {reason}") for name, reason in certainty.unavailable.items()]
        lines += how_lines(certainty.how)
        record |= {"intervals": certainty.intervals, "null": certainty.null, "certainty": certainty.how}
    for health in cell.health.values():
        lines += health_lines(asdict(health))
    return "\n".join(lines), record


def _pair_text(known: dict[str, tuple[float, float]], name: str, width: int, form: str) -> str:
    return f"{form.format(*known[name]) if name in known else '':>{width}}" if known else ""


def comparison_record(cell: Cell) -> dict[str, Any]:
    """What a result file says of a comparison."""
    records = {view: asdict(record) for view, record in cell.health.items()}
    return {"values": cell.values, "refused": cell.unavailable, "views": cell.views, "health": records}


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


def certainty_record(comparison: Comparison, certainties: dict[Pair, Certainty]) -> dict[str, Any]:
    """What the result holds of many pairs: frames of `intervals` and `null`, and how they came about.

    A row a method and pair of layers: method, layer1, layer2, and low, high, or mean, threshold.
    """
    record, ends = {}, {"intervals": ["low", "high"], "null": ["mean", "threshold"]}
    for kind, columns in ends.items():
        rows = [
            (name, comparison.layers1[i], comparison.layers2[j], *getattr(certainty, kind)[name])
            for name in comparison.names
            for (i, j), certainty in sorted(certainties.items())
            if name in getattr(certainty, kind)
        ]
        record[kind] = pd.DataFrame(rows, columns=["method", "layer1", "layer2", *columns])
    hows = [certainty.how for certainty in certainties.values()]
    missing = {what: why for certainty in certainties.values() for what, why in certainty.unavailable.items()}
    return record | {"certainty": {key: text for how in hows for key, text in how.items()}, "uncertain": missing}


def certainty_lines(comparison: Comparison, record: dict[str, Any]) -> list[str]:
    """A table a method, with a row a pair of layers: its value, its interval, and what unpaired images give."""
    texts: dict[tuple[str, ...], dict[str, str]] = {}
    forms = {"intervals": ("95% interval", "[{:.4f}, {:.4f}]"), "null": ("unpaired", "{:.4f} {:.4f}")}
    for kind, (heading, form) in forms.items():
        for *place, first, second in record[kind].itertuples(index=False):
            texts.setdefault(tuple(place), {})[heading] = form.format(first, second)
    headings = list(dict.fromkeys(heading for cells in texts.values() for heading in cells))
    tables: dict[str, list[dict[str, str]]] = {}
    for row in comparison.frame().to_dict("records"):
        place = row["method"], row["layer1"], row["layer2"]
        if place in texts:
            cells = {"layer1": row["layer1"], "layer2": row["layer2"], "value": f"{row['value']:.4f}"}
            tables.setdefault(row["method"], []).append(cells | dict.fromkeys(headings, "") | texts[place])
    lines = []
    for name, rows in tables.items():
        lines += [f"\n{name}", columns_text(rows, right=("value", *headings))]
    lines += [fill(f"{what}: none: {why}") for what, why in record["uncertain"].items()]
    return lines + how_lines(record["certainty"])


def how_lines(hows: dict[str, str]) -> list[str]:
    """How the intervals, and what unpaired images give, came about, a line for each way."""
    ways: dict[str, list[str]] = {}
    for what, how in hows.items():
        kind, _, name = what.partition(" of ")
        ways.setdefault(f"{UNPAIRED if kind == 'null' else kind}, {how}", []).append(name)
    return [fill(f"{way}: {', '.join(names)}") for way, names in ways.items()]


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
