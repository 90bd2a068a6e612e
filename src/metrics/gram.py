"""Sums over the Gram matrices K = x x^T and L = y y^T of centred images, never holding one of them whole."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.linalg import float64_device, require_varying
from src.metrics.moments import PairedMoments
from src.metrics.rows import float64_pieces, piece_rows

# Side of one block of a Gram matrix: the matrix product runs at full speed, and little is done below the diagonal.
BLOCK = 512
# Rows that are summed in float32 before float64 takes over, on the feature side.
RUN = 4096


class GramSums(NamedTuple):
    """What linear CKA needs of K and L (n, n), both centred: sums of K*L, K*K and L*L (in this order), and traces.

    off: over the entries off the diagonal; diagonal: over the diagonal. Kept apart, because the debiased estimator
    wants the first without the second and must not lose it in a difference. traces: of K and L.
    """

    n: int
    off: tuple[float, ...]
    diagonal: tuple[float, ...]
    traces: tuple[float, float]


def upper_blocks(n: int, size: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Cut an n x n matrix into blocks and yield those on and above the diagonal."""
    cuts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    for index, rows in enumerate(cuts):
        for columns in cuts[index:]:
            yield rows, columns


def row_energies(x: Tensor) -> Tensor:
    """Return the squared length of every row in float64: (n, d) -> (n,)."""
    energies, start = torch.empty(len(x), dtype=torch.float64, device=x.device), 0
    for piece in float64_pieces(x, x.device):
        energies[start : start + len(piece)] = piece.square_().sum(1)
        start += len(piece)
    return energies


class BlockProduct:
    """Blocks of x x^T, computed into one reused buffer."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        side = min(len(x), BLOCK)
        self.buffer = x.new_empty(side * side)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Return the block; it is valid until the next call."""
        a, b = self.x[rows], self.x[columns]
        return torch.mm(a, b.T, out=self.buffer[: len(a) * len(b)].view(len(a), len(b)))


def block_sum(a: Tensor, b: Tensor, spare: Tensor) -> float:
    """Sum a * b: each row in the blocks' own precision, the rows in float64."""
    product = torch.mul(a, b, out=spare[: a.numel()].view_as(a))
    return float(product.sum(1).sum(dtype=torch.float64))


@torch.no_grad()
def gram_sums(x: Tensor, y: Tensor, side: str | None = None) -> GramSums:
    """Sum over the Gram matrices of centred x: (n, dx) and y: (n, dy), in their own precision with float64 sums.

    side: "samples" goes over blocks of K and L, "features" over blocks of x^T x, x^T y and y^T y, whose sums of
    squares are the same numbers; None takes the cheaper one.
    """
    n, features = len(x), x.shape[1] + y.shape[1]
    energy_x, energy_y = row_energies(x), row_energies(y)
    diagonal = tuple(float(a @ b) for a, b in ((energy_x, energy_y), (energy_x, energy_x), (energy_y, energy_y)))
    if (side or ("features" if features <= n else "samples")) == "features":
        pairs = ((x, y), (x, x), (y, y))
        off = tuple(squared_products(a, b) - d for (a, b), d in zip(pairs, diagonal, strict=True))
    else:
        off = _off_diagonal(x, y)
    return GramSums(n, off, diagonal, (float(energy_x.sum()), float(energy_y.sum())))


def _off_diagonal(x: Tensor, y: Tensor) -> tuple[float, ...]:
    gram_x, gram_y = BlockProduct(x), BlockProduct(y)
    spare = torch.empty_like(gram_x.buffer)
    totals = [0.0, 0.0, 0.0]
    for rows, columns in upper_blocks(len(x)):
        block_x, block_y = gram_x(rows, columns), gram_y(rows, columns)
        weight = 2
        if rows == columns:
            block_x.fill_diagonal_(0)
            block_y.fill_diagonal_(0)
            weight = 1
        for index, (a, b) in enumerate(((block_x, block_y), (block_x, block_x), (block_y, block_y))):
            totals[index] += weight * block_sum(a, b, spare)
    return tuple(totals)


def squared_products(a: Tensor, b: Tensor) -> float:
    """Sum the squares of a^T b in blocks; of a^T a only the upper half is computed."""
    total = 0.0
    for i in range(0, a.shape[1], BLOCK):
        for j in range(i if a is b else 0, b.shape[1], BLOCK):
            block = torch.zeros((), dtype=torch.float64, device=a.device)
            for rows_a, rows_b in zip(a[:, i : i + BLOCK].split(RUN), b[:, j : j + BLOCK].split(RUN), strict=True):
                block = block + rows_a.T @ rows_b
            total += (2 if a is b and j > i else 1) * float(block.square().sum())
    return total


class Energies:
    """Sums over rows of |x - mean|^2 |y - mean|^2 and its like, in one pass: the diagonal sums of `GramSums`.

    The means are known only at the end, so rows are shifted by the mean of the first ones and the shift is undone by
    algebra; the sums that this takes are vectors.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = float64_device(device)
        self.shift: tuple[Tensor, Tensor] | None = None
        self.products: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows x: (rows, dx), y: (rows, dy)."""
        rows = piece_rows(x.shape[1] + y.shape[1])
        for piece_x, piece_y in zip(x.split(rows), y.split(rows), strict=True):
            self._add(piece_x.to(self.device, torch.float64), piece_y.to(self.device, torch.float64))

    def _add(self, x: Tensor, y: Tensor) -> None:
        if len(x) == 0:
            return
        if self.shift is None:
            self.shift = x.mean(0), y.mean(0)
        x, y = x - self.shift[0], y - self.shift[1]
        a, b = x.square().sum(1), y.square().sum(1)
        new = {"aa": a @ a, "ab": a @ b, "bb": b @ b, "ax": a @ x, "ay": a @ y, "bx": b @ x, "by": b @ y}
        self.products = {key: self.products[key] + value if self.products else value for key, value in new.items()}

    def diagonals(self, moments: PairedMoments) -> tuple[float, float, float]:
        """Return the sums of K_ii L_ii, K_ii^2 and L_ii^2, given the moments of the same rows."""
        if self.shift is None:
            raise ValueError("no activations were seen: the data set is empty")
        p, n = self.products, moments.n
        d, e = moments.mean_x - self.shift[0], moments.mean_y - self.shift[1]
        xx, yy = moments.xx, moments.yy

        def undo(square, u, v, along_u, along_v, trace_u, trace_v, cross) -> float:
            uu, vv = u @ u, v @ v
            linear = vv * trace_u + uu * trace_v - 2 * (along_u + along_v)
            return float(square + linear + 4 * (u @ cross @ v) + 3 * n * uu * vv)

        return (
            undo(p["ab"], d, e, p["bx"] @ d, p["ay"] @ e, xx.trace(), yy.trace(), moments.xy),
            undo(p["aa"], d, d, p["ax"] @ d, p["ax"] @ d, xx.trace(), xx.trace(), xx),
            undo(p["bb"], e, e, p["by"] @ e, p["by"] @ e, yy.trace(), yy.trace(), yy),
        )


def gram_sums_of_moments(moments: PairedMoments, energies: Energies) -> GramSums:
    """Return the same sums without the images: |x^T y|^2 = <K, L>."""
    require_varying(*moments.live())
    diagonal = energies.diagonals(moments)
    whole = [float(product.square().sum()) for product in (moments.xy, moments.xx, moments.yy)]
    off = tuple(total - part for total, part in zip(whole, diagonal, strict=True))
    return GramSums(moments.n, off, diagonal, (float(moments.xx.trace()), float(moments.yy.trace())))
