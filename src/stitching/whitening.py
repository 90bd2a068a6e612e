"""Coordinates in which the front activations are white and the end's have variance one: a shorter way to an optimum."""

from dataclasses import dataclass

import torch
from torch import Tensor

from src.metrics.algebra.moments import PairedMoments

WEAKEST = 1e-6  # of the largest eigenvalue of the front's correlations: weaker directions are left out


@dataclass(frozen=True, slots=True)
class Whitening:
    """y = D V S (x - m) + b for a trained V: m (in,) the front's mean, D (out,) the end's standard deviations.

    S (in, in) divides by the front's standard deviations, then by the square root of its correlations, so that no
    direction is lost for its scale; `back` is its pseudo-inverse. centre: (out,) the end's mean. All float64.
    """

    m: Tensor
    s: Tensor
    back: Tensor
    d: Tensor
    centre: Tensor

    def transform(self, w: Tensor) -> Tensor:
        """The V of a matrix (out, in), as far as the front activations vary."""
        return w.to(self.d) / self.d[:, None] @ self.back

    def inverse(self, v: Tensor) -> Tensor:
        """The matrix of a V."""
        return self.d[:, None] * (v.to(self.d) @ self.s)


def whitening_of(moments: PairedMoments, *, by_channel: bool = False) -> Whitening:
    """The coordinates of two activations; `by_channel` scales front channels alone and mixes none of them."""
    covariance, variances = moments.xx / moments.n, moments.yy.diagonal() / moments.n
    nonconstant = moments.nonconstant()
    d = torch.where(nonconstant[1], variances.clamp(min=0).sqrt(), 1.0)
    std = torch.where(nonconstant[0], covariance.diagonal().clamp(min=0).sqrt(), 1.0)
    if by_channel:
        return Whitening(moments.mean_x, torch.diag(1 / std), torch.diag(std), d, moments.mean_y)
    values, vectors = torch.linalg.eigh(covariance / std / std[:, None])
    kept = values > WEAKEST * values.max().clamp(min=0)
    values, vectors = values[kept].sqrt(), vectors[:, kept]
    white, coloured = vectors / values @ vectors.T, vectors * values @ vectors.T
    return Whitening(moments.mean_x, white / std, std[:, None] * coloured, d, moments.mean_y)
