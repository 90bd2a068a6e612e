"""Every layer of one network compared with every layer of another, in as few passes as memory allows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, fx, nn

from src.activations import BATCH_SIZE, feed
from src.cut import check_layers, heads, layer_names
from src.dataset import Split
from src.frozen import freeze
from src.metrics import METRICS
from src.metrics.many import ManyPairs, Shape, bytes_needed, plan_pair
from src.progress import bar

ALL = "all"
Tile = tuple[list[int], list[int]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grid:
    """Tables {metric: (layers1, layers2)}, NaN where a pair has no value, with reasons and doubts by pair.

    refused: rows of method, layer1, layer2, reason. warnings: rows of layer1, layer2, warning.
    """

    layers1: list[str]
    layers2: list[str]
    tables: dict[str, np.ndarray]
    refused: pd.DataFrame
    warnings: pd.DataFrame

    def frame(self) -> pd.DataFrame:
        """A row for each method and pair of layers: method, layer1, layer2, value."""
        rows = [
            (name, one, other, float(table[i, j]))
            for name, table in self.tables.items()
            for i, one in enumerate(self.layers1)
            for j, other in enumerate(self.layers2)
        ]
        return pd.DataFrame(rows, columns=["method", "layer1", "layer2", "value"])


def choose_layers(model: nn.Module, text: str) -> list[str]:
    """Layers that a comma list names, or for "all" each that runs and holds no other layer, as nearly as known in
    the order in which they run. Raises ValueError for a layer that the model does not have."""
    if text == ALL:
        names = [name for name in layer_names(model) if name and not any(model.get_submodule(name).children())]
        return _in_order(model, names)
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if len(names) > 1 and "" in names:
        raise ValueError(f"an empty name among the layers {text!r}")
    check_layers(model, names)
    return names


def _in_order(model: nn.Module, names: list[str]) -> list[str]:
    part = heads(model, names)
    if not isinstance(part, fx.GraphModule):
        return names
    nodes = {node: position for position, node in enumerate(part.graph.nodes)}
    outputs: Any = next(node for node in nodes if node.op == "output").args[0]
    return [name for _, name in sorted((nodes[output], name) for output, name in zip(outputs, names, strict=True))]


def layer_label(name: str) -> str:
    """What the whole network, whose name as a layer is empty, is called in tables."""
    return name or "output"


def shapes_of(part: nn.Module, sample: Tensor) -> list[Shape]:
    """Shape of one image's output of each layer."""
    with torch.no_grad():
        return [tuple(output.shape[1:]) for output in part(sample)]


def compare_layers(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[list[str], list[str]],
    sample: Tensor,
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    group: int | None = None,
    batch_size: int = BATCH_SIZE,
    memory: float = 4e9,
    tell: Callable[[str], None] = lambda text: None,
) -> Grid:
    """Compare each of the first network's layers with each of the second's by the named metrics.

    `sample` is a batch of blank images. At most about `memory` bytes are held at once, unless a single pair needs
    more: layers are then taken by blocks, with a pass over the images for each pair of blocks, and `tell` hears of it.
    Raises ValueError where a metric can compare no pair at all.
    """
    shapes1, shapes2 = (shapes_of(heads(net, chosen), sample) for net, chosen in zip(networks, layers, strict=True))
    _refuse_the_impossible(names, view, len(split), shapes1, shapes2, group)
    work = _Work(networks, layers, (shapes1, shapes2), split, view, group, batch_size)
    passes = work.passes(list(dict.fromkeys(names)), memory)
    tell(work.plan_in_words(passes))
    tables = {name: np.full((len(shapes1), len(shapes2)), np.nan) for name in dict.fromkeys(names)}
    refused, warnings = [], []
    labels = [layer_label(name) for name in layers[0]], [layer_label(name) for name in layers[1]]
    for number, (some, tile) in enumerate(passes, start=1):
        pairs, parts = work.compare(some, tile, f"pass {number} of {len(passes)}" if len(passes) > 1 else "comparing")
        for name, part in parts.items():
            tables[name][np.ix_(*tile)] = part
        rows, columns = _picked(labels, tile)
        refused += [(name, rows[i], columns[j], why) for (name, i, j), why in pairs.refused.items()]
        warnings += [(rows[i], columns[j], text) for (i, j), texts in pairs.warnings.items() for text in texts]
    return Grid(
        *labels,
        tables,
        pd.DataFrame(refused, columns=["method", "layer1", "layer2", "reason"]),
        pd.DataFrame(warnings, columns=["layer1", "layer2", "warning"]),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be compared, and how it is cut into passes over the images."""

    networks: tuple[nn.Module, nn.Module]
    layers: tuple[list[str], list[str]]
    shapes: tuple[list[Shape], list[Shape]]
    split: Split
    view: str | None
    group: int | None
    batch_size: int

    def needed(self, names: Sequence[str], tile: Tile) -> int:
        """Bytes that a pass over these pairs holds."""
        return bytes_needed(names, self.view, len(self.split), *_picked(self.shapes, tile), self.group)

    def passes(self, names: list[str], memory: float) -> list[tuple[list[str], Tile]]:
        """Metrics and pairs of layers of each pass: all in one if it fits.

        If not, the metrics with sums of products for every pair go apart: they would cut the layers, whose features
        the others share, into tiles as small as their own.
        """
        whole = list(range(len(self.layers[0]))), list(range(len(self.layers[1])))
        by_pair = [name for name in names if METRICS[name].needs == "moments"]
        kinds = [names]
        if self.needed(names, whole) > memory:
            kinds = [kind for kind in ([name for name in names if name not in by_pair], by_pair) if kind]
        return [
            (kind, tile)
            for kind in kinds
            for tile in _tiles(whole, lambda rows, columns, kind=kind: self.needed(kind, (rows, columns)), memory)
        ]

    def plan_in_words(self, passes: list[tuple[list[str], Tile]]) -> str:
        counts = f"{len(self.layers[0])} x {len(self.layers[1])} pairs of layers, {len(self.split)} images"
        size = f"up to {max(self.needed(*one) for one in passes) / 1e9:.1f} GB"
        if len(passes) == 1:
            return f"{counts}: one pass, {size}"
        remedy = "more --memory or a --group-at makes it fewer"
        return f"{counts}: {len(passes)} passes by blocks of layers, {size} each; {remedy}"

    def compare(self, names: list[str], tile: Tile, title: str) -> tuple[ManyPairs, dict[str, np.ndarray]]:
        """Run one pass."""
        device, (shapes1, shapes2) = self.split.device, _picked(self.shapes, tile)
        pairs = ManyPairs(
            names,
            self.view,
            n_images=len(self.split),
            shapes_x=shapes1,
            shapes_y=shapes2,
            group=self.group,
            device=device,
        )
        parts = [
            freeze(heads(*pair)).to(device) for pair in zip(self.networks, _picked(self.layers, tile), strict=True)
        ]
        feed(parts, self.split, pairs.update, batch_size=self.batch_size, title=title)
        with bar(pairs.steps, "inner products", unit="block") as progress:
            return pairs, pairs.tables(on_block=progress.update)


def _picked(sides: tuple[list[T], list[T]], tile: Tile) -> tuple[list[T], list[T]]:
    return [sides[0][i] for i in tile[0]], [sides[1][j] for j in tile[1]]


def _refuse_the_impossible(
    names: Sequence[str], view: str | None, n: int, shapes1: list[Shape], shapes2: list[Shape], group: int | None
) -> None:
    """Raise ValueError, before any work, for a metric that can compare none of the pairs."""
    plans = [plan_pair(names, view, n, one, other, group) for one in shapes1 for other in shapes2]
    for name in names:
        if all(name in plan.refused for plan in plans):
            raise ValueError(plans[0].refused[name])


def _tiles(tile: Tile, needed: Callable[[list[int], list[int]], int], memory: float) -> Iterator[Tile]:
    """Cut a grid into tiles that need at most so much memory, halving by need the side that needs more."""
    rows, columns = tile
    if needed(rows, columns) <= memory or len(rows) == len(columns) == 1:
        yield tile
        return
    by_row = [needed([i], columns[:1]) for i in rows]
    by_column = [needed(rows[:1], [j]) for j in columns]
    if len(columns) == 1 or (len(rows) > 1 and sum(by_row) >= sum(by_column)):
        cut = _half(by_row)
        halves = (rows[:cut], columns), (rows[cut:], columns)
    else:
        cut = _half(by_column)
        halves = (rows, columns[:cut]), (rows, columns[cut:])
    for half in halves:
        yield from _tiles(half, needed, memory)


def _half(weights: list[int]) -> int:
    """Where to cut a list, both parts kept non-empty, so that their sums are as equal as can be."""
    sums = np.cumsum(weights)
    return 1 + int(np.argmin(np.abs(2 * sums[:-1] - sums[-1])))
