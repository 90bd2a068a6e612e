"""Cosines after the best rotation, the geometry of correlations between images, and channels matched softly."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.gram import BLOCK, row_energies
from src.metrics.algebra.layer import Layer, row_space_bytes
from src.metrics.algebra.linalg import rank_floor, require_varying
from src.metrics.algebra.moments import PairedMoments, correlation
from src.metrics.algebra.products import add_times, eigh
from src.metrics.cosines import Cosines, zero_tolerance

# Channels a side that are matched; the linear program has as many unknowns as there are pairs of them.
MATCHED = 1024
# Ranks of fewer pairs of images than this are kept with their layer.
KEPT_PAIRS = 1 << 22


@torch.no_grad()
def aligned_cosine(x: Layer, y: Layer) -> float:
    """Return the mean cosine of each image's rows of x and y, as they are, after the rotation that fits them best.

    The narrower side is padded with zeros; images with a row of zeros on either side are left out. In [-1, 1]; 1: equal
    up to rotation, reflection and a scale of each image. Invariant to rotation, reflection and one common scale, but
    not to translation. Raise UserError where a side is constant or no image is left.
    Source: Hamilton et al. 2016, "Diachronic Word Embeddings"; Klabunde et al. 2025.
    """
    x.require_varying("first")
    y.require_varying("second")
    one, other = _as_they_are(x), _as_they_are(y)
    u, _, vt = torch.linalg.svd(one.T @ other, full_matrices=False)
    inner = ((one @ u) * (other @ vt.T)).sum(1)
    sizes = one.norm(dim=1), other.norm(dim=1)
    norms = sizes[0] * sizes[1]
    some = [size > _zero_length(layer) for size, layer in zip(sizes, (x, y), strict=True)]
    kept = some[0] & some[1]
    if not kept.any():
        raise UserError("no image has a row other than zeros on both sides")
    return max(-1.0, min(1.0, float((inner[kept] / norms[kept]).mean())))


def _zero_length(layer: Layer) -> Tensor:
    """Of each image, (n,), how long its row as it is may be for rounding alone."""
    return zero_tolerance(layer.rows) * (row_energies(layer.centre()) + layer.offset.square().sum()).sqrt()


def _as_they_are(layer: Layer) -> Tensor:
    """The uncentred rows, or where images are fewer than features, their coordinates: (n, at most n) float64.

    Inner products of images square what is weak: where a direction vanishes in them, the rows themselves are taken.
    """
    rows, mean = layer.centre(), layer.offset
    if layer.n >= rows.shape[1]:
        return rows.double() + mean
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in _uncentred(rows, mean):
        add_times(gram, part, part)
    values, vectors = eigh(gram)
    if (values > rank_floor(values)).all():
        return vectors * values.sqrt()
    triangle = gram.new_empty(0, layer.n)
    for part in _uncentred(rows, mean):
        triangle = torch.linalg.qr(torch.cat([triangle, part.T]), mode="r")[1]
    return triangle.T


def _uncentred(rows: Tensor, mean: Tensor) -> Iterator[Tensor]:
    """The rows as they are, in float64, some features at a time."""
    for part, offset in zip(rows.split(BLOCK, dim=1), mean.split(BLOCK), strict=True):
        yield part.double() + offset


def aligned_bytes(n: int, dx: int, dy: int) -> float:
    """Return what `aligned_cosine` takes beside the rows."""
    wide = sum(row_space_bytes(n) / 2 if d > n else 24.0 * n * d for d in (dx, dy))
    return wide + 32.0 * min(n, dx) * min(n, dy)


@torch.no_grad()
def rsa(x: Layer, y: Layer) -> float:
    """Correlate, by Spearman, how similar each pair of images is in x and in y.

    The similarity of two images is the Pearson correlation of their rows as they are, each about the mean of its own
    features; ranks are averaged where they tie. In [-1, 1]; 1: the pairs of images have the same order. Invariant to
    one common scale only: another translation or rotation makes other correlations. Raise UserError below 3 images
    or features (two always correlate by 1 or -1), or where all pairs are alike.
    Source: Kriegeskorte et al. 2008, "Representational similarity analysis".
    """
    if x.n < 3:
        raise UserError(f"{x.n} images are too few for an order of pairs; at least 3 are needed")
    if min(x.rows.shape[1], y.rows.shape[1]) < 3:
        raise UserError("images of fewer than 3 features always correlate by 1 or -1: their pairs have no order")
    x.require_varying("first")
    y.require_varying("second")
    one, other = _ranks(x), _ranks(y)
    sums = [0.0, 0.0, 0.0]
    for a, b in zip(one.split(KEPT_PAIRS), other.split(KEPT_PAIRS), strict=True):
        a, b = a.double(), b.double()
        sums = [total + float(p @ q) for total, (p, q) in zip(sums, ((a, b), (a, a), (b, b)), strict=True)]
    if not (sums[1] > 0 and sums[2] > 0):
        raise UserError("the order of pairs is undefined: a representation is constant, all its pairs are alike")
    return max(-1.0, min(1.0, sums[0] / math.sqrt(sums[1] * sums[2])))


def rsa_bytes(n: int, dx: int, dy: int) -> float:
    """Return what `rsa` takes beside the rows: 40 bytes for a pair of images while its rank is found."""
    return 20.0 * n * n


def _ranks(layer: Layer) -> Tensor:
    """Twice the rank, less its mean, of each pair of images i < j, in order: int32 (n (n - 1) / 2,)."""
    if "ranks" in layer.known:
        return layer.known["ranks"]
    correlations, n = Cosines(layer, about_own_mean=True), layer.n
    count = n * (n - 1) // 2
    precision = torch.float64 if count <= KEPT_PAIRS else torch.float32
    values = torch.empty(count, dtype=precision, device=layer.device)
    start = 0
    for first in range(0, n, BLOCK):
        block = correlations(slice(first, min(first + BLOCK, n)))
        for row, similar in enumerate(block, start=first):
            values[start : start + n - row - 1] = similar[row + 1 :]
            start += n - row - 1
    ordered, order = values.sort()
    del values
    _, counts = ordered.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    doubled = (2 * ends - counts - len(order)).to(torch.int32)  # ends of ties, first plus last, less the mean
    ranks = torch.empty(len(order), dtype=torch.int32, device=order.device)
    ranks[order] = doubled.repeat_interleave(counts)
    if len(ranks) <= KEPT_PAIRS:
        layer.known["ranks"] = ranks
    return ranks


def soft_match(moments: PairedMoments) -> float:
    """Return the largest sum of P_ij corr(x_i, y_j) over P >= 0 with row sums 1 / dx and column sums 1 / dy.

    Of the channels that vary. In [-1, 1]; 1: every channel of one side is a scaled and shifted copy of one of the
    other, in equal shares. Invariant to a positive scale and a translation of every channel, and to their order. Raise
    UserError where a side is constant or has more than 1,024 channels.
    Source: Khosla and Williams 2024, "Soft Matching Distance".
    """
    gains = _gains(moments)
    if gains.shape[0] == gains.shape[1]:
        return float(gains[scipy.optimize.linear_sum_assignment(gains, maximize=True)].mean())
    return -float(_transport(gains).fun)


def matching_plan(moments: PairedMoments) -> np.ndarray:
    """The P of `soft_match`, (outputs, inputs) of the channels that vary: shares that sum to 1. Raises as that does."""
    gains = _gains(moments)
    if gains.shape[0] == gains.shape[1]:
        plan = np.zeros_like(gains)
        plan[scipy.optimize.linear_sum_assignment(gains, maximize=True)] = 1 / len(gains)
        return plan
    return _transport(gains).x.reshape(gains.shape)


def _gains(moments: PairedMoments) -> np.ndarray:
    """The correlations (dy, dx) of the channels that vary."""
    nonconstant_x, nonconstant_y = moments.nonconstant()
    require_varying(nonconstant_x, nonconstant_y)
    gains = correlation(moments)[nonconstant_y][:, nonconstant_x].cpu().numpy()
    if max(gains.shape) > MATCHED:
        raise UserError(f"{max(gains.shape)} channels are too many to be matched; at most {MATCHED} are")
    return gains


def _transport(gains: np.ndarray) -> Any:
    """The linear program of the best plan with equal shares."""
    dy, dx = gains.shape
    rows = scipy.sparse.kron(scipy.sparse.eye_array(dy), np.ones((1, dx)))
    columns = scipy.sparse.kron(np.ones((1, dy)), scipy.sparse.eye_array(dx))
    shares = np.concatenate([np.full(dy, 1 / dy), np.full(dx, 1 / dx)])
    found = scipy.optimize.linprog(
        -gains.ravel(), A_eq=scipy.sparse.vstack([rows, columns]), b_eq=shares, method="highs"
    )
    if not found.success:
        raise UserError(f"the linear program of the channels' match has no solution: {found.message}")
    return found
