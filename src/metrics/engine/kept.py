"""What a grid has gathered and found, as tensors and built-in values, from which one of the same plan goes on.

Nothing is made of a name in a file but the four records of `RECORDS`, which hold values alone.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.text import in_line
from src.metrics.algebra.gram import Begun, GramSums
from src.metrics.algebra.layer import Facts, Layer
from src.metrics.algebra.moments import PairedMoments, Sums
from src.metrics.diagnostics import Diagnostics
from src.metrics.difference import Differences
from src.metrics.engine.grid import Cell, Grid
from src.metrics.registry import METRICS, Metric

RECORDS: dict[str, Any] = {kind.__name__: kind for kind in (Begun, Cell, Diagnostics, Facts, GramSums)}
# what changes in each accumulator while images come; the rows of a layer come beside
FIELDS = {
    Layer: ("n", "filled", "centred", "exponent", "mean", "squares"),
    Sums: ("n", "all_means", "all_products", "shift", "most"),
    PairedMoments: ("all_xy",),
    Differences: ("n", "total", "mean", "squares"),
}
RESULTS = ("facts", "grams", "parts", "unavailable")


def gathered(grid: Grid) -> dict[str, Any]:
    """All that a grid has of the images that it has seen."""
    states = [{name: getattr(one, name) for name in FIELDS[type(one)]} for one in _accumulators(grid)]
    layers = [one for one in _accumulators(grid) if isinstance(one, Layer)]
    # a copy of what is filled: with a view torch writes the whole buffer
    rows = [one.buffer if one.filled == len(one.buffer) else one.buffer[: one.filled].clone() for one in layers]
    results = {name: encoded(getattr(grid, name)) for name in RESULTS}
    return {"seen": grid.seen, "done": grid.done, "states": states, "rows": rows, **results}


def found_of(record: Any) -> dict[tuple[Any, ...], Any]:
    """What a grid had found, of `encoded`; raises UserError for what none finds."""
    found = decoded(record)
    if not isinstance(found, dict) or not all(isinstance(key, tuple) and key for key in found):
        raise UserError("it is nothing that a comparison found")
    for key, value in found.items():
        kinds = {"gram": Begun, "part": float | int | str | dict, "cell": Cell}.get(key[0], Exception)
        if not isinstance(value, kinds) or (isinstance(value, Cell) and not _is_whole(value)):
            raise UserError(f"it holds {in_line(str(key[0]), 20)}, which is nothing that a comparison found")
    return found


def _is_whole(cell: Cell) -> bool:
    tables = cell.values, cell.unavailable, cell.views, cell.health
    if not all(isinstance(table, dict) and all(isinstance(name, str) for name in table) for table in tables):
        return False
    values = all(name in METRICS and _is_value(METRICS[name], value) for name, value in cell.values.items())
    return values and all(isinstance(health, Diagnostics) for health in cell.health.values())


def gathered_bytes(grid: Grid) -> int:
    """How large that is, about."""
    size = 0
    for one in _accumulators(grid):
        tensors = [value for name in FIELDS[type(one)] if isinstance(value := getattr(one, name), Tensor)]
        tensors += [one.buffer[: one.filled]] if isinstance(one, Layer) else []
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return size


@torch.no_grad()
def restore(grid: Grid, record: dict[str, Any]) -> None:
    """Put what `gathered` gave into a fresh grid of the same plan.

    Raises UserError, or KeyError, TypeError, ValueError for what it did not give, and then leaves the grid as it was.
    """
    accumulators = list(_accumulators(grid))
    layers = [one for one in accumulators if isinstance(one, Layer)]
    states = [_state_of(one, values) for one, values in zip(accumulators, record["states"], strict=True)]
    filled = [state["filled"] for one, state in zip(accumulators, states, strict=True) if isinstance(one, Layer)]
    rows = list(record["rows"])
    for layer, count, given in zip(layers, filled, rows, strict=True):
        if not isinstance(given, Tensor) or given.shape != layer.buffer[:count].shape or given.dtype != torch.float32:
            raise UserError("it is of other layers")
    results = {name: decoded(record[name]) for name in RESULTS}
    _check_results(results)
    seen, done = record["seen"], record["done"]
    if (
        type(seen) is not int
        or type(done) is not int
        or not (0 < seen <= grid.n_images and 0 <= done < len(grid.sizes))
    ):
        raise UserError("it is of other images")
    for one, state in zip(accumulators, states, strict=True):
        for name, value in state.items():
            setattr(one, name, value)
    for layer, count, given in zip(layers, filled, rows, strict=True):
        layer.buffer[:count] = given
    for name, value in results.items():
        setattr(grid, name, value)
    grid.seen, grid.done = seen, done


def _check_results(results: dict[str, Any]) -> None:
    facts, grams, parts, unavailable = (results[name] for name in RESULTS)
    sides = isinstance(facts, tuple) and len(facts) == 2 and all(isinstance(side, dict) for side in facts)
    tables = sides and all(isinstance(table, dict) for table in (grams, parts, unavailable))
    if not tables or not all(isinstance(fact, Facts) for side in facts for fact in side.values()):
        raise UserError("it holds nothing that a comparison found")
    sums = all(isinstance(one, GramSums) for several in grams.values() for one in several)
    values = all(isinstance(one, float | int | dict) for several in parts.values() for one in several)
    if not sums or not values or not all(isinstance(why, str) for why in unavailable.values()):
        raise UserError("it holds nothing that a comparison found")


def _accumulators(grid: Grid) -> Any:
    for sides in (grid.layers, grid.spans):
        for layers in sides:
            yield from layers.values()
    yield from grid.sums.values()
    yield from grid.moments.values()
    yield from grid.differences.values()


def _is_value(metric: Metric, value: Any) -> bool:
    """Whether it is what a metric gives: a number, or a table with its one number."""
    if metric.summary:
        return isinstance(value, dict) and isinstance(value.get(metric.summary), float | int)
    return isinstance(value, float | int)


def _state_of(one: Any, values: dict[str, Any]) -> dict[str, Any]:
    """What is to become of an accumulator; raises UserError for what fits no such one."""
    own = {name: getattr(one, name) for name in FIELDS[type(one)]}
    device = next(value.device for value in own.values() if isinstance(value, Tensor))
    state = {}
    for name, before in own.items():
        value = values[name]
        if name == "shift" and isinstance(value, Tensor):  # none before the first image
            fits = value.shape == one.mean.shape
        elif isinstance(before, Tensor):
            fits = isinstance(value, Tensor) and value.shape == before.shape and value.dtype == before.dtype
        else:
            fits = type(value) is type(before)
        if not fits or (name in ("n", "filled") and value < 0):
            raise UserError("it is of other layers")
        state[name] = value.to(device) if isinstance(value, Tensor) else value
    if isinstance(one, Layer) and not state["filled"] <= state["n"] <= len(one.buffer):
        raise UserError("it is of other images")
    return state


def encoded(value: Any) -> Any:
    """A value as tensors, lists, text and numbers."""
    if (name := type(value).__name__) in RECORDS:
        names = getattr(value, "_fields", None) or [field.name for field in fields(value)]
        return {"record": name, "values": [encoded(getattr(value, field)) for field in names]}
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(np.array(value))}
    if isinstance(value, dict):
        return {"items": [[encoded(key), encoded(part)] for key, part in value.items()]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [encoded(part) for part in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, Tensor | str | bool | int | float):
        return value
    raise TypeError(f"{name} is nothing that is kept")


def decoded(value: Any) -> Any:
    """What `encoded` was given; raises KeyError, TypeError or ValueError for what it did not make."""
    if not isinstance(value, dict):
        return value
    if "record" in value:
        return RECORDS[value["record"]](*map(decoded, value["values"]))
    if "array" in value:
        return value["array"].numpy()
    if "items" in value:
        return {decoded(key): decoded(part) for key, part in value["items"]}
    ((kind, parts),) = value.items()
    return {"tuple": tuple, "list": list}[kind](map(decoded, parts))
