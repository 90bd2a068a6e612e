"""Eigenvalues of sums of products, read so that scale, dead features and rank deficiency do no harm."""

from typing import NamedTuple

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.products import eigh

# Relative to the spread: below this a feature's variation is the rounding noise of its own mean.
DEAD_RELATIVE_STD = 1e-12
# Relative to the largest eigenvalue of unit-variance features. Sums of products square the condition number, so this
# keeps directions down to about 3e-7 of the strongest one: what float32 activations can still tell apart.
RANK_TOLERANCE = 1e-13


class Spectrum(NamedTuple):
    """Eigenvectors of the live features, each scaled to unit variance.

    values: (r,) eigenvalues above the tolerance, descending. vectors: (live, r); null: (live, live - r) the rest.
    scale: (live,) roots of the sums of squares. live: (d,) boolean, False for features without variance.
    """

    values: Tensor
    vectors: Tensor
    null: Tensor
    scale: Tensor
    nonconstant: Tensor


def float64_device(device: torch.device | str) -> torch.device:
    """Return the device itself, or the CPU where the device cannot hold float64 (mps)."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def as_float64(x: Tensor) -> Tensor:
    """The values in float64, on their device or the CPU: first there, then so, since mps cannot do both at once."""
    return x.to(float64_device(x.device)).double()


def is_read_at_once(device: torch.device) -> bool:
    """Whether to look at a number there costs nothing; a GPU must first do all that is queued."""
    return device.type == "cpu"


def nonconstant_features(squares: Tensor, mean: Tensor, n: int) -> Tensor:
    """Tell which features vary at all: (d,) boolean from (d,) centred sums of squares, (d,) means and n rows."""
    return squares > n * (DEAD_RELATIVE_STD * mean).square()


def unit_spectrum(gram: Tensor, mean: Tensor, n: int) -> Spectrum:
    """Decompose a (d, d) matrix of centred sums of products, its features brought to unit variance first."""
    nonconstant = nonconstant_features(gram.diagonal(), mean, n)
    scale = gram.diagonal()[nonconstant].sqrt()
    unit = gram[nonconstant][:, nonconstant] / scale / scale[:, None]
    values, vectors = eigh(unit)
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values > rank_floor(values)).sum())
    return Spectrum(values[:rank], vectors[:, :rank], vectors[:, rank:], scale, nonconstant)


def rank_floor(values: Tensor) -> Tensor:
    """Return the eigenvalue below which a direction counts as absent, given all eigenvalues of a Gram matrix."""
    if len(values) == 0:
        return values.new_zeros(())
    tolerance = max(RANK_TOLERANCE, len(values) * torch.finfo(values.dtype).eps)
    return values.max().clamp(min=0) * tolerance


def require_varying(nonconstant_x: Tensor, nonconstant_y: Tensor) -> None:
    """Raise UserError where one side has no live feature."""
    for side, nonconstant in (("first", nonconstant_x), ("second", nonconstant_y)):
        if not nonconstant.any():
            raise UserError(f"the {side} representation is constant")
