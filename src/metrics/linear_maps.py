"""How well one representation is a linear, an orthogonal or a one-to-one function of the other."""

import math
from typing import TypedDict

import numpy as np
from torch import Tensor

from src.metrics.algebra.linalg import require_varying
from src.metrics.algebra.moments import ROUNDING, PairedMoments, correlation, least_squares, r_squared
from src.metrics.algebra.products import svdvals
from src.metrics.canonical import require_images


class LinearMap(TypedDict):
    """y ~ x w^T + b with w: (dy, dx), b: (dy,), and the share of y's variance that it explains."""

    w: np.ndarray
    b: np.ndarray
    r2: float


class Correlations(TypedDict):
    """matrix: (dy, dx); mean_best: the mean over live features of y of their best correlation."""

    matrix: np.ndarray
    mean_best: float


def moments_of(x: Tensor, y: Tensor) -> PairedMoments:
    """Return the moments of x: (rows, dx) and y: (rows, dy)."""
    moments = PairedMoments(x.shape[1], y.shape[1], x.device)
    moments.update(x, y)
    return moments


def linear_map(moments: PairedMoments) -> LinearMap:
    """Fit y: (rows, dy) as an affine function of x: (rows, dx) by least squares (pseudo-inverse, smallest norm).

    r2 in [0, 1]; 1: y is an affine function of x; 0: x tells nothing about y. r2 is invariant to invertible linear
    maps of x, to rotation, reflection and one common scale of y, and to translation. Not symmetric.
    Raise UserError where rows <= dx + 1 (any y would fit) or y is constant.
    Source: Csiszárik et al. 2021, "Similarity and Matching of Neural Network Representations".
    """
    require_images(moments.n, len(moments.xx), "a linear map")
    fitted = least_squares(moments)
    # Least squares with a constant term cannot do worse than the mean or better than exact, except by rounding.
    r2 = min(1.0, max(0.0, r_squared(moments, fitted)))
    return LinearMap(w=_numpy(fitted.w), b=_numpy(fitted.b), r2=r2)


def linear_regression(moments: PairedMoments) -> float:
    """Return R2 of the linear regression of y: (rows, dy) on x: (rows, dx).

    Range, meaning, invariances and errors as r2 of `linear_map`. Source: Kornblith et al. 2019, table 1 (R2_LR).
    """
    return linear_map(moments)["r2"]


def procrustes_distance(moments: PairedMoments) -> float:
    """Return the squared distance of x: (rows, dx) and y: (rows, dy) after the best rotation or reflection.

    Both are centred and scaled to Frobenius norm 1, the narrower padded with zero columns. In [0, 2]; 0: equal up to
    rotation, reflection, one common scale and translation, to all of which it is invariant; 2: uncorrelated.
    Raise UserError where a side is constant.
    Source: Ding, Denain and Steinhardt 2021, "Grounding Representation Similarity"; Schönemann 1966.
    """
    require_varying(*moments.nonconstant())
    nuclear = svdvals(moments.xy).sum()
    return max(0.0, 2 - 2 * float(nuclear / moments.xx.trace().sqrt() / moments.yy.trace().sqrt()))


def angular_shape(moments: PairedMoments) -> float:
    """Return the angle between x: (rows, dx) and y: (rows, dy), both centred, after the best rotation or reflection.

    In [0, pi/2]; 0: equal up to rotation, reflection, one common scale and translation, to all of which it is
    invariant. Read from the distance, since an arc cosine near 1 loses half of the digits. Raise UserError where a
    side is constant. Source: Williams et al. 2021, "Generalized Shape Metrics on Neural Representations".
    """
    squared = procrustes_distance(moments)
    # what rounding leaves of equal sides is no distance
    return 2 * math.asin(min(1.0, math.sqrt(squared) / 2)) if squared > ROUNDING else 0.0


def correlations(moments: PairedMoments) -> Correlations:
    """Correlate every feature of y: (rows, dy) with every feature of x: (rows, dx).

    The matrix is in [-1, 1], exactly 0 for features that do not vary. mean_best is in [-1, 1]; 1: every live feature
    of y is a scaled and shifted copy of one of x; 0: all are uncorrelated. Invariant to a positive common scale and to
    translation. Raise UserError where a side is constant.
    Source: Li et al. 2016, "Convergent Learning" (semi-matching).
    """
    nonconstant_x, nonconstant_y = moments.nonconstant()
    require_varying(nonconstant_x, nonconstant_y)
    matrix = correlation(moments)
    best = matrix[nonconstant_y][:, nonconstant_x].max(1).values.mean()
    return Correlations(matrix=_numpy(matrix), mean_best=float(best))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
