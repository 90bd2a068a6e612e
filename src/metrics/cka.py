"""Linear centred kernel alignment (CKA): biased, debiased, and differentiable."""

import math
from collections.abc import Sequence

from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.gram import GramSums
from src.metrics.algebra.matrix_rows import paired, unit


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Compare x: (images, dx) and y: (images, dy) by biased linear CKA; differentiable, as a term of a loss.

    In [0, 1]; 1: equal up to rotation, reflection, one common scale and translation; 0: no feature of one is
    correlated with any of the other. Biased upwards where images do not far outnumber features.
    Raise UserError where a side is constant or fewer than 2 images are given.
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


def cka_of_groups(groups: Sequence[GramSums]) -> float:
    """Return biased linear CKA, <K, L> / sqrt(<K, K> <L, L>); over groups of images its mean, weighted by images."""
    values = [_ratio(group.whole) for group in groups]
    return sum(group.n * value for group, value in zip(groups, values, strict=True)) / sum(g.n for g in groups)


def debiased_cka_of_groups(groups: Sequence[GramSums]) -> float:
    """Return linear CKA without the bias of few images: unbiased HSIC of K and L over the root of those of K and of L.

    In [-1, 1]; 1 as for `linear_cka`; 0 on average for independent representations, whatever the number of features.
    Same invariances. Raise UserError where a side is constant or fewer than 4 images are given. Source: Song et al.
    2012, "Feature Selection via Dependence Maximization", eq. 5, put into CKA as in Nguyen et al. 2021, eq. 3.
    Over groups of images each HSIC is averaged first, weighted by images, and the ratio taken once: the minibatch
    estimator of Nguyen et al. 2021, eq. 2, whose numerator and denominators stay unbiased however small the groups.
    """
    hsic = [0.0, 0.0, 0.0]
    for group in groups:
        if group.unbiased is None:
            raise UserError(f"{group.n} images are too few for debiased CKA; at least 4 are needed")
        for index, part in enumerate(group.unbiased):
            hsic[index] += part / (group.n - 3)  # over n (n - 3), times n
    return _ratio(hsic)


def bias_of(groups: Sequence[GramSums]) -> float | None:
    """Return biased minus debiased CKA; None where one of them is undefined."""
    try:
        return cka_of_groups(groups) - debiased_cka_of_groups(groups) if groups else None
    except UserError:
        return None


def _ratio(sums: Sequence[float]) -> float:
    kl, kk, ll = sums
    if not (kk > 0 and ll > 0):
        raise UserError("CKA is undefined: a representation is constant")
    return max(-1.0, min(1.0, kl / math.sqrt(kk) / math.sqrt(ll)))
