"""Rows fewer than their features, in coordinates of the space they span: for metrics that no rotation changes."""

import torch
from torch import Tensor

from src.metrics.gram import BLOCK
from src.metrics.linalg import rank_floor
from src.metrics.registry import Metric

# Matrices of rows x rows that a decomposition and its results take, in float64.
SPAN_MATRICES = 8


def by_span(metric: Metric, view: str, n: int, dx: int, dy: int, group: int | None) -> bool:
    """Tell whether sums of products should be those of coordinates: n x n instead of features x features, and exact.

    That takes all n images at once, so it is nothing for averages over groups. It keeps what any rotation keeps, but
    neither a map nor weak features beside strong ones, which the regressions (those that rows must outnumber) weigh
    alike.
    """
    rigid = "orthogonal" in metric.invariances and not metric.summary and not metric.outnumbered
    fits = metric.needs == "moments" and view == "images" and rigid
    return fits and (group is None or group >= n) and 3 * n * n < moment_entries(dx, dy)


def moment_entries(dx: int, dy: int) -> int:
    """Return how many numbers the sums of products of dx and dy features are."""
    return dx * dx + dx * dy + dy * dy


def span_bytes(n: int) -> int:
    """Return what it takes to find the coordinates of two sides of n rows."""
    return 8 * SPAN_MATRICES * n * n


def span_coordinates(rows: Tensor) -> Tensor:
    """Turn centred rows (n, d) into the space they span: (n, rank) float64, rank < n, with the same inner products."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(BLOCK, dim=1):
        part = part.double()
        gram.addmm_(part, part.T)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > rank_floor(values)
    return vectors[:, kept] * values[kept].sqrt()
