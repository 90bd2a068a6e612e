"""Every layer of one network compared with every layer of another, in as few passes as memory allows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from src.core.config import MEMORY
from src.core.errors import UserError
from src.core.precision import full_precision
from src.core.progress import bar
from src.cutting.channel_axis import Output, find_outputs, layout_warnings, layouts_of, require_fit
from src.cutting.freeze import freeze
from src.cutting.parts import heads
from src.cutting.structure import no_logits
from src.dataset import Split
from src.evaluation.kept_passes import Keep, KeptPass
from src.evaluation.passes import Head, batch_of, feed
from src.metrics import FUNCTIONAL, METRICS, Cell, Grid
from src.metrics.algebra.linalg import float64_device
from src.metrics.engine.plan import GridPlan, Pair, plan_grid, require_possible

Tile = tuple[list[int], list[int]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What every pair of layers gives: {(i, j): cell} for the i-th of layers1 and the j-th of layers2."""

    layers1: list[str]
    layers2: list[str]
    cells: dict[Pair, Cell]

    @property
    def names(self) -> list[str]:
        """The metrics, in the order in which they were asked for."""
        return list(self.cells[0, 0].views)

    def table(self, name: str) -> np.ndarray:
        """A metric's values, (layers1, layers2); NaN where a pair has none."""
        shape = len(self.layers1), len(self.layers2)
        return np.array([[self.cells[i, j].number(name) for j in range(shape[1])] for i in range(shape[0])])

    def frame(self) -> pd.DataFrame:
        """A row for each method and pair of layers: method, layer1, layer2, value."""
        rows = [(name, *pair, cell.number(name)) for name in self.names for pair, cell in self._named()]
        return pd.DataFrame(rows, columns=["method", "layer1", "layer2", "value"])

    def record(self) -> dict[str, Any]:
        """What a result file says of it: labels of the layers, all values, what is missing or doubtful."""
        layers = {"layers1": self.layers1, "layers2": self.layers2}
        return {"frame": self.frame(), **layers, "refused": self.unavailable(), "warnings": self.warnings()}

    def unavailable(self) -> pd.DataFrame:
        """A row for each value that is missing: method, layer1, layer2, reason."""
        rows = [
            (name, *pair, cell.unavailable[name])
            for name in self.names
            for pair, cell in self._named()
            if name in cell.unavailable
        ]
        return pd.DataFrame(rows, columns=["method", "layer1", "layer2", "reason"])

    def warnings(self) -> pd.DataFrame:
        """A row for each doubt about a pair: layer1, layer2, warning."""
        rows = [
            (*pair, text) for pair, cell in self._named() for view in cell.health.values() for text in view.warnings
        ]
        return pd.DataFrame(rows, columns=["layer1", "layer2", "warning"])

    def _named(self) -> list[tuple[tuple[str, str], Cell]]:
        ordered = sorted(self.cells.items())
        return [((self.layers1[i], self.layers2[j]), cell) for (i, j), cell in ordered]


def layer_label(name: str) -> str:
    """What the whole network, whose name as a layer is empty, is called in tables."""
    return name or "output"


@full_precision()
def compare_layers(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[list[str], list[str]],
    sample: Tensor,
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    group: int | None = None,
    batch_size: int | None = None,
    memory: float = MEMORY,
    layouts: tuple[str | None, str | None] = (None, None),
    labelled: bool = True,
    comparable: bool = True,
    keep: Keep | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare each of the first network's layers with each of the second's by the named metrics.

    `sample` is a batch of blank images. At most about `memory` bytes are held at once: layers are taken by blocks,
    with a pass over the images for each pair of blocks, and `on_message` hears of it. A block of one pair may hold
    more. `layouts` are those asked for, of each network; `on_message` also hears what had to be guessed. `labelled`
    says whether both networks are known to have the classes of the images, `comparable` whether they have each other's,
    as measures of their outputs need. With `keep` the states of passes are kept, and gone on from.
    Raises UserError, before any work, where no metric can compare any pair, or all that is asked for is one pair that
    needs more.
    """
    outputs_of, told = _outputs(networks, layers, sample, layouts)
    for line in told:
        on_message(f"note: {line}")
    functional = [name for name in names if name in FUNCTIONAL]
    names, asked = [name for name in dict.fromkeys(names) if name in METRICS], names
    batch_size = batch_size or batch_of(split)
    work = _GridWork(networks, layers, outputs_of, split, view, group, batch_size, memory)
    known: dict[str, bool] = {"labelled": labelled, "comparable": comparable}
    refused = refusals_of_outputs(networks, split, sample, functional, **known) if functional else {}
    if names:
        require_possible(work.plan(names, work.whole), memory, alone=len(refused) == len(functional))
    known_already = refused if names and len(refused) == len(functional) else None
    outputs = _decisions(networks, split, sample, functional, known_already, batch_size, known)
    passes = work.passes(names) if names else []
    if work.pairs > 1 and passes:
        on_message(work.plan_in_words(passes))
    parts = {(i, j): [outputs] for i in work.whole[0] for j in work.whole[1]}
    for number, (some, tile) in enumerate(passes, start=1):
        title = f"pass {number} of {len(passes)}" if len(passes) > 1 else "comparing"
        kept = keep.of(number, names=list(some), tile=[list(side) for side in tile], batch=batch_size) if keep else None
        for (i, j), cell in work.compare(some, tile, title, kept).items():
            parts[tile[0][i], tile[1][j]].append(cell)
    labels = [layer_label(name) for name in layers[0]], [layer_label(name) for name in layers[1]]
    return Comparison(*labels, {pair: Cell.joined(cells, asked) for pair, cells in parts.items()})


def _outputs(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[list[str], list[str]],
    sample: Tensor,
    layouts: tuple[str | None, str | None],
) -> tuple[tuple[dict[str, Output], dict[str, Output]], list[str]]:
    """What the layers of both give, and what had to be guessed of it; UserError where a layout does not fit."""
    first, second = (find_outputs(*given) for given in zip(networks, layers, (sample, sample), layouts, strict=True))
    told: list[str] = []
    for network, asked, outputs in zip(networks, layouts, (first, second), strict=True):
        require_fit(asked, outputs)
        told += layout_warnings(network, outputs)
    return (first, second), list(dict.fromkeys(told))


def compare_rows(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[list[str], list[str]],
    sample: Tensor,
    split: Split,
    names: Sequence[str],
    *,
    rows: Mapping[str, Split],
    keep: Keep | None = None,
    **how: Any,
) -> Comparison:
    """The same, where each layer of the first network that is among the `rows` is compared on images of its own.

    Without any all are compared on `split`. Raises UserError as `compare_layers` does, which takes `how`.
    """
    if not rows:
        return compare_layers(networks, layers, sample, split, names, keep=keep, **how)
    parts = []
    for number, layer in enumerate(layers[0]):
        kept = keep and replace(keep, folder=keep.folder / f"row-{number}")
        row = [layer], layers[1]
        parts.append(compare_layers(networks, row, sample, rows[layer], names, keep=kept, **how))
    return join_rows(parts)


def join_rows(parts: Sequence[Comparison]) -> Comparison:
    """One comparison of several that have the second network's layers in common: the rows of each below the others'."""
    layers1 = [layer for part in parts for layer in part.layers1]
    cells = [part.cells[i, j] for part in parts for i in range(len(part.layers1)) for j in range(len(part.layers2))]
    columns = len(parts[0].layers2)
    return Comparison(layers1, parts[0].layers2, {divmod(n, columns): cell for n, cell in enumerate(cells)})


def _decisions(
    networks: tuple[nn.Module, nn.Module],
    split: Split,
    sample: Tensor,
    names: Sequence[str],
    refused: dict[str, str] | None,
    batch_size: int,
    known: dict[str, bool],
) -> Cell:
    """What the measures of decisions give; where these are refused already there is no reason to freeze anything."""
    if not names or refused:
        return _without_values(refused or {})
    frozen = freeze(networks[0]).to(split.device), freeze(networks[1]).to(split.device)
    return compare_outputs(frozen, split, names, batch_size=batch_size, sample=sample.to(split.device), **known)


def refusals_of_outputs(
    networks: tuple[Head, Head],
    split: Split,
    sample: Tensor,
    names: Sequence[str],
    *,
    labelled: bool = True,
    comparable: bool = True,
) -> dict[str, str]:
    """Which measures of the decisions of two networks, images -> logits, have no value, and why.

    `labelled`: whether the networks are known to have the classes of the images, `comparable`: or those of each other.
    """
    with torch.no_grad():
        outputs = [network(sample) for network in networks]
    if texts := [text for output in outputs if (text := no_logits(output))]:
        return dict.fromkeys(names, f"a network returns {texts[0]}, not logits (images, classes)")
    classes, known = [output.shape[1] for output in outputs], split.spec.classes
    if len(set(classes)) > 1:
        reason = f"{' and '.join(map(str, classes))} outputs, where {split.spec.name} has {known} classes"
        return dict.fromkeys(names, reason)
    if labelled and set(classes) == {known}:
        return {}
    if not comparable:
        return dict.fromkeys(names, "the networks do not decide between the same classes")
    reason = f"the networks are not both known to have the classes of {split.spec.name}"
    return {name: reason for name in names if FUNCTIONAL[name].needs_labels}


def _without_values(reasons: dict[str, str]) -> Cell:
    return Cell({}, reasons, dict.fromkeys(reasons, "logits"), {})


@full_precision()
def compare_outputs(
    networks: tuple[Head, Head],
    split: Split,
    names: Sequence[str],
    *,
    sample: Tensor,
    batch_size: int | None = None,
    alone: bool = True,
    labelled: bool = True,
    comparable: bool = True,
) -> Cell:
    """Compare what two networks, images -> logits, decide.

    `sample` is a batch of blank images, `labelled` and `comparable` are as in `refusals_of_outputs`. Measures that
    these leave without a value are refused; with `alone`, if that is all that is asked for, by a UserError before any
    work.
    """
    refused = refusals_of_outputs(networks, split, sample, names, labelled=labelled, comparable=comparable)
    if len(refused) == len(names):
        if alone:
            raise UserError(f"{', '.join(names)}: {next(iter(refused.values()))}")
        return _without_values(refused)
    valued = [name for name in names if name not in refused]
    logits: list[list[Tensor]] = [[], []]

    def keep(*outputs: Tensor) -> None:
        for kept, output in zip(logits, outputs, strict=True):
            kept.append(output.float().to(float64_device(output.device)))

    feed(networks, split, keep, batch_size=batch_size, title="comparing outputs")
    one, other = map(torch.cat, logits)
    values = {name: FUNCTIONAL[name].of(one, other, split.labels.to(one.device), split.spec.task) for name in valued}
    return Cell(values, refused, dict.fromkeys(names, "logits"), {})


@dataclass(frozen=True, slots=True)
class _GridWork:
    """What is to be compared, and how it is cut into passes over the images."""

    networks: tuple[nn.Module, nn.Module]
    layers: tuple[list[str], list[str]]
    outputs: tuple[dict[str, Output], dict[str, Output]]
    split: Split
    view: str | None
    group: int | None
    batch_size: int
    memory: float

    @property
    def whole(self) -> Tile:
        return list(range(len(self.layers[0]))), list(range(len(self.layers[1])))

    @property
    def pairs(self) -> int:
        return len(self.layers[0]) * len(self.layers[1])

    def plan(self, names: Sequence[str], tile: Tile) -> GridPlan:
        """The plan of a pass over these pairs."""
        shapes = [
            [outputs[layer].canonical for layer in chosen]
            for outputs, chosen in zip(self.outputs, _picked(self.layers, tile), strict=True)
        ]
        return plan_grid(
            names,
            self.view,
            n_images=len(self.split),
            shapes_x=shapes[0],
            shapes_y=shapes[1],
            group=self.group,
            memory=self.memory,
        )

    def needed(self, names: Sequence[str], tile: Tile) -> int:
        """Bytes that a pass over these pairs holds."""
        return self.plan(names, tile).bytes()

    def passes(self, names: list[str]) -> list[tuple[list[str], Tile]]:
        """Metrics and pairs of layers of each pass: all in one if it fits, or is a single pair.

        If not, the metrics with sums of products for every pair go apart: they would cut the layers, whose features
        the others share, into tiles as small as their own.
        """
        by_pair = [name for name in names if METRICS[name].needs == "moments"]
        kinds = [names]
        if self.pairs > 1 and self.needed(names, self.whole) > self.memory:
            kinds = [kind for kind in ([name for name in names if name not in by_pair], by_pair) if kind]
        return [
            (kind, tile)
            for kind in kinds
            for tile in _tiles(self.whole, lambda *tile, kind=kind: self.needed(kind, tile), self.memory)
        ]

    def plan_in_words(self, passes: list[tuple[list[str], Tile]]) -> str:
        counts = f"{len(self.layers[0])} x {len(self.layers[1])} pairs of layers, {len(self.split)} images"
        size = f"up to {max(self.needed(*one) for one in passes) / 1e9:.1f} GB"
        if len(passes) == 1:
            return f"{counts}: one pass, {size}"
        remedy = "more --memory or a --group-at makes it fewer"
        return f"{counts}: {len(passes)} passes by blocks of layers, {size} each; {remedy}"

    def compare(self, names: list[str], tile: Tile, title: str, kept: KeptPass | None = None) -> dict[Pair, Cell]:
        """Run one pass, or what is left of it."""
        device = self.split.device
        grid = Grid(self.plan(names, tile), device)
        if kept:
            kept.begin(grid)
        if len(grid.known_cells) == len(grid.plan.cells):
            return grid.known_cells
        chosen = zip(self.networks, _picked(self.layers, tile), self.outputs, strict=True)
        parts = [freeze(heads(network, layers, layouts_of(found))).to(device) for network, layers, found in chosen]

        def gather(*sides: Any) -> None:
            grid.update(*sides)
            if kept:
                kept.keep_gathered(grid)

        def found(step: int = 0) -> None:
            progress.update(step)
            if kept:
                kept.keep_found(grid)

        how = {"grouped": grid.plan.group is not None, "title": title, "skipped": grid.seen}
        feed(parts, self.split, gather, batch_size=self.batch_size, **how)
        with bar(grid.steps, "inner products", unit="block") as progress:
            cells = grid.cells(on_block=lambda: found(1), on_found=found)
        if kept:
            kept.keep_found(grid, last=True)
        return cells


def _picked(sides: tuple[list[T], list[T]], tile: Tile) -> tuple[list[T], list[T]]:
    return [sides[0][i] for i in tile[0]], [sides[1][j] for j in tile[1]]


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
