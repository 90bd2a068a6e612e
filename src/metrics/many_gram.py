"""Inner products of the Gram matrices of many layers, each of which is computed once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.metrics.gram import GramSums, row_energies, upper_blocks

Pair = tuple[int, int]
# Side of one block of the Gram matrices: that of every layer is held at once, 1 MB each.
BLOCK = 512


@torch.no_grad()
def many_gram_sums(
    xs: Sequence[Tensor], ys: Sequence[Tensor], *, on_block: Callable[[], object] = lambda: None
) -> dict[Pair, GramSums]:
    """Sum over the Gram matrices of every pair of centred layers x: (n, dx) of `xs` and y: (n, dy) of `ys`.

    Each layer's Gram matrix is computed once, block by block; the inner products of all of them with each other
    follow from a block of all layers. Sums run in the layers' precision along a row of a block, then in float64.
    `on_block` is called after each of `blocks(n)` blocks.
    """
    layers = [*xs, *ys]
    energies = torch.stack([row_energies(layer) for layer in layers])
    off = torch.zeros(len(layers), len(layers), dtype=torch.float64, device=energies.device)
    side = min(len(layers[0]), BLOCK)
    buffer = layers[0].new_empty(len(layers) * side * side)
    for rows, columns in upper_blocks(len(layers[0]), BLOCK):
        height, width = len(layers[0][rows]), len(layers[0][columns])
        grams = buffer[: len(layers) * height * width].view(len(layers), height, width)
        for gram, layer in zip(grams, layers, strict=True):
            torch.mm(layer[rows], layer[columns].T, out=gram)
        if rows == columns:
            grams.diagonal(dim1=1, dim2=2).zero_()
        by_row = grams.transpose(0, 1)
        products = torch.bmm(by_row, by_row.transpose(1, 2))
        off += (1 if rows == columns else 2) * products.sum(0, dtype=torch.float64)
        on_block()
    return _pairwise(off, energies @ energies.T, energies.sum(1), len(layers[0]), len(xs))


def blocks(n: int) -> int:
    """Return how many blocks `many_gram_sums` goes through for n images."""
    return sum(1 for _ in upper_blocks(n, BLOCK))


def _pairwise(off: Tensor, diagonal: Tensor, traces: Tensor, n: int, firsts: int) -> dict[Pair, GramSums]:
    def of(i: int, j: int) -> GramSums:
        cells = ((i, j), (i, i), (j, j))
        off_parts, diagonal_parts = (tuple(float(sums[cell]) for cell in cells) for sums in (off, diagonal))
        return GramSums(n, off_parts, diagonal_parts, (float(traces[i]), float(traces[j])))

    return {(i, j): of(i, firsts + j) for i in range(firsts) for j in range(len(off) - firsts)}
