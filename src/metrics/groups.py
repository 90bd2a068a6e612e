"""Metrics that need the features of all images at once, or of consecutive groups of them."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from src.metrics.cka import cka_of_sums, debiased_cka_of_sums
from src.metrics.gram import GramSums, gram_sums
from src.metrics.health import Evidence, evidence_of_store
from src.metrics.linear_maps import moments_of
from src.metrics.registry import Metric
from src.metrics.span import span_coordinates
from src.metrics.store import FeatureStore


def group_sizes(n: int, group: int | None) -> list[int]:
    """Cut n images into consecutive groups; a rest of less than half a group joins the last one."""
    if group is None or group >= n:
        return [n]
    if group < 2:
        raise ValueError(f"a group of {group} images cannot be compared; use --group-at 2 or more")
    full, rest = divmod(n, group)
    sizes = [group] * full
    if 2 * rest >= group:
        sizes.append(rest)
    else:
        sizes[-1] += rest
    return sizes


class GroupedFeatures:
    """Stores one group of images at a time and averages each metric over groups, weighted by their images."""

    def __init__(
        self,
        metrics: Iterable[Metric],
        n: int,
        features: tuple[int, int],
        group: int | None,
        device: torch.device | str,
    ) -> None:
        self.metrics = tuple(metrics)
        self.n = n
        self.sizes = group_sizes(n, group)
        self.done = 0
        self.store: FeatureStore | None = FeatureStore(max(self.sizes), *features, device=device)
        self.store.clear(self.sizes[0])
        self.totals = dict.fromkeys((metric.name for metric in self.metrics), 0.0)
        self.bias: float | None = None
        self.evidence: Evidence | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add images x: (rows, dx), y: (rows, dy), starting new groups where old ones are full."""
        while len(x):
            if self.store is None:
                raise ValueError(f"more images came than the {self.n} announced")
            room = self.store.room
            self.store.update(x[:room], y[:room])
            x, y = x[room:], y[room:]
            # The last group waits for result(): the pass over the data ends before the long sums begin.
            if self.store.room == 0 and self.done + 1 < len(self.sizes):
                self._finish()

    def values(self) -> dict[str, float]:
        """Return the averages; the stored features are freed."""
        if self.store is not None:
            self._finish()
        return {name: total / self.n for name, total in self.totals.items()}

    def _finish(self) -> None:
        assert self.store is not None
        store, size = self.store, self.sizes[self.done]
        rows = store.centred_rows()
        sums: GramSums | None = None
        if any(metric.needs == "gram" for metric in self.metrics):
            sums = gram_sums(*rows)
            if size >= 4 and min(sums.traces) > 0:
                self.bias = (self.bias or 0.0) + size / self.n * (cka_of_sums(sums) - debiased_cka_of_sums(sums))
        spans = functools.cache(lambda: moments_of(*map(span_coordinates, rows)))
        for metric in self.metrics:
            gathered = sums if metric.needs == "gram" else spans() if metric.needs == "moments" else rows
            try:
                value = metric.of_gathered(gathered)
            except ValueError as error:
                raise ValueError(f"{metric.name}: {error}") from error
            self.totals[metric.name] += size * value
        self._gather_evidence(store)
        self.done += 1
        if self.done < len(self.sizes):
            store.clear(self.sizes[self.done])
        else:
            self.store = None

    def _gather_evidence(self, store: FeatureStore) -> None:
        if self.evidence is None:
            self.evidence = evidence_of_store(store)
            return
        old, live = self.evidence, store.live()
        live = (old.live[0] | live[0], old.live[1] | live[1])
        self.evidence = Evidence(live, old.rank, old.rank_is_bound, old.offset)
