"""Any set of metrics for every pair of many layers of two networks, in one pass over their activations."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from src.metrics.cka import cka_of_sums, debiased_cka_of_sums
from src.metrics.comparison import Comparison, check_metric, view_of
from src.metrics.groups import group_sizes
from src.metrics.health import Health, dead_channels, doubts, evidence_of_sides
from src.metrics.linear_maps import moments_of
from src.metrics.many_gram import BLOCK, Pair, blocks, many_gram_sums
from src.metrics.registry import METRICS, Metric
from src.metrics.span import by_span, moment_entries, span_bytes, span_coordinates
from src.metrics.store import FeatureStore

Shape = tuple[int, ...]
# Biased minus debiased CKA above this is worth a warning.
BIAS = 0.02
# Coordinates of the end network's layers are kept, instead of found anew for each front layer, up to this size.
KEPT_BYTES = 1e9


@dataclass(frozen=True, slots=True)
class Plan:
    """How a pair of layers is compared: names by stored features, names by sums of their own, and names that cannot.

    bytes: what the pair's own sums take; stored features are counted by the layer.
    """

    stored: tuple[str, ...]
    own: tuple[str, ...]
    refused: dict[str, str]
    bytes: int


def plan_pair(
    names: Sequence[str], view: str | None, n_images: int, shape_x: Shape, shape_y: Shape, group: int | None
) -> Plan:
    """Sort the metrics into those that stored features serve, those with sums of their own, and refused ones."""
    stored, own, refused, entries = [], [], {}, {}
    for name in names:
        metric = METRICS[name]
        taken = view_of(metric, view, shape_x, shape_y)
        try:
            check_metric(metric, taken, n_images, shape_x, shape_y, group)
        except ValueError as error:
            refused[name] = str(error)
            continue
        features = math.prod(shape_x), math.prod(shape_y)
        if (
            metric.needs == "features"
            or (metric.needs == "gram" and taken == "images")
            or by_span(metric, taken, n_images, *features, group)
        ):
            stored.append(name)
        else:
            own.append(name)
            entries[taken if metric.needs != "difference" else metric.needs] = _entries(metric, taken, shape_x, shape_y)
    return Plan(tuple(stored), tuple(own), refused, 8 * sum(entries.values()))


def _entries(metric: Metric, view: str, shape_x: Shape, shape_y: Shape) -> int:
    dx, dy = (math.prod(shape) if view == "images" else shape[0] for shape in (shape_x, shape_y))
    return 4 * math.prod(shape_y) if metric.needs == "difference" else moment_entries(dx, dy)


def bytes_needed(
    names: Sequence[str],
    view: str | None,
    n_images: int,
    shapes_x: Sequence[Shape],
    shapes_y: Sequence[Shape],
    group: int | None,
) -> int:
    """Return what `ManyPairs` will hold of these layers, in bytes; the activations of a batch come on top."""
    plans = _plans(names, view, n_images, shapes_x, shapes_y, group)
    used = _stored_layers(plans)
    features = sum(math.prod(shapes[k]) for shapes, side in ((shapes_x, used[0]), (shapes_y, used[1])) for k in side)
    images = max(group_sizes(n_images, group))
    grams = sum(map(len, used)) * min(images, BLOCK) ** 2
    spans = span_bytes(images) if any(map(_spanned, plans.values())) else 0
    return 4 * (images * features + grams) + spans + sum(plan.bytes for plan in plans.values())


def _plans(
    names: Sequence[str], view: str | None, n: int, xs: Sequence[Shape], ys: Sequence[Shape], group: int | None
) -> dict[Pair, Plan]:
    return {(i, j): plan_pair(names, view, n, x, y, group) for i, x in enumerate(xs) for j, y in enumerate(ys)}


def _spanned(plan: Plan) -> list[str]:
    return [name for name in plan.stored if METRICS[name].needs == "moments"]


def _apart(names: Sequence[str]) -> list[list[str]]:
    """Differences apart from the rest: a constant layer leaves only the rest undefined."""
    parts = [[name for name in names if (METRICS[name].needs == "difference") == alone] for alone in (True, False)]
    return [part for part in parts if part]


def _stored_layers(plans: dict[Pair, Plan]) -> tuple[list[int], list[int]]:
    pairs = [pair for pair, plan in plans.items() if plan.stored]
    return sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})


class ManyPairs:
    """Feed batches of activations of many layers to `update`, then ask for the `tables`.

    names, view, n_images, group, device: as for `Comparison`, whose values these are, up to rounding. shapes_x,
    shapes_y: the shape of one image's activation, (c, h, w) or (c,), of each layer of the first and of the second
    network. What a pair cannot do is NaN in its table, and why is in `refused`: {(name, i, j): reason}. `warnings`
    holds what makes a pair's numbers doubtful: {(i, j): sentences}, known after `tables`.
    """

    def __init__(
        self,
        names: Sequence[str],
        view: str | None = None,
        *,
        n_images: int,
        shapes_x: Sequence[Shape],
        shapes_y: Sequence[Shape],
        group: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.sizes = group_sizes(n_images, group)
        self.shapes = tuple(shapes_x), tuple(shapes_y)
        self.counts = len(shapes_x), len(shapes_y)
        self.plans = _plans(self.names, view, n_images, shapes_x, shapes_y, group)
        self.refused = {(name, *pair): why for pair, plan in self.plans.items() for name, why in plan.refused.items()}
        self.warnings: dict[Pair, tuple[str, ...]] = {}
        self.own = [
            ((i, j), Comparison(part, view, n_images=n_images, shape_x=shapes_x[i], shape_y=shapes_y[j], device=device))
            for (i, j), plan in self.plans.items()
            for part in _apart(plan.own)
        ]
        self.stored = _stored_layers(self.plans)
        self.seen, self.done, self.n_images = 0, 0, n_images
        self.totals = {name: np.zeros(self.counts) for name in self.names}
        self.bias = np.zeros(self.counts)
        widths = (
            [math.prod(shapes[k]) for k in used] for shapes, used in zip((shapes_x, shapes_y), self.stored, strict=True)
        )
        # The k-th store holds the k-th layer of each network, and no feature of a network with fewer layers.
        self.stores = [
            FeatureStore(max(self.sizes), *pair, device=device) for pair in zip_longest(*widths, fillvalue=0)
        ]
        for store in self.stores:
            store.clear(self.sizes[0])

    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Add one batch of activations of the same images, one tensor a layer: (n, c, h, w) or (n, c) each."""
        if (len(xs), len(ys)) != self.counts:
            raise ValueError(f"expected activations of {self.counts} layers, got {(len(xs), len(ys))}")
        self.seen += len(xs[0])
        if self.seen > self.n_images:
            raise ValueError(f"{self.seen} images came where {self.n_images} were announced")
        for (i, j), comparison in self.own:
            comparison.update(xs[i], ys[j])
        start = 0
        while self.stores and start < len(xs[0]):
            stop = min(len(xs[0]), start + self.stores[0].room)
            self._store([[xs[i][start:stop] for i in self.stored[0]], [ys[j][start:stop] for j in self.stored[1]]])
            start = stop
            # the last group waits for tables(): the pass over the images ends before the long sums begin
            if self.stores[0].room == 0 and self.done + 1 < len(self.sizes):
                self._finish_group(lambda: None)

    def _store(self, sides: list[list[Tensor]]) -> None:
        nothing = sides[0][0].new_empty(len(sides[0][0]), 0)
        for store, (x, y) in zip(self.stores, zip_longest(*sides, fillvalue=nothing), strict=True):
            store.update(x.flatten(1), y.flatten(1))

    @property
    def steps(self) -> int:
        """How many blocks of Gram matrices `tables` will go through."""
        by_gram = any(METRICS[name].needs == "gram" for plan in self.plans.values() for name in plan.stored)
        return blocks(self.sizes[-1]) if by_gram else 0

    def tables(self, *, on_block: Callable[[], object] = lambda: None) -> dict[str, np.ndarray]:
        """Return {name: (first's layers, second's layers) float64}; `on_block` is called `steps` times."""
        if self.seen != self.n_images:
            raise ValueError(f"{self.seen} images came where {self.n_images} were announced")
        if self.done < len(self.sizes):
            if self.stores:
                self._finish_group(on_block)
            self.done = len(self.sizes)
            self._read_own()
            for name, *pair in self.refused:
                self.totals[name][tuple(pair)] = np.nan
            self._add_bias_warnings()
        return {name: total.copy() for name, total in self.totals.items()}

    def _finish_group(self, on_block: Callable[[], object]) -> None:
        weight = self.sizes[self.done] / self.n_images
        rows = [store.centred_rows() for store in self.stores]
        xs, ys = ([pair[side] for pair in rows][: len(self.stored[side])] for side in (0, 1))
        sums = many_gram_sums(xs, ys, on_block=on_block) if self.steps else {}
        kept = 1 if ys and span_bytes(len(ys[0])) * len(ys) <= KEPT_BYTES else 0
        spans_y = [functools.lru_cache(kept)(functools.partial(span_coordinates, y)) for y in ys]
        for i, x in zip(self.stored[0], xs, strict=True):
            span_x = functools.cache(functools.partial(span_coordinates, x))
            for j, y, span_y in zip(self.stored[1], ys, spans_y, strict=True):
                spans = None  # room for the next ones
                gram = sums.get((self.stored[0].index(i), self.stored[1].index(j)))
                spanned = _spanned(self.plans[i, j])
                if spanned:
                    spans = moments_of(span_x(), span_y())
                for name in self.plans[i, j].stored:
                    gathered = {"gram": gram, "moments": spans, "features": (x, y)}[METRICS[name].needs]
                    self.totals[name][i, j] += weight * self._value(name, (i, j), gathered)
                if known := [name for name in spanned if (name, i, j) not in self.refused]:
                    self.warnings[i, j] = (*self.warnings.get((i, j), ()), *self._doubts(known, i, j))
                if gram and gram.n >= 4 and min(gram.traces) > 0:
                    self.bias[i, j] += weight * (cka_of_sums(gram) - debiased_cka_of_sums(gram))
        self.done += 1
        if self.done < len(self.sizes):
            for store in self.stores:
                store.clear(self.sizes[self.done])

    def _doubts(self, names: list[str], i: int, j: int) -> tuple[str, ...]:
        evidence = evidence_of_sides((self.stores[self.stored[0].index(i)], self.stores[self.stored[1].index(j)]))
        shapes = self.shapes[0][i], self.shapes[1][j]
        front, end = (dead_channels(live, shape[0]) for live, shape in zip(evidence.live, shapes, strict=True))
        features = math.prod(shapes[0]), math.prod(shapes[1])
        health = Health("images", self.n_images, self.n_images, features, None, False, (front, end), None)
        return doubts(health, evidence, names, None)

    def _value(self, name: str, pair: Pair, gathered: object) -> float:
        try:
            return METRICS[name].number(METRICS[name].of_gathered(gathered))
        except ValueError as error:
            self.refused[(name, *pair)] = str(error)
            return math.nan

    def _read_own(self) -> None:
        for pair, comparison in self.own:
            try:
                values, health = comparison.result(), comparison.health()
            except ValueError as error:
                for name in comparison.views:
                    self.refused[(name, *pair)] = str(error)
                continue
            for name, value in values.items():
                self.totals[name][pair] = METRICS[name].number(value)
            doubts = tuple(warning for view in health.values() for warning in view.warnings)
            self.warnings[pair] = self.warnings.get(pair, ()) + doubts

    def _add_bias_warnings(self) -> None:
        for (i, j), plan in self.plans.items():
            if "cka" in plan.stored and self.bias[i, j] > BIAS:
                text = f"cka: {self.bias[i, j]:.3f} above its debiased estimate, from too few images; use cka_debiased"
                self.warnings[i, j] = (*self.warnings.get((i, j), ()), text)
