"""Canonical correlations (CCA) and the numbers people make of them, from moments."""

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.linalg import rank_floor, require_varying
from src.metrics.algebra.moments import PairedMoments, Sums
from src.metrics.algebra.products import eigh

# Share of the variance that the principal directions kept by svcca explain.
SVCCA_VARIANCE = 0.99
# Canonical correlations closer than this count as equal: their directions are then rounding.
TIE = 1e-6


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
    cross = _cross(moments)
    return min(1.0, float(cross.square().sum()) / min(cross.shape))


def mean_cca(moments: PairedMoments) -> float:
    """Return the mean canonical correlation.

    Range, meaning, invariances and errors as `r2_cca`. Source: Kornblith et al. 2019, table 1; Raghu et al. 2017.
    """
    return _mean_correlation(_cross(moments))


def pwcca(moments: PairedMoments) -> float:
    """Return the mean canonical correlation, weighted by what each carries of x.

    The weight of a canonical variate h is the sum of |<h, x_j>| over the features x_j. In [0, 1]; 1 and 0 as `r2_cca`.
    Not symmetric. Invariant to invertible linear maps of y, but of x only to one common scale; to translation of both.
    Where correlations tie, any axes of their space are canonical and the sum depends on which are taken; these are
    then the principal axes of x's features within it, which do not depend on y. Errors as `r2_cca`.
    Source: Morcos et al. 2018, "Insights on representational similarity", section 3.
    """
    u, correlations, _ = _directions(moments)
    loadings = u.T @ _loading(moments.x)
    for tied in _ties(correlations):
        loadings[tied] = torch.linalg.svd(loadings[tied], full_matrices=False)[0].T @ loadings[tied]
    weights = loadings.abs().sum(1)
    return float((weights * correlations.clamp(max=1)).sum() / weights.sum())


def pwcca_ties(moments: PairedMoments) -> str:
    """Say in words how many canonical correlations tie; empty where none do."""
    correlations = _directions(moments)[1]
    count = sum(tied.stop - tied.start for tied in _ties(correlations))
    return f"pwcca: {count} of {len(correlations)} correlations tie, their axes are a convention" if count else ""


def _directions(moments: PairedMoments) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical directions of both sides in their bases, and the correlations between, found once a pair."""
    if "directions" not in moments.known:
        moments.known["directions"] = torch.linalg.svd(_cross(moments), full_matrices=False)
    return moments.known["directions"]


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
    whiten_x, whiten_y = _principal_whitening(moments.x), _principal_whitening(moments.y)
    # Where both sides' directions together outnumber images, some correlations are 1 whatever the data.
    kept = whiten_x.shape[1] + whiten_y.shape[1]
    require_images(moments.n, kept, "svcca (principal directions of both sides together)")
    return _mean_correlation(whiten_x.T @ moments.xy @ whiten_y)


def _mean_correlation(cross: Tensor) -> float:
    return float(torch.linalg.svdvals(cross).clamp(max=1).mean())


def _cross(moments: PairedMoments) -> Tensor:
    """Inner products (rank_x, rank_y) of orthonormal bases of both sides, whose singular values are the correlations.

    Found once a pair; directions weaker than 3e-7 of the strongest are left out.
    """
    require_images(moments.n, max(moments.xy.shape), "CCA")
    require_varying(*moments.nonconstant())
    if "cross" not in moments.known:
        moments.known["cross"] = _whitening(moments.x).T @ moments.xy @ _whitening(moments.y)
    return moments.known["cross"]


def _loading(sums: Sums) -> Tensor:
    """Inner products (rank, d) of the vectors of a layer's basis with its own features, found once a layer."""
    if "loading" not in sums.known:
        sums.known["loading"] = _whitening(sums).T @ sums.products
    return sums.known["loading"]


def _whitening(sums: Sums) -> Tensor:
    """The map (d, rank) to uncorrelated features with sums of squares of 1, of those that vary; found once a layer."""
    if "whitening" not in sums.known:
        spectrum = sums.spectrum()
        whiten = sums.products.new_zeros(sums.d, len(spectrum.values))
        whiten[spectrum.nonconstant] = spectrum.vectors / spectrum.values.sqrt() / spectrum.scale[:, None]
        sums.known["whitening"] = whiten
    return sums.known["whitening"]


def _principal_whitening(sums: Sums) -> Tensor:
    """The same of the principal directions that explain SVCCA_VARIANCE, found once a layer."""
    if "principal" not in sums.known:
        values, vectors = eigh(sums.products)
        values, vectors = values.flip(0), vectors.flip(1)
        kept = _principal(values)
        sums.known["principal"] = vectors[:, :kept] / values[:kept].sqrt()
    return sums.known["principal"]


def _principal(variances: Tensor) -> int:
    variances = variances[variances > rank_floor(variances)]
    explained = variances.cumsum(0) / variances.sum()
    # The last sum may round to just under 1, and the threshold itself must not drop a direction by a rounding error.
    return int((explained < SVCCA_VARIANCE - 1e-12).sum()) + 1
