"""Linear centred kernel alignment (CKA): biased, debiased, and differentiable."""

import math

from torch import Tensor

from src.metrics.gram import GramSums, gram_sums
from src.metrics.rows import paired, unit


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Compare x: (images, dx) and y: (images, dy) by biased linear CKA; differentiable, as a term of a loss.

    In [0, 1]; 1: equal up to rotation, reflection, one common scale and translation; 0: no feature of one is
    correlated with any of the other. Biased upwards where images do not far outnumber features.
    Raise ValueError where a side is constant or fewer than 2 images are given.
    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", section 3.
    """
    x, y = paired(x, y)
    x, y = unit(x, "first"), unit(y, "second")
    if x.shape[1] + y.shape[1] <= len(x):
        cross, self_x, self_y = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
    else:
        gram_x, gram_y = x @ x.T, y @ y.T
        cross, self_x, self_y = ((a * b).sum() for a, b in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y)))
    # sum() adds pairwise; norm() and dot products of millions of float32 numbers are off in the third digit
    return (cross / self_x.sqrt() / self_y.sqrt()).clamp(max=1)


def debiased_linear_cka(x: Tensor, y: Tensor) -> float:
    """Compare x: (images, dx) and y: (images, dy) by linear CKA without the bias of few images.

    In [-1, 1]; 1 as for `linear_cka`; 0 on average for independent representations, whatever the number of features.
    Same invariances. Raise ValueError where a side is constant or fewer than 4 images are given.
    Source: Song et al. 2012, "Feature Selection via Dependence Maximization", eq. 5 (unbiased HSIC), put into
    CKA as in Nguyen et al. 2021, "Do Wide and Deep Networks Learn the Same Things?", eq. 3.
    """
    x, y = paired(x, y, least=4)
    return debiased_cka_of_sums(gram_sums(unit(x.detach(), "first"), unit(y.detach(), "second")))


def cka_of_sums(sums: GramSums) -> float:
    """Return biased linear CKA: <K, L> / sqrt(<K, K> <L, L>)."""
    return _ratio(*(off + diagonal for off, diagonal in zip(sums.off, sums.diagonal, strict=True)))


def debiased_cka_of_sums(sums: GramSums) -> float:
    """Return debiased linear CKA: the unbiased HSIC of K and L over the root of those of K with K and L with L."""
    if sums.n < 4:
        raise ValueError(f"{sums.n} images are too few for debiased CKA; at least 4 are needed")
    k, other = sums.traces
    traces = (k * other, k * k, other * other)
    return _ratio(*(_unbiased(sums.n, *parts) for parts in zip(sums.off, sums.diagonal, traces, strict=True)))


def _unbiased(n: int, off: float, diagonal: float, traces: float) -> float:
    # Rows of centred Gram matrices sum to 0, so without its diagonal row i sums to -K_ii: every sum over the
    # matrices without diagonals in Song's formula becomes one over diagonals.
    return off + traces / ((n - 1) * (n - 2)) - 2 * diagonal / (n - 2)


def _ratio(kl: float, kk: float, ll: float) -> float:
    if not (kk > 0 and ll > 0):
        raise ValueError("CKA is undefined: a representation is constant")
    return max(-1.0, min(1.0, kl / math.sqrt(kk) / math.sqrt(ll)))
