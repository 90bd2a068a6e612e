"""Any set of metrics for every pair of layers of two networks, in one pass over their activations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.precision import full_precision
from src.metrics.algebra.gram import Begun, GramSums, blocks, gram_sums, gram_sums_of_moments
from src.metrics.algebra.layer import Facts, Layer, facts_of_spread, row_space_bytes
from src.metrics.algebra.linalg import float64_device
from src.metrics.algebra.moments import (
    LONG,
    SHORT,
    PairedMoments,
    Sums,
    channels_last_rows,
    flat_rows,
    gather,
    rows_at_once,
)
from src.metrics.cka import bias_of, chance_of, participation_of
from src.metrics.diagnostics import Diagnostics, diagnose, facts_of_sums
from src.metrics.difference import Differences
from src.metrics.engine.plan import GridPlan, Pair, features, group_sizes
from src.metrics.linear_maps import moments_of
from src.metrics.registry import MEASURES, METRICS

VIEWS = "images", "channels"
Call = Callable[[], object]
# Coordinates of the second network's layers are kept, instead of found anew for each of the first's, up to this size.
KEPT_BYTES = 1e9


def _nothing() -> None:
    """What is called where nobody listens."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What comparing two layers gives, metric by metric.

    values: name -> a float, or a dict of numpy arrays and floats for ps_inv and corr. unavailable: name -> why there is
    no value. views: name -> view. health: view -> what stands behind its numbers, with warnings in words.
    """

    values: dict[str, Any]
    unavailable: dict[str, str]
    views: dict[str, str]
    health: dict[str, Diagnostics]

    def number(self, name: str) -> float:
        """The one number of a metric; NaN where it has none."""
        return MEASURES[name].number(self.values[name]) if name in self.values else math.nan

    @classmethod
    def joined(cls, cells: Sequence["Cell"], names: Sequence[str]) -> "Cell":
        """One cell of several, which are of the same layers and hold some of the named metrics each."""
        values, unavailable, views = (
            {name: found[name] for name in names for found in (getattr(cell, part) for cell in cells) if name in found}
            for part in ("values", "unavailable", "views")
        )
        health: dict[str, Diagnostics] = {}
        for view, one in (item for cell in cells for item in cell.health.items()):
            known = health.get(view, one)
            health[view] = replace(one, warnings=tuple(dict.fromkeys((*known.warnings, *one.warnings))))
        return cls(values, unavailable, views, health)


class Grid:
    """Feed batches of activations of many layers to `update`, then ask for the `cells`; a pair is a 1 x 1 grid.

    `found` holds all that was made of what was gathered, by what it is of. A grid of the same plan and images that has
    it does not make it again; `kept.py` writes it, and what was gathered.
    """

    def __init__(self, plan: GridPlan, device: torch.device | str = "cpu") -> None:
        self.plan, self.device = plan, float64_device(device)
        self.n_images, self.seen, self.done = plan.n_images, 0, 0
        self.sizes = group_sizes(plan.n_images, plan.group)
        self.layers = tuple(
            {k: Layer(max(self.sizes), math.prod(shapes[k]), device) for k in stored}
            for shapes, stored in zip(plan.shapes, plan.stored(), strict=True)
        )
        spans = plan.spanned() if plan.group else ([], [])
        self.spans = tuple(
            {k: Layer(plan.n_images, math.prod(shapes[k]), device) for k in side}
            for shapes, side in zip(plan.shapes, spans, strict=True)
        )
        self.facts: tuple[dict[int, Facts], dict[int, Facts]] = ({}, {})
        self.sums = {
            (view, (side, k)): Sums(features(view, plan.shapes[side][k]), device, energies=energies)
            for (view, side, k), energies in plan.sums().items()
        }
        self.moments = {
            (view, (i, j)): PairedMoments.of(self.sums[view, (0, i)], self.sums[view, (1, j)])
            for (view, _), pairs in plan.moments().items()
            for i, j in pairs
        }
        self.differences = {
            (i, j): Differences(math.prod(plan.shapes[1][j]), device)
            for (i, j), cell in plan.cells.items()
            if cell.of("difference")
        }
        self.grams: dict[tuple[str, Pair], list[GramSums]] = {}  # of each group
        self.parts: dict[tuple[str, Pair], list[float]] = {}  # a metric's value for each group
        self.unavailable = {
            (name, pair): why for pair, cell in plan.cells.items() for name, why in cell.unavailable.items()
        }
        self.found: dict[tuple[Any, ...], Any] = {}
        self._expect(self.sizes[0])

    @full_precision()
    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Add one batch of activations of the same images, one tensor a layer: (n, c, h, w) or (n, c) each."""
        sides = [list(side) for side in (xs, ys)]
        shapes = [[tuple(x.shape[1:]) for x in side] for side in sides]
        if shapes != list(self.plan.shapes) or len({len(x) for side in sides for x in side}) != 1:
            raise UserError(f"expected activations of shapes {self.plan.shapes}, got {shapes} of as many images each")
        self.seen += len(xs[0])
        if self.seen > self.n_images:
            raise UserError(f"{self.seen} images came where {self.n_images} were announced")
        sides = [[x.detach() for x in side] for side in sides]
        for (view, _), pairs in self.plan.moments().items():
            self._add_moments(view, pairs, sides)
        flat = [[flat_rows(x) for x in side] for side in sides]
        for (i, j), differences in self.differences.items():
            differences.update(flat[0][i], flat[1][j])
        self._store(flat)

    def _add_moments(self, view: str, pairs: list[Pair], sides: list[list[Tensor]]) -> None:
        make = flat_rows if view == "images" else channels_last_rows
        rows = {(side, k): make(sides[side][k]) for pair in pairs for side, k in enumerate(pair)}
        fed = [(self.sums[view, key], values) for key, values in rows.items()]
        gather(fed, [self.moments[view, pair] for pair in pairs], rows=self._rows(view, pairs))

    def _rows(self, view: str, pairs: list[Pair]) -> int:
        """Rows that become float64 at a time."""
        if self.device.type != "cuda":
            return SHORT if view == "images" else LONG
        widest = max(features(view, self.plan.shapes[side][k]) for pair in pairs for side, k in enumerate(pair))
        return rows_at_once(widest, widest, self.device)

    def _store(self, flat: list[list[Tensor]]) -> None:
        for rows, layers in zip(flat, self.spans, strict=True):
            for k, layer in layers.items():
                layer.update(rows[k])
        kept = [(layer, flat[side][k]) for side, layers in enumerate(self.layers) for k, layer in layers.items()]
        start, count = 0, len(flat[0][0])
        while kept and start < count:
            stop = min(count, start + kept[0][0].n - kept[0][0].filled)
            for layer, rows in kept:
                layer.update(rows[start:stop])
            start = stop
            # the last group waits for cells(): the pass over the images ends before the long sums begin
            if kept[0][0].filled == kept[0][0].n and self.done + 1 < len(self.sizes):
                self._finish_group()

    @property
    def steps(self) -> int:
        """How many blocks of Gram matrices `cells` will go through."""
        return blocks(self.sizes[-1], self.device) if self.plan.gram_pairs() else 0

    @full_precision()
    def cells(self, *, on_block: Call = _nothing, on_found: Call = _nothing) -> dict[Pair, Cell]:
        """Return what each pair gives; raise UserError if images are missing.

        `on_block` is called after each of `steps` blocks, `on_found` after all else that was found.
        """
        if self.seen != self.n_images:
            raise UserError(f"{self.seen} images came where {self.n_images} were announced")
        for gathered in (*self.sums.values(), *self.differences.values()):
            gathered.require_finite()
        if self.done < len(self.sizes):
            self._finish_group(on_block, on_found)
            self._take_row_spaces(self.spans if self.plan.group else self.layers, on_found)
            self._learn(self.spans)
            self.layers = self.spans = {}, {}  # their memory is free for what follows
        for pair in self.plan.cells:
            if ("cell", pair) not in self.found:
                self.found["cell", pair] = self._cell(pair)
                on_found()
        return self.known_cells

    @property
    def known_cells(self) -> dict[Pair, Cell]:
        """The cells that were made, or known beforehand."""
        return {pair: self.found["cell", pair] for pair in self.plan.cells if ("cell", pair) in self.found}

    def _finish_group(self, on_block: Call = _nothing, on_found: Call = _nothing) -> None:
        for pair, cell in self.plan.cells.items():  # as they are, before anything is centred
            for name in cell.of("rows"):
                if METRICS[name].needs == "matrices":
                    self._take(name, pair, self._matrices(cell.views[name], pair), on_found)
        rows = [{k: layer.centre() for k, layer in layers.items()} for layers in self.layers]
        pairs = self.plan.gram_pairs()
        wanted = [sorted({pair[side] for pair in pairs}) for side in (0, 1)]
        sums = {}
        if pairs:
            xs, ys = ([rows[side][k] for k in wanted[side]] for side in (0, 1))
            sums = gram_sums(xs, ys, on_block=on_block, begun=self.found.setdefault(("gram", self.done), Begun()))
        for i, j in pairs:
            scales = (4.0 ** layers[k].exponent for layers, k in zip(self.layers, (i, j), strict=True))
            self.grams.setdefault(("images", (i, j)), []).append(
                sums[wanted[0].index(i), wanted[1].index(j)].times(*scales)
            )
        for (i, j), cell in self.plan.cells.items():
            for name in cell.of("rows"):
                if METRICS[name].needs == "features":
                    self._take(name, (i, j), (self.layers[0][i], self.layers[1][j]), on_found)
        self._learn(self.layers)
        self.done += 1
        if self.done < len(self.sizes):
            self._expect(self.sizes[self.done])

    def _matrices(self, view: str, pair: Pair) -> tuple[Tensor, Tensor]:
        """The rows of two layers, in the activations' own units: images, or positions of channels."""
        rows = [layers[k].rows for layers, k in zip(self.layers, pair, strict=True)]
        if view == "channels":
            shapes = (self.plan.shapes[side][k] for side, k in enumerate(pair))
            rows = [channels_last_rows(x.view(len(x), *shape)) for x, shape in zip(rows, shapes, strict=True)]
        return rows[0], rows[1]

    def _expect(self, images: int) -> None:
        for layers in self.layers:
            for layer in layers.values():
                layer.clear(images)

    def _take(self, name: str, pair: Pair, gathered: object, on_found: Call) -> None:
        """Keep a metric's value for this group, or why it has none."""
        key = "part", name, pair, self.done
        if key not in self.found:
            try:
                self.found[key] = METRICS[name].of_gathered(gathered)
            except UserError as error:
                self.found[key] = str(error)
            on_found()
        if isinstance(value := self.found[key], str):
            self.unavailable.setdefault((name, pair), value)
        else:
            self.parts.setdefault((name, pair), []).append(value)

    def _take_row_spaces(self, sides: tuple[dict[int, Layer], ...], on_found: Call) -> None:
        """Compute the metrics of coordinates of all images, those of a layer of the first network once."""
        kept: dict[int, Tensor] = {}
        for i, layer in sides[0].items():
            own = None
            for j, second in sides[1].items():
                names = self.plan.cells[i, j].of("row_space")
                if not names:
                    continue
                moments = None
                if not all(("part", name, (i, j), self.done) in self.found for name in names):
                    own = layer.coordinates() if own is None else own
                    coordinates = kept[j] if j in kept else second.coordinates()
                    if row_space_bytes(layer.n) * len(self.layers[1]) <= KEPT_BYTES:
                        kept[j] = coordinates
                    moments = moments_of(own, coordinates)
                for name in names:
                    self._take(name, (i, j), moments, on_found)

    def _learn(self, sides: tuple[dict[int, Layer], ...]) -> None:
        """Gather what is known of layers: ranks from the first group, live features from all."""
        for known, layers in zip(self.facts, sides, strict=True):
            for k, layer in layers.items():
                before = known.get(k)
                facts = layer.facts(ranked=self._ranked and before is None)
                known[k] = before._replace(nonconstant=before.nonconstant | facts.nonconstant) if before else facts

    @property
    def _ranked(self) -> bool:
        return len(self.plan.cells) == 1

    def _cell(self, pair: Pair) -> Cell:
        plan, values, unavailable = self.plan.cells[pair], {}, {}
        for name in plan.views:
            try:
                values[name] = self._value(name, pair)
            except UserError as error:
                unavailable[name] = str(error)
        views = [view for view in VIEWS if view in {plan.views[name] for name in values}]
        health = {
            view: self._health(view, pair, [name for name in values if plan.views[name] == view]) for view in views
        }
        return Cell(values, unavailable, dict(plan.views), health)

    def _value(self, name: str, pair: Pair) -> Any:
        metric, plan = METRICS[name], self.plan.cells[pair]
        if (name, pair) in self.unavailable:
            raise UserError(self.unavailable[name, pair])
        if metric.needs == "gram":
            return metric.of_gathered(self._gram_sums(plan.views[name], pair))
        if plan.source[name] == "moments":
            return metric.of_gathered(self.moments[plan.views[name], pair])
        if plan.source[name] == "difference":
            return metric.of_gathered(self._differences(plan.views[name], pair))
        parts = self.parts[name, pair]
        return parts[0] if len(parts) == 1 else float(np.average(parts, weights=self.sizes))

    def _differences(self, view: str, pair: Pair) -> Differences:
        found = self.differences[pair]
        return found if view == "images" else found.by_channel(self.plan.shapes[1][pair[1]][0])

    def _gram_sums(self, view: str, pair: Pair) -> list[GramSums]:
        """Sums of each group, or of all images from moments. Raise UserError where they have none."""
        key = view, pair
        if key not in self.grams:
            self.grams[key] = [gram_sums_of_moments(self.moments[key])]
        return self.grams[key]

    def _health(self, view: str, pair: Pair, names: list[str]) -> Diagnostics:
        facts = [self._facts(view, side, k, pair, "ps_inv" in names) for side, k in enumerate(pair)]
        shapes = self.plan.shapes[0][pair[0]], self.plan.shapes[1][pair[1]]
        grams = self.grams.get((view, pair), [])
        notes = [text for name in names if (text := self._note(name, pair))]
        health = diagnose(
            view,
            self.n_images,
            shapes,
            (facts[0], facts[1]),
            names,
            self.plan.group,
            bias_of(grams),
            participation=participation_of(grams),
            chance=chance_of(grams) if "cka" in names and view == "images" else None,
            largest=grams[0].largest if len(grams) == 1 else None,
        )
        return replace(health, warnings=(*health.warnings, *notes))

    def _note(self, name: str, pair: Pair) -> str:
        note, plan = METRICS[name].note, self.plan.cells[pair]
        return note(self.moments[plan.views[name], pair]) if note else ""

    def _facts(self, view: str, side: int, k: int, pair: Pair, ranked: bool) -> Facts:
        if view == "images" and k in self.facts[side]:
            return self.facts[side][k]
        if (view, (side, k)) in self.sums:
            return facts_of_sums(self.sums[view, (side, k)], ranked=ranked or self._ranked)
        if pair not in self.differences:  # of plain matrices, positions of channels: what is known of the features
            known, channels = self.facts[side][k], self.plan.shapes[side][k][0]
            return known._replace(nonconstant=known.nonconstant.view(channels, -1).any(1), rank=None)
        differences = self._differences(view, pair)
        return facts_of_spread(differences.mean[side], differences.squares[side], differences.n)
