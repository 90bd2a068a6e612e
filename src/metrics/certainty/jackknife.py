"""What becomes of linear CKA when one image is left out, and when images are dealt out at random, in closed form."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.gram import BLOCK
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.products import times


@dataclass(frozen=True, slots=True)
class GramVectors:
    """Sums along the rows of two Gram matrices K and L (n, n), all float64, diagonals apart.

    sums: row sums of K and L without the diagonal, (2, n). diagonals: (2, n). products: row sums of K*L, K*K and L*L
    (element by element) without the diagonal, (3, n). crossed: at (i, j) the i-th matrix times row sums of the j-th,
    at (i, 2 + j) times its diagonal.
    """

    sums: Tensor
    diagonals: Tensor
    products: Tensor
    crossed: dict[tuple[int, int], Tensor]

    @property
    def n(self) -> int:
        return self.sums.shape[1]

    def left_out(self, *, debiased: bool) -> Tensor:
        """CKA without each image, (n,). Raises UserError where that is undefined."""
        least = 5 if debiased else 3
        if self.n < least:
            raise UserError(f"{self.n} images are too few for a jackknife of CKA; at least {least} are needed")
        make = self._debiased if debiased else self._biased
        kl, kk, ll = (make(index, pair) for index, pair in enumerate(((0, 1), (0, 0), (1, 1))))
        if not ((kk > 0).all() and (ll > 0).all()):
            raise UserError("CKA is undefined where an image is left out: a representation is constant without it")
        return kl / kk.sqrt() / ll.sqrt()

    def dominant(self) -> list[int]:
        """The images, at most one of each side, that hold more than half of all energy."""
        shares = self.diagonals / self.diagonals.sum(1, keepdim=True)
        return sorted({int(side.argmax()) for side in shares if side.max() > 0.5})

    def _without(self, index: int, pair: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """<K, L>, sum k l and (sum k)(sum l) without each image; diagonals count for nothing."""
        (i, j), product = pair, self.products[index]
        k, other = self.sums[i], self.sums[j]
        whole = product.sum() - 2 * product
        crossed = (k * other).sum() - k * other - self.crossed[i, j] - self.crossed[j, i] + product
        totals = (k.sum() - 2 * k) * (other.sum() - 2 * other)
        return whole, crossed, totals

    def _debiased(self, index: int, pair: tuple[int, int]) -> Tensor:
        whole, crossed, totals = self._without(index, pair)
        m = self.n - 1
        return whole + totals / ((m - 1) * (m - 2)) - 2 / (m - 2) * crossed

    def _biased(self, index: int, pair: tuple[int, int]) -> Tensor:
        """<HKH, HLH> without each image, diagonals put back in."""
        (i, j), m = pair, self.n - 1
        whole, crossed, _ = self._without(index, pair)
        a, b = self.diagonals[i], self.diagonals[j]
        k, other = self.sums[i], self.sums[j]
        # row sums with the diagonal, of all rows but the one left out: (k_j - K_ij + a_j)(l_j - L_ij + b_j)
        mixed = (k * b + other * a + a * b).sum() - k * b - other * a - a * b
        mixed -= self.crossed[i, 2 + j] + self.crossed[j, 2 + i]
        totals = (k.sum() - 2 * k + a.sum() - a) * (other.sum() - 2 * other + b.sum() - b)
        return whole + (a * b).sum() - a * b - 2 / m * (crossed + mixed) + totals / m**2

    def null(self, *, debiased: bool) -> tuple[float, float]:
        """Mean and standard deviation of CKA over all pairings of the images, (n!) of them.

        The moments of <A, P B P'> over permutations P of symmetric A and B whose rows sum to 0 depend on their traces,
        squares and squared diagonals alone (Kazi-Aoual et al. 1995; Josse, Pages and Husson 2008, eq. 2 and 3).
        """
        n = self.n
        if n < 5:
            raise UserError(f"{n} images are too few for the null distribution of CKA; at least 5 are needed")
        facts = [self._facts(side, debiased=debiased) for side in (0, 1)]
        (t, t2, s2), (u, u2, v2) = facts
        if not (t2 > 0 and u2 > 0):
            raise UserError("CKA is undefined: a representation is constant")
        first = 2 * ((n - 1) * t2 - t * t) * ((n - 1) * u2 - u * u) / ((n - 1) ** 2 * (n + 1) * (n - 2))
        second = (n * (n + 1) * s2 - (n - 1) * (t * t + 2 * t2)) * (n * (n + 1) * v2 - (n - 1) * (u * u + 2 * u2))
        variance = first + second / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
        scale = math.sqrt(t2 * u2)
        return t * u / (n - 1) / scale, math.sqrt(max(0.0, variance)) / scale

    def _facts(self, side: int, *, debiased: bool) -> tuple[float, float, float]:
        """Trace, sum of squares and sum of squared diagonals of a centred, or U-centred, Gram matrix."""
        n, k, a = self.n, self.sums[side], self.diagonals[side]
        squares = float(self.products[1 + side].sum())
        if debiased:
            centred = squares + float(k.sum()) ** 2 / ((n - 1) * (n - 2)) - 2 / (n - 2) * float(k @ k)
            return 0.0, centred, 0.0
        rows = k + a
        diagonal = a - 2 * rows / n + rows.sum() / n**2
        whole = squares + float(a @ a) - 2 / n * float(rows @ rows) + float(rows.sum()) ** 2 / n**2
        return float(diagonal.sum()), whole, float(diagonal @ diagonal)


@torch.no_grad()
def gram_vectors(x: Tensor, y: Tensor) -> GramVectors:
    """The sums of the Gram matrices of x: (n, dx) and y: (n, dy), in two passes over their blocks.

    The rows are centred first, and sums are float64: an image far from all others does not drown the rest.
    """
    sides = [Layer.of(side).rows for side in (x, y)]
    n = len(x)
    sums, diagonals = torch.zeros(2, n, dtype=torch.float64), torch.zeros(2, n, dtype=torch.float64)
    products = torch.zeros(3, n, dtype=torch.float64)
    for rows, grams in _blocks(sides, diagonals):
        sums[:, rows] = torch.stack([gram.sum(1) for gram in grams])
        pairs = ((grams[0], grams[1]), (grams[0], grams[0]), (grams[1], grams[1]))
        products[:, rows] = torch.stack([(one * other).sum(1) for one, other in pairs])
    weights = torch.cat([sums, diagonals]).T
    crossed = torch.zeros(2, n, 4, dtype=torch.float64)
    for rows, grams in _blocks(sides, diagonals.clone()):
        for side, gram in enumerate(grams):
            crossed[side, rows] = gram @ weights
    return GramVectors(sums, diagonals, products, {(i, j): crossed[i, :, j] for i in range(2) for j in range(4)})


def _blocks(sides: Sequence[Tensor], diagonals: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Rows of both Gram matrices in float64, without their diagonals, which are put apart."""
    n = len(sides[0])
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        grams = [times(side[rows], side).double().cpu() for side in sides]
        here = torch.arange(rows.stop - rows.start)
        for side, gram in enumerate(grams):
            diagonals[side, rows] = gram[here, here + start]
            gram[here, here + start] = 0
        yield rows, grams
