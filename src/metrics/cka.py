"""Linear centred kernel alignment (CKA): biased, debiased, and differentiable."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.gram import BLOCK, GramSums, gram_sums
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.matrix_rows import paired, unit
from src.metrics.algebra.products import times

ROWS = 32  # of permuted Gram matrices that are made at once; their products are float32, the sums of these float64


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Compare x: (images, dx) and y: (images, dy) by biased linear CKA; differentiable, as a term of a loss.

    In [0, 1]; 1: equal up to rotation, reflection, one common scale and translation; 0: no feature of one is
    correlated with any of the other. Biased upwards where images do not far outnumber features.
    Raise UserError where a side is constant or fewer than 2 images are given.
    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", section 3.
    """
    x, y = paired(x, y)
    asks = not (x.device.type == "cuda" and (x.requires_grad or y.requires_grad))  # nobody does in a step of training
    x, y = unit(x, "first", asks=asks), unit(y, "second", asks=asks)
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


def participation_of(groups: Sequence[GramSums]) -> tuple[float, float] | None:
    """The participation ratio tr(C)^2 / tr(C^2) of the covariance C of each side, without the bias of few images.

    How many directions of equal variance would have as much in as few: from 1 to the number of features. The plain
    ratio is at most the number of images, about 1 / (1 / ratio + 1 / images) on average. Numerator and denominator are
    means over images that all differ (U-statistics), of several groups their means, weighted by images. None where
    images are too few to tell. Source: Chun et al. 2026, "Estimating Dimensionality of Neural Representations from
    Finite Samples" (arXiv 2509.26560), the correction for rows.
    """
    parts = [_moments_of_spectrum(group, side) for group in groups for side in (0, 1) if group.unbiased]
    if not parts or len(parts) < 2 * len(groups):
        return None
    ratios = []
    for side in (0, 1):
        squares, fourths = (
            sum(group.n * part[which] for group, part in zip(groups, parts[side::2], strict=True)) for which in (0, 1)
        )
        if not (squares > 0 and fourths > 0):
            return None
        ratios.append(squares / fourths)
    return ratios[0], ratios[1]


def _moments_of_spectrum(group: GramSums, side: int) -> tuple[float, float]:
    """Unbiased estimates of tr(C)^2 and tr(C^2), from sums over the centred Gram matrix of a side."""
    assert group.unbiased
    n, trace, whole, off = group.n, group.traces[side], group.whole[1 + side], group.unbiased[1 + side]
    squares = (whole - off + trace**2 / ((n - 1) * (n - 2))) * (n - 2) / n  # of the diagonal's entries
    pairs = (trace**2 - squares) / (n * (n - 1))
    threes = (2 * squares - trace**2) / (n * (n - 1) * (n - 2))
    fours = (trace**2 - 6 * squares + 2 * whole) / (n * (n - 1) * (n - 2) * (n - 3))
    return pairs - 2 * threes + fours, off / (n * (n - 3))


@torch.no_grad()
def cka_of_units(x: Layer, y: Layer) -> float:
    """Return linear CKA without the biases of few images and of few units.

    Estimates CKA of the populations of which images and units (features, columns) are samples, the units of both sides
    drawn independently of each other. The numerator is the unbiased HSIC of images. A side's own term is that, too, but
    over pairs of different units, times units / (units - 1): a unit paired with itself is no sample of two. So the
    value of a layer with itself is above 1, and a value above 1 may come out by chance. Invariant to one common scale,
    translation and the order of units, not to rotation, which makes other units. Raise UserError below 4 images or 2
    units, and where a side's own term is not positive.
    Source: Chun et al. 2025, "Estimating Neural Representation Alignment from Sparsely Sampled Inputs and Features"
    (arXiv 2502.15104).
    """
    if x.n < 4:
        raise UserError(f"{x.n} images are too few for debiased CKA; at least 4 are needed")
    if min(x.rows.shape[1], y.rows.shape[1]) < 2:
        raise UserError("a side of one unit says nothing of a population of units; at least 2 are needed")
    x.require_varying("first")
    y.require_varying("second")
    sums = gram_sums([x.centre()], [y.centre()])[0, 0]
    assert sums.unbiased
    own = [_over_different_units(layer, sums.unbiased[1 + side]) for side, layer in enumerate((x, y))]
    if not (own[0] > 0 and own[1] > 0):
        raise UserError("different units of a side vary together no more than by chance; use more images or units")
    return sums.unbiased[0] / math.sqrt(own[0]) / math.sqrt(own[1])


def _over_different_units(layer: Layer, whole: float) -> float:
    """The sum over pairs of different units, as if over all pairs, of which `whole` is that over all."""
    n, units = layer.rows.shape
    alone = 0.0
    for part in layer.centre().split(BLOCK, dim=1):
        squares = part.double().square()
        traces, fourths = squares.sum(0), squares.square().sum(0)
        alone += float((traces**2 * (1 + 1 / ((n - 1) * (n - 2))) - fourths * n / (n - 2)).sum())
    return (whole - alone) * units / (units - 1)


def bias_of(groups: Sequence[GramSums]) -> float | None:
    """Return biased minus debiased CKA; None where one of them is undefined."""
    try:
        return cka_of_groups(groups) - debiased_cka_of_groups(groups) if groups else None
    except UserError:
        return None


@torch.no_grad()
def permuted_cka(xs: Sequence[Layer], ys: Sequence[Layer], *, debiased: bool = False) -> Callable[[Tensor], Tensor]:
    """An order of the images -> CKA of each of xs with each of ys, whose images are in that order, (xs, ys) float64.

    Norms are the same in any order, so of each draw only the inner products of centred Gram matrices are taken anew: of
    those of ys what one pair of images has in all layers lies side by side, and of those of xs half is enough, since
    they are symmetric. Raises UserError where a side is constant or images are too few.
    """
    n, halves = xs[0].n, []
    seconds = torch.stack([_unit_gram(layer, debiased) for layer in ys], 2)
    firsts = torch.stack([_unit_gram(layer, debiased) for layer in xs])
    for start in range(0, n, ROWS):
        half = firsts[:, start : start + ROWS, start:].clone()
        half[:, :, ROWS:] *= 2
        halves.append(half.flatten(1))
    del firsts

    def draw(order: Tensor) -> Tensor:
        order = order.to(seconds.device)
        total = torch.zeros(len(xs), len(ys), dtype=torch.float64, device=seconds.device)
        for start, half in zip(range(0, n, ROWS), halves, strict=True):
            others = seconds[order[start : start + ROWS]].index_select(1, order[start:])
            total += (half @ others.flatten(0, 1)).double()
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
