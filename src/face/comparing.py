"""Two representations compared, from Python."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from src.core.config import MEMORY, choose_device
from src.core.errors import UserError
from src.core.text import close_to, visible
from src.cutting.layout import ASKABLE
from src.dataset import Split
from src.dataset.feature_files import features_of
from src.evaluation.calibration import calibrate as calibrate_layers
from src.evaluation.certainty import certainty_of
from src.evaluation.layer_grid import compare_layers
from src.face.arrays import array_of
from src.metrics import MEASURES
from src.metrics.engine.grid import VIEWS
from src.metrics.own import Function, in_table
from src.networks.feature_networks import FeaturePair, Side, layouts_in, open_features, pair_of_files
from src.results.comparison_text import calibration_lines, calibration_record, grid_report, pair_report
from src.results.text import fill
from src.results.titles import network_names

PLACE = ["method", "layer1", "layer2"]
LAYOUT = 'layout="tokens"'


@dataclass(frozen=True, slots=True, repr=False)
class Compared:
    """What a comparison gives; it prints as the table of compare_nets.py.

    Of one pair of layers: values {metric: number, or dict of arrays for ps_inv and corr}, refused {metric: why there is
    no value}, intervals {metric: (low, high)}, null {metric: (mean, threshold)}, calibrated {metric: {threshold, p,
    score}}, health {view: what stands behind its numbers, `warnings` among it}. Of several pairs the same as frames, a
    row each pair; values are then {metric: frame (layers of x, layers of y)}. What was not asked for is empty.
    record: all that a result file of compare_nets.py holds of it.
    """

    text: str
    record: dict[str, Any]

    def __repr__(self) -> str:
        return self.text

    @property
    def values(self) -> dict[str, Any]:
        if "values" in self.record:
            return self.record["values"]
        layers = {"index": self.record["layers1"], "columns": self.record["layers2"]}
        return {
            str(name): rows.pivot(index="layer1", columns="layer2", values="value").reindex(**layers)
            for name, rows in self.record["frame"].groupby("method", sort=False)
        }

    @property
    def refused(self) -> Any:
        return self.record["refused"]

    @property
    def intervals(self) -> Any:
        return self.record.get("intervals", {})

    @property
    def null(self) -> Any:
        return self.record.get("null", {})

    @property
    def calibrated(self) -> dict[str, Any]:
        return self.record.get("calibrated", {})

    @property
    def health(self) -> Any:
        return self.record["health"] if "health" in self.record else self.record["warnings"]

    def frame(self) -> pd.DataFrame:
        """A row a metric and pair of layers: method, layer1, layer2, value; and where they were asked for low, high (of
        the interval), null_mean, null_threshold, threshold, p and score (of the calibration)."""
        frame, only = self.record["frame"], {}
        if "values" in self.record:
            only = {"layer1": frame["layer1"].iloc[0], "layer2": frame["layer2"].iloc[0]}
        for found, columns in (
            (self.intervals, ["low", "high"]),
            (self.null, ["null_mean", "null_threshold"]),
            (self._calibration(), ["threshold", "p", "score"]),
        ):
            if len(found):
                rows = [(name, *only.values(), *values) for name, values in found.items()] if only else found.to_numpy()
                frame = frame.merge(pd.DataFrame(rows, columns=[*PLACE, *columns]), on=PLACE, how="left")
        return frame

    def _calibration(self) -> Any:
        columns = ["threshold", "p", "score"]
        if "frame" in self.calibrated:
            return self.calibrated["frame"][[*PLACE, *columns]]
        return {name: [found[key] for key in columns] for name, found in self.calibrated.items() if name != "how"}


def compare(
    x: Any,
    y: Any,
    methods: str | Function | Sequence[str | Function] = "cka",
    *,
    view: str | None = None,
    group_at: int | None = None,
    intervals: bool = False,
    permutations: int = 0,
    calibrate: int | bool = False,
    layout: str | tuple[str | None, str | None] | None = None,
    memory: float = MEMORY / 1e9,
    device: str = "auto",
    on_message: Callable[[str], None] = lambda line: None,
) -> Compared:
    """Compare two representations of the same images, as compare_nets.py does.

    x, y: an array, images first: (n, features), maps (n, c, h, w), or with `layout` tokens (n, t, c) or channels_last
    (n, h, w, c); of numpy, torch or anything with `__array__`. Or a mapping of such arrays, a layer each; `ids`,
    `labels` and `output` (logits) among them mean what they mean in a file. Or the path of a file or folder of them.
    Row i of x and of y is of the same image, unless both have ids. Any real type; computed with in float32.
    methods: names of metrics, docs/comparing.md has them all; FILE.py:FUNCTION; or functions of two float64 matrices
    (rows, features) that give a number. More means more alike, unless a function's attribute `better` is "lower".
    view: "images" or "channels", None for each one's own. group_at: images of a group. intervals: 95%, over images.
    permutations, calibrate: random pairings; True is 200. layout: of both sides, or of each. memory: GB of activations
    held at once. on_message hears how far it is.
    Raises UserError, a ValueError of one line, for what cannot be compared, and where no metric has a value.
    Source: of each metric its function in src/metrics names its paper.
    """
    sides = [_side(value, name, _of_side(layout, number)) for number, (value, name) in enumerate(((x, "x"), (y, "y")))]
    pair = pair_of_files((str(sides[0][0].path), str(sides[1][0].path)), sides)
    split = pair.split("val", device=choose_device(device))
    asked = {"view": view, "group_at": group_at, "intervals": intervals, "permutations": permutations}
    several = [methods] if isinstance(methods, str) or callable(methods) else list(methods)
    with in_table(several) as names:
        _check(names, view, group_at, sure=intervals or permutations > 0)
        return _measured(pair, split, names, **asked, calibrate=calibrate, memory=1e9 * memory, tell=on_message)


def _measured(
    pair: FeaturePair,
    split: Split,
    methods: list[str],
    *,
    view: str | None,
    group_at: int | None,
    intervals: bool,
    permutations: int,
    calibrate: int | bool,
    memory: float,
    tell: Callable[[str], None],
) -> Compared:
    """Every pair of layers compared by metrics that are in the table, and what is said of it."""
    notes = [f"note: {line}" for line in pair.notes if any(file and file.ids for file in pair.files)]

    def hear(line: str) -> None:
        notes.extend([line] * line.startswith("note:"))
        tell(line)

    networks = tuple(side.network for side in pair.networks)
    layers = tuple(list(file.layers) for file in pair.files if file)
    given: tuple[Any, Any, Any, Any] = networks, layers, pair.sample, split
    how: dict[str, Any] = {"view": view, "memory": memory}
    comparison = compare_layers(*given, methods, group=group_at, on_message=hear, **pair.classes_known, **how)
    certainties = {}
    if intervals or permutations:
        valued = {place: list(cell.values) for place, cell in comparison.cells.items()}
        certainties = certainty_of(*given, valued, with_intervals=intervals, permutations=permutations, **how)
    single = len(comparison.cells) == 1
    names = network_names([network.facts() for network in pair.networks])
    (title, *lines), record = (pair_report if single else grid_report)(comparison, names, certainties)
    record["frame"] = comparison.frame()
    if calibrate:
        draws = None if calibrate is True else calibrate
        found = calibrate_layers(*given, methods, draws=draws, on_message=hear, **how)
        lines += calibration_lines(found, single=single)
        record["calibrated"] = calibration_record(found, single=single)
    title = fill(f"{title} ({len(split)} images)")
    return Compared(visible("\n".join([title, *lines, *map(fill, dict.fromkeys(notes))])), record)


def _check(methods: Sequence[str], view: str | None, group_at: int | None, *, sure: bool) -> None:
    for name in methods:
        if name not in MEASURES:
            raise UserError(
                f"unknown metric {name!r}{close_to(name, MEASURES)}; known are {', '.join(sorted(MEASURES))}"
            )
    if not methods:
        raise UserError("no metric is named, such as cka")
    if view not in (None, *VIEWS):
        raise UserError(f"unknown view {view!r}; choose images or channels, or None for each metric's own")
    if sure and group_at is not None:
        raise UserError("intervals and permutations exclude group_at: they are of all images together")


def _of_side(layout: str | tuple[str | None, str | None] | None, number: int) -> str | None:
    asked = layout[number] if isinstance(layout, tuple) else layout
    if asked not in (None, *ASKABLE):
        raise UserError(f"unknown layout {asked!r}; choose from {', '.join(ASKABLE)}")
    return asked


def _side(value: Any, called: str, layout: str | None) -> Side:
    """An array, a mapping of arrays, or what a path names, with the layouts of its layers."""
    if isinstance(value, str | Path):
        return open_features(str(value))
    arrays = value if isinstance(value, Mapping) else {called: value}
    file = features_of({str(name): array_of(array, f"{called}, {name}") for name, array in arrays.items()}, called)
    return file, layouts_in(file, layout, called, LAYOUT)
