"""Canonical correlations (CCA) and the three numbers people make of them, from matrices or from moments."""

from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.linalg import RANK_TOLERANCE, rank_floor, require_varying, unit_spectrum
from src.metrics.moments import PairedMoments
from src.metrics.rows import paired, unit

# Share of the variance that the principal directions kept by svcca explain.
SVCCA_VARIANCE = 0.99


class Bases(NamedTuple):
    """Orthonormal bases of both sides, as far as canonical correlations need them.

    cross: (rank_x, rank_y) inner products of the basis vectors; its singular values are the canonical correlations.
    loading: (rank_x, dx) inner products of x's basis vectors with x's own features.
    """

    cross: Tensor
    loading: Tensor


def require_images(n: int, features: int, what: str, remedy: str = "use more images or --view channels") -> None:
    """Raise ValueError where n rows are fitted exactly by so many features, so that any answer would be perfect."""
    if n < features + 2:
        raise ValueError(
            f"{what} of {features} features needs at least {features + 2} images, got {n}: with fewer, every pair of "
            f"representations looks alike; {remedy}"
        )


def r2_cca(x: Tensor, y: Tensor) -> float:
    """Compare x: (images, dx) and y: (images, dy) by the mean squared canonical correlation, R2_CCA.

    The sum of squared correlations over the smaller of both ranks. In [0, 1]; 1: the side of smaller rank is a linear
    function of the other; 0: no linear relation. Invariant to invertible linear maps and translation of either side.
    Raise ValueError where images <= features + 1 or a side is constant.
    Source: Kornblith et al. 2019, table 1 (features there assumed centred); Raghu et al. 2017 for rank truncation.
    """
    return r2_cca_of(bases_of_rows(x, y))


def mean_cca(x: Tensor, y: Tensor) -> float:
    """Compare x: (images, dx) and y: (images, dy) by the mean canonical correlation.

    Range, meaning, invariances and errors as `r2_cca`. Source: Kornblith et al. 2019, table 1; Raghu et al. 2017.
    """
    return mean_cca_of(bases_of_rows(x, y))


def pwcca(x: Tensor, y: Tensor) -> float:
    """Compare x: (images, dx) and y: (images, dy) by canonical correlations weighted by what they carry of x.

    The weight of a canonical variate h is the sum of |<h, x_j>| over the features x_j. In [0, 1]; 1 and 0 as `r2_cca`.
    Not symmetric. Invariant to invertible linear maps of y, but of x only to one common scale; to translation of both.
    Errors as `r2_cca`. Source: Morcos et al. 2018, "Insights on representational similarity", section 3.
    """
    return pwcca_of(bases_of_rows(x, y))


def svcca(x: Tensor, y: Tensor) -> float:
    """Compare x: (images, dx) and y: (images, dy) by mean CCA of the principal directions with 99% of the variance.

    In [0, 1]. Invariant to rotation, reflection, one common scale and translation. Raise ValueError where a side is
    constant or the directions that remain on both sides together are more than images - 2.
    Source: Raghu et al. 2017, "SVCCA: Singular Vector Canonical Correlation Analysis", section 2.
    """
    x, y = paired(x.detach(), y.detach())
    sides = []
    for rows, name in ((x, "first"), (y, "second")):
        u, s, vt = torch.linalg.svd(unit(rows.double(), name), full_matrices=False)
        kept = _principal(s.square())
        sides.append((u[:, :kept], s[:kept, None] * vt[:kept]))
    _require_free(len(x), sides[0][0].shape[1], sides[1][0].shape[1])
    return mean_cca_of(Bases(sides[0][0].T @ sides[1][0], sides[0][1]))


def bases_of_rows(x: Tensor, y: Tensor) -> Bases:
    """Return the bases by singular value decomposition of the rows themselves, which keeps full float64 accuracy."""
    x, y = paired(x.detach(), y.detach())
    require_images(len(x), max(x.shape[1], y.shape[1]), "CCA")
    x, y = unit(x.double(), "first"), unit(y.double(), "second")
    basis_x, basis_y = _orthonormal(x), _orthonormal(y)
    return Bases(basis_x.T @ basis_y, basis_x.T @ x)


def _orthonormal(rows: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(rows / rows.norm(dim=0), full_matrices=False)
    return u[:, s > s.max() * RANK_TOLERANCE**0.5]


def bases_of_moments(moments: PairedMoments) -> Bases:
    """Return the bases from sums of products; directions weaker than 3e-7 of the strongest are left out."""
    require_images(moments.n, max(moments.xy.shape), "CCA")
    require_varying(*moments.live())
    whiten_x, whiten_y = (
        _whitening(gram, mean, moments.n) for gram, mean in ((moments.xx, moments.mean_x), (moments.yy, moments.mean_y))
    )
    return Bases(whiten_x.T @ moments.xy @ whiten_y, whiten_x.T @ moments.xx)


def _whitening(gram: Tensor, mean: Tensor, n: int) -> Tensor:
    spectrum = unit_spectrum(gram, mean, n)
    whiten = gram.new_zeros(len(gram), len(spectrum.values))
    whiten[spectrum.live] = spectrum.vectors / spectrum.values.sqrt() / spectrum.scale[:, None]
    return whiten


def svcca_of_moments(moments: PairedMoments) -> float:
    """Return svcca from sums of products."""
    require_varying(*moments.live())
    whiten_x, whiten_y = _principal_whitening(moments.xx), _principal_whitening(moments.yy)
    _require_free(moments.n, whiten_x.shape[1], whiten_y.shape[1])
    return mean_cca_of(Bases(whiten_x.T @ moments.xy @ whiten_y, whiten_x.T @ moments.xx))


def _require_free(n: int, kept_x: int, kept_y: int) -> None:
    # Where both sides' directions together outnumber images, some correlations are 1 whatever the data.
    require_images(n, kept_x + kept_y, "svcca (principal directions of both sides together)")


def _principal_whitening(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = _principal(values)
    return vectors[:, :kept] / values[:kept].sqrt()


def _principal(variances: Tensor) -> int:
    variances = variances[variances > rank_floor(variances)]
    explained = variances.cumsum(0) / variances.sum()
    # The last sum may round to just under 1, and the threshold itself must not drop a direction by a rounding error.
    return int((explained < SVCCA_VARIANCE - 1e-12).sum()) + 1


def r2_cca_of(bases: Bases) -> float:
    """Return R2_CCA of two bases."""
    return min(1.0, float(bases.cross.square().sum()) / min(bases.cross.shape))


def mean_cca_of(bases: Bases) -> float:
    """Return the mean canonical correlation of two bases."""
    return float(torch.linalg.svdvals(bases.cross).clamp(max=1).mean())


def pwcca_of(bases: Bases) -> float:
    """Return the weighted mean canonical correlation of two bases."""
    u, correlations, _ = torch.linalg.svd(bases.cross, full_matrices=False)
    weights = (u.T @ bases.loading).abs().sum(1)
    return float((weights * correlations.clamp(max=1)).sum() / weights.sum())
