"""Linear centred kernel alignment (CKA): biased, debiased, and differentiable."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.gram import GramSums
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.matrix_rows import paired, unit
from src.metrics.algebra.products import times

ROWS = 256  # of permuted Gram matrices that are made at once; their products are float32, the sums of these float64


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


def chance_of(groups: Sequence[GramSums]) -> float | None:
    """The mean of biased linear CKA over all n! pairings of the images; over groups of images that of their means.

    It is tr(K) tr(L) / ((n - 1) sqrt(<K, K> <L, L>)): a centred L whose images are dealt out at random is on average
    tr(L) / (n - 1) times the centring matrix. With few images and many features it is far from 0. None where CKA is
    undefined.
    """
    values = []
    for group in groups:
        (k, other), (_, kk, ll) = group.traces, group.whole
        if group.n < 2 or not (kk > 0 and ll > 0):
            return None
        values.append(k * other / ((group.n - 1) * math.sqrt(kk) * math.sqrt(ll)))
    if not values:
        return None
    return sum(group.n * value for group, value in zip(groups, values, strict=True)) / sum(g.n for g in groups)


def bias_of(groups: Sequence[GramSums]) -> float | None:
    """Return biased minus debiased CKA; None where one of them is undefined."""
    try:
        return cka_of_groups(groups) - debiased_cka_of_groups(groups) if groups else None
    except UserError:
        return None


@torch.no_grad()
def permuted_cka(xs: Sequence[Layer], ys: Sequence[Layer], *, debiased: bool = False) -> Callable[[Tensor], Tensor]:
    """An order of the images -> CKA of each of xs with each of ys, whose images are in that order, (xs, ys) float64.

    Norms are the same in any order, so of each draw only the inner products of centred Gram matrices are taken anew.
    Raises UserError where a side is constant or images are too few.
    """
    firsts, seconds = (torch.stack([_unit_gram(layer, debiased) for layer in layers]) for layers in (xs, ys))
    n = firsts.shape[1]

    def draw(order: Tensor) -> Tensor:
        total = torch.zeros(len(firsts), len(seconds), dtype=torch.float64, device=firsts.device)
        for rows in torch.arange(n, device=firsts.device).split(ROWS):
            others = seconds[:, order[rows]][:, :, order]
            total += times(firsts[:, rows].flatten(1), others.flatten(1)).double()
        return total

    return draw


def _unit_gram(layer: Layer, debiased: bool) -> Tensor:
    """The Gram matrix (n, n) of centred rows at Frobenius norm 1, U-centred (no diagonal) for debiased CKA; float32."""
    rows = layer.centre()
    gram = times(rows, rows).double()
    if debiased:
        n = len(gram)
        if n < 4:
            raise UserError(f"{n} images are too few for debiased CKA; at least 4 are needed")
        sums = gram.fill_diagonal_(0).sum(0)
        gram = gram - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
        gram.fill_diagonal_(0)
    size = gram.norm()
    if not size > 0:
        raise UserError("CKA is undefined: a representation is constant")
    return (gram / size).float()


def _ratio(sums: Sequence[float]) -> float:
    kl, kk, ll = sums
    if not (kk > 0 and ll > 0):
        raise UserError("CKA is undefined: a representation is constant")
    return max(-1.0, min(1.0, kl / math.sqrt(kk) / math.sqrt(ll)))
