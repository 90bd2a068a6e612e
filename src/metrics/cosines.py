"""Cosines between images: of their activations as they are, or of each about the mean of its own features."""

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.gram import row_energies
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.matrix_rows import float64_pieces
from src.metrics.algebra.products import times

# Products that take no longer than this many multiplications are made in float64.
CHEAP = 4e9


def zero_tolerance(rows: Tensor) -> float:
    """An activation of this norm, beside the parts that it is the sum of, centred row and mean, is 0."""
    return 8 * torch.finfo(rows.dtype).eps


class Cosines:
    """Blocks of cosines between the uncentred rows of a layer; with `about_own_mean`, of Pearson correlations.

    The products are those of the centred rows, in float32 where these are many, to which the parts of the mean are
    added in float64: however far the activations lie from 0, no digit of their differences is lost. A row of zeros
    has cosine 0.
    """

    def __init__(self, layer: Layer, *, about_own_mean: bool = False) -> None:
        self.rows, self.mean = layer.centre(), layer.offset
        (n, d), least = self.rows.shape, zero_tolerance(self.rows)
        if n * n * d <= CHEAP:
            self.rows = self.rows.double()
        if about_own_mean:
            self.mean = self.mean - self.mean.mean()
        along, own = (torch.empty(len(self.rows), dtype=torch.float64, device=self.rows.device) for _ in range(2))
        start = 0
        for piece in float64_pieces(self.rows, self.rows.device):
            along[start : start + len(piece)] = piece @ self.mean
            own[start : start + len(piece)] = piece.mean(1)
            start += len(piece)
        self.along = along + self.mean @ self.mean / 2
        self.own = own * d**0.5 if about_own_mean else torch.zeros_like(own)
        parts = row_energies(self.rows)
        squares = parts + 2 * self.along - self.own.square()
        empty = squares <= least**2 * (parts + self.mean @ self.mean)
        self.scale = torch.where(empty, 0, squares.clamp(min=1e-300).rsqrt())
        if empty.all():
            raise UserError("all activations are 0" + ", each about its own mean" * about_own_mean)

    def __call__(self, rows: slice, columns: slice = slice(None)) -> Tensor:
        """Return the block in float64."""
        block = times(self.rows[rows], self.rows[columns]).double()
        block.add_(self.along[rows, None]).add_(self.along[columns])
        block.addr_(self.own[rows], self.own[columns], alpha=-1)
        return block.mul_(self.scale[rows, None]).mul_(self.scale[columns])

    def to(self, rows: slice, others: Tensor) -> Tensor:
        """Return the cosines of some rows to others of their own each, by index: (rows, k) -> (rows, k)."""
        products = torch.einsum("nd,nkd->nk", self.rows[rows], self.rows[others]).double()
        products += self.along[rows, None] + self.along[others] - self.own[rows, None] * self.own[others]
        return products * self.scale[rows, None] * self.scale[others]
