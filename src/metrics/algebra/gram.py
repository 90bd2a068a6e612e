"""Sums over the Gram matrices K = x x^T of centred images, never holding one of them whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.algebra.linalg import require_varying
from src.metrics.algebra.matrix_rows import float64_pieces
from src.metrics.algebra.moments import PairedMoments
from src.metrics.algebra.products import dots, in_order, times

# Side of one block of a Gram matrix: the matrix product runs at full speed, and little is done below the diagonal.
BLOCK, GPU_BLOCK = 512, 2048


class GramSums(NamedTuple):
    """What linear CKA needs of K and L (n, n), both centred: sums of K*L, K*K and L*L, in this order.

    whole: over all entries. unbiased: over the entries off the diagonal of the U-centred matrices, whose rows without
    their diagonal sum to 0 (Székely and Rizzo 2014): n (n - 3) times the unbiased HSIC of Song et al. 2012, eq. 5.
    None where fewer than 4 images have none. traces: of K and L. largest: of K and of L the share of their trace that
    the image with the most has; None where the images are not known one by one.
    """

    n: int
    whole: tuple[float, ...]
    unbiased: tuple[float, ...] | None
    traces: tuple[float, float]
    largest: tuple[float, float] | None = None

    def times(self, front: float, end: float) -> "GramSums":
        """The sums of front * K and end * L."""
        factors = front * end, front * front, end * end
        whole, unbiased = (
            sums and tuple(factor * part for factor, part in zip(factors, sums, strict=True))
            for sums in (self.whole, self.unbiased)
        )
        traces = front * self.traces[0], end * self.traces[1]
        return GramSums(self.n, whole or (), unbiased, traces, self.largest)


def block_side(device: torch.device) -> int:
    """The side of a block of Gram matrices on a device."""
    return GPU_BLOCK if device.type == "cuda" else BLOCK


def upper_blocks(n: int, size: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Cut an n x n matrix into blocks and yield those on and above the diagonal."""
    cuts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    for index, rows in enumerate(cuts):
        for columns in cuts[index:]:
            yield rows, columns


def blocks(n: int, device: torch.device | str = "cpu") -> int:
    """Return how many blocks `gram_sums` goes through for n images on a device."""
    return sum(1 for _ in upper_blocks(n, block_side(torch.device(device))))


def row_energies(x: Tensor) -> Tensor:
    """Return the squared length of every row in float64: (n, d) -> (n,)."""
    if x.device.type == "cuda":
        return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square_()
    energies, start = torch.empty(len(x), dtype=torch.float64, device=x.device), 0
    for piece in float64_pieces(x, x.device):
        energies[start : start + len(piece)] = piece.square_().sum(1)
        start += len(piece)
    return energies


class BlockProduct:
    """Blocks of x x^T, computed into one reused buffer."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        side = min(len(x), block_side(x.device))
        self.buffer = x.new_empty(side * side)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Return the block; it is valid until the next call."""
        a = self.x[rows]
        b = a if rows == columns else self.x[columns]
        return times(a, b, out=self.buffer[: len(a) * len(b)].view(len(a), len(b)))


def _block(x: Tensor, rows: slice, columns: slice) -> Tensor:
    a = x[rows]
    return times(a, a if rows == columns else x[columns], threads=1)


def block_sum(a: Tensor, b: Tensor, spare: Tensor) -> Tensor:
    """Sum a * b, a float64 scalar: each row in the blocks' own precision, the rows in float64."""
    product = torch.mul(a, b, out=spare[: a.numel()].view_as(a))
    return product.sum(1).sum(dtype=torch.float64)


@dataclass(slots=True)
class Begun:
    """How far sums over blocks are: blocks that are summed, and the sums (cells,) float64."""

    blocks: int = 0
    total: Tensor | None = None


@torch.no_grad()
def gram_sums(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    *,
    on_block: Callable[[], object] = lambda: None,
    begun: Begun | None = None,
) -> dict[tuple[int, int], GramSums]:
    """Sum over the Gram matrices of every pair of centred layers x: (n, dx) of `xs` and y: (n, dy) of `ys`.

    Each layer's Gram matrix is computed once, block by block, in the layer's own precision. A block is U-centred in
    float64 before anything is summed, its diagonal taken out: an image far from all others would otherwise drown the
    rest. What comes of a pair does not depend on the other layers, to the last bit. `on_block` is called after each of
    `blocks(n, device)` blocks, and `begun` says then how far it is; with what it said before, one goes on from there.
    """
    layers, n = [layer.detach() for layer in (*xs, *ys)], len(xs[0])
    energies = torch.stack([row_energies(layer) for layer in layers])
    traces = torch.stack([energy.sum() for energy in energies])
    cells = [(i, j) for i in range(len(layers)) for j in range(len(layers)) if i == j or i < len(xs) <= j]
    # centred rows sum to 0, so without its diagonal row i of K sums to -K_ii
    shares = energies / (n - 2) - traces[:, None] / (2 * (n - 1) * (n - 2)) if n >= 4 else torch.zeros_like(energies)
    begun = begun or Begun()
    total = torch.zeros(len(cells), dtype=torch.float64, device=energies.device)
    total = total if begun.total is None else begun.total.to(total)
    side = block_side(energies.device)
    buffer = energies.new_empty(len(layers) * min(n, side) ** 2)
    places = list(upper_blocks(n, side))[begun.blocks :]
    products = in_order([partial(_block, layer, *place) for place in places for layer in layers], layers[0])
    for rows, columns in places:
        height, width = (len(range(n)[part]) for part in (rows, columns))
        grams = buffer[: len(layers) * height * width].view(len(layers), height, width)
        for gram, share in zip(grams, shares, strict=True):
            gram.copy_(next(products)).add_(share[rows, None]).add_(share[columns])
        if rows == columns:
            grams.diagonal(dim1=1, dim2=2).zero_()
        flat = grams.flatten(1)
        total += dots(flat, cells) * (1 if rows == columns else 2)
        begun.blocks, begun.total = begun.blocks + 1, total
        on_block()

    def matrix(values: Tensor) -> Tensor:
        found = torch.zeros(len(layers), len(layers), dtype=values.dtype, device=values.device)
        found[tuple(torch.tensor(cells, device=values.device).T)] = values
        return found

    largest = energies.max(1).values / traces
    return _pairwise(matrix(total), matrix(dots(energies, cells)), traces, largest, n, len(xs))


def _pairwise(
    total: Tensor, diagonal: Tensor, traces: Tensor, largest: Tensor, n: int, firsts: int
) -> dict[tuple[int, int], GramSums]:
    # all at once: to read a number, a GPU must first do all that is queued
    total, diagonal, traces, largest = (values.cpu() for values in (total, diagonal, traces, largest))
    whole = total + diagonal
    if n >= 4:
        whole = whole + 2 / (n - 2) * diagonal - torch.outer(traces, traces) / ((n - 1) * (n - 2))

    def of(i: int, j: int) -> GramSums:
        cells = ((i, j), (i, i), (j, j))
        sums, unbiased = (tuple(float(matrix[cell]) for cell in cells) for matrix in (whole, total))
        own, shares = ((float(values[i]), float(values[j])) for values in (traces, largest))
        return GramSums(n, sums, unbiased if n >= 4 else None, own, shares)

    return {(i, j): of(i, firsts + j) for i in range(firsts) for j in range(len(total) - firsts)}


def gram_sums_of_moments(moments: PairedMoments) -> GramSums:
    """Return the same sums without the images, |x^T y|^2 = <K, L>, from moments that hold energies."""
    require_varying(*moments.nonconstant())
    n, x, y = moments.n, moments.x, moments.y
    whole = tuple(float(product.square().sum()) for product in (moments.xy, moments.xx, moments.yy))
    k, trace_y = float(moments.xx.trace()), float(moments.yy.trace())
    if n < 4:
        return GramSums(n, whole, None, (k, trace_y))
    u, v = x.energy(), y.energy()
    traces = k * trace_y, k * k, trace_y * trace_y
    centred = u @ moments.all_xy @ v, u @ x.all_products @ u, v @ y.all_products @ v
    diagonals = [float(part) + trace / n for part, trace in zip(centred, traces, strict=True)]
    # the diagonals, out of the whole and out of the means of the rows
    unbiased = tuple(
        total - diagonal * n / (n - 2) + trace / ((n - 1) * (n - 2))
        for total, diagonal, trace in zip(whole, diagonals, traces, strict=True)
    )
    largest = min(1.0, float(x.most) / k), min(1.0, float(y.most) / trace_y)  # about a point near the mean
    return GramSums(n, whole, unbiased, (k, trace_y), largest)
