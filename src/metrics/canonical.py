"""Canonical correlations (CCA) and the numbers people make of them, from moments."""

from typing import NamedTuple

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.linalg import rank_floor, require_varying, unit_spectrum
from src.metrics.algebra.moments import PairedMoments
from src.metrics.algebra.products import eigh

# Share of the variance that the principal directions kept by svcca explain.
SVCCA_VARIANCE = 0.99
# Canonical correlations closer than this count as equal: their directions are then rounding.
TIE = 1e-6


class Bases(NamedTuple):
    """Orthonormal bases of both sides, as far as canonical correlations need them.

    cross: (rank_x, rank_y) inner products of the basis vectors; its singular values are the canonical correlations.
    loading: (rank_x, dx) inner products of x's basis vectors with x's own features.
    """

    cross: Tensor
    loading: Tensor


def require_images(n: int, features: int, what: str, remedy: str = "use more images or --view channels") -> None:
    """Raise UserError where n rows are fitted exactly by so many features, so that any answer would be perfect."""
    if n < features + 2:
        raise UserError(
            f"{what} of {features} features needs at least {features + 2} images, got {n}: with fewer, every pair of "
            f"representations looks alike; {remedy}"
        )


def r2_cca(moments: PairedMoments) -> float:
    """Return the mean squared canonical correlation, R2_CCA, of x: (rows, dx) and y: (rows, dy).

    The sum of squared correlations over the smaller of both ranks. In [0, 1]; 1: the side of smaller rank is a linear
    function of the other; 0: no linear relation. Invariant to invertible linear maps and translation of either side.
    Raise UserError where rows <= features + 1 or a side is constant.
    Source: Kornblith et al. 2019, table 1 (features there assumed centred); Raghu et al. 2017 for rank truncation.
    """
    bases = _bases(moments)
    return min(1.0, float(bases.cross.square().sum()) / min(bases.cross.shape))


def mean_cca(moments: PairedMoments) -> float:
    """Return the mean canonical correlation.

    Range, meaning, invariances and errors as `r2_cca`. Source: Kornblith et al. 2019, table 1; Raghu et al. 2017.
    """
    return _mean_correlation(_bases(moments).cross)


def pwcca(moments: PairedMoments) -> float:
    """Return the mean canonical correlation, weighted by what each carries of x.

    The weight of a canonical variate h is the sum of |<h, x_j>| over the features x_j. In [0, 1]; 1 and 0 as `r2_cca`.
    Not symmetric. Invariant to invertible linear maps of y, but of x only to one common scale; to translation of both.
    Where correlations tie, any axes of their space are canonical and the sum depends on which are taken; these are
    then the principal axes of x's features within it, which do not depend on y. Errors as `r2_cca`.
    Source: Morcos et al. 2018, "Insights on representational similarity", section 3.
    """
    bases = _bases(moments)
    u, correlations, _ = torch.linalg.svd(bases.cross, full_matrices=False)
    loadings = u.T @ bases.loading
    for tied in _ties(correlations):
        loadings[tied] = torch.linalg.svd(loadings[tied], full_matrices=False)[0].T @ loadings[tied]
    weights = loadings.abs().sum(1)
    return float((weights * correlations.clamp(max=1)).sum() / weights.sum())


def pwcca_ties(moments: PairedMoments) -> str:
    """Say in words how many canonical correlations tie; empty where none do."""
    cross = _bases(moments).cross
    count = sum(tied.stop - tied.start for tied in _ties(torch.linalg.svdvals(cross)))
    return f"pwcca: {count} of {min(cross.shape)} correlations tie, their axes are a convention" if count else ""


def _ties(correlations: Tensor) -> list[slice]:
    """Runs of two or more equal numbers in a descending list."""
    steps = torch.nonzero(correlations.diff().abs() >= TIE).flatten() + 1
    ends = [0, *steps.tolist(), len(correlations)]
    return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False) if stop - start > 1]


def svcca(moments: PairedMoments) -> float:
    """Return the mean canonical correlation of the principal directions with 99% of the variance.

    In [0, 1]. Invariant to rotation, reflection, one common scale and translation. Raise UserError where a side is
    constant or the directions that remain on both sides together are more than rows - 2.
    Source: Raghu et al. 2017, "SVCCA: Singular Vector Canonical Correlation Analysis", section 2.
    """
    require_varying(*moments.nonconstant())
    whiten_x, whiten_y = _principal_whitening(moments.xx), _principal_whitening(moments.yy)
    # Where both sides' directions together outnumber images, some correlations are 1 whatever the data.
    kept = whiten_x.shape[1] + whiten_y.shape[1]
    require_images(moments.n, kept, "svcca (principal directions of both sides together)")
    return _mean_correlation(whiten_x.T @ moments.xy @ whiten_y)


def _mean_correlation(cross: Tensor) -> float:
    return float(torch.linalg.svdvals(cross).clamp(max=1).mean())


def _bases(moments: PairedMoments) -> Bases:
    """Read the bases from sums of products; directions weaker than 3e-7 of the strongest are left out."""
    require_images(moments.n, max(moments.xy.shape), "CCA")
    require_varying(*moments.nonconstant())
    whiten_x, whiten_y = (
        _whitening(gram, mean, moments.n) for gram, mean in ((moments.xx, moments.mean_x), (moments.yy, moments.mean_y))
    )
    return Bases(whiten_x.T @ moments.xy @ whiten_y, whiten_x.T @ moments.xx)


def _whitening(gram: Tensor, mean: Tensor, n: int) -> Tensor:
    spectrum = unit_spectrum(gram, mean, n)
    whiten = gram.new_zeros(len(gram), len(spectrum.values))
    whiten[spectrum.nonconstant] = spectrum.vectors / spectrum.values.sqrt() / spectrum.scale[:, None]
    return whiten


def _principal_whitening(gram: Tensor) -> Tensor:
    values, vectors = eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = _principal(values)
    return vectors[:, :kept] / values[:kept].sqrt()


def _principal(variances: Tensor) -> int:
    variances = variances[variances > rank_floor(variances)]
    explained = variances.cumsum(0) / variances.sum()
    # The last sum may round to just under 1, and the threshold itself must not drop a direction by a rounding error.
    return int((explained < SVCCA_VARIANCE - 1e-12).sum()) + 1
