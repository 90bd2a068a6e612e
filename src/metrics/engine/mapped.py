"""CKA of many channel maps of the same activation to another, from one pass.

A stitch maps the channels of x alike at every position, so the products that linear CKA needs of a mapped x follow from
those of x itself: (x M)^T y = M^T (x^T y) and (x M)^T (x M) = M^T (x^T x) M. The long sums over images are done once,
whatever the number of maps. Where images are few, Gram matrices of the images are smaller, and each map has its own.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from src.core.precision import full_precision
from src.metrics.algebra.gram import gram_sums
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.moments import PairedMoments
from src.metrics.algebra.products import times
from src.metrics.cka import cka_of_groups

MAPS = 4
BLOCK = 1024  # columns of x in a block of products
RUN = 4096  # rows whose products are summed in float32 before float64 takes over
MAPPED_BYTES = 1_000_000_000  # mapped activations that are kept at once


class MappedSimilarity:
    """Feed paired activations to `update`, then ask how similar maps of x are to y.

    x: (n, c, h, w) or (n, c), y likewise; a map is w: (out, c), b: (out,). `moments` are the paired moments of their
    channels: rows are positions. n_images: how many will come in all; memory is that of their activations.
    """

    def __init__(
        self, *, n_images: int, shape_x: Sequence[int], shape_y: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.channels = shape_x[0]
        self.positions = tuple(shape_x[1:]), tuple(shape_y[1:])
        self.x, self.y = (Layer(n_images, torch.Size(shape).numel(), device) for shape in (shape_x, shape_y))
        self.moments = PairedMoments(shape_x[0], shape_y[0], device)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch of activations of the same images."""
        x, y = (values.movedim(1, -1).contiguous() for values in (x, y))  # a position's channels side by side
        self.x.update(x.flatten(1))
        self.y.update(y.flatten(1))
        self.moments.update(x.flatten(0, -2), y.flatten(0, -2))

    @full_precision()
    def cka(self, weights: Sequence[Tensor], side: str | None = None) -> list[float]:
        """Biased linear CKA of each mapped x with y, 0 to 1; NaN where one of them is constant.

        side: "samples" goes over Gram matrices of images, "features" over products of features; None takes the cheaper.
        """
        x, y = self.x.centre(), self.y.centre()
        weights = [w.to(x) for w in weights]
        # for as many maps as a stitch has, however many are asked for: no answer may depend on the others
        cheaper = len(x) * (MAPS + 1) * y.shape[1] < (x.shape[1] + y.shape[1]) ** 2
        by_samples = (side or ("samples" if cheaper else "features")) == "samples"
        return self._cka_by_samples(x, y, weights) if by_samples else self._cka_by_features(x, y, weights)

    def _cka_by_samples(self, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> list[float]:
        ckas: list[float] = []
        at_once = max(1, MAPPED_BYTES // max(1, 4 * x.numel()))
        for start in range(0, len(weights), at_once):
            some = weights[start : start + at_once]
            mapped = [(x.view(len(x), -1, self.channels) @ w.T).flatten(1) for w in some]
            for sums in gram_sums(mapped, [y]).values():
                ckas.append(cka_of_groups([sums]) if min(sums.whole[1:]) > 0 else math.nan)
        return ckas

    def _cka_by_features(self, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> list[float]:
        with_y, own = (list(x.new_zeros(len(weights), dtype=torch.float64)) for _ in range(2))
        blocks = list(self._blocks(x))
        for index, first in enumerate(blocks):
            for columns in y.split(BLOCK, 1):
                product = _product(x[:, first], columns).view(-1, self.channels, columns.shape[1])
                for i, w in enumerate(weights):
                    with_y[i] += _squares(w @ product)
            for second in blocks[index:]:
                product = _product(x[:, first], x[:, second]).view(-1, self.channels, second.stop - second.start)
                for i, w in enumerate(weights):
                    mapped = (w @ product).reshape(-1, self.channels) @ w.T
                    own[i] += (1 if first == second else 2) * _squares(mapped)
        columns = y.split(BLOCK, 1)
        end = sum((1 if a is b else 2) * _squares(_product(a, b)) for i, a in enumerate(columns) for b in columns[i:])
        # read here, all at once: a GPU must first do what is queued
        with_y, own, end = torch.stack(with_y).tolist(), torch.stack(own).tolist(), float(end)
        scales = [(self_product * end) ** 0.5 for self_product in own]
        return [cross / scale if scale else math.nan for cross, scale in zip(with_y, scales, strict=True)]

    def _blocks(self, x: Tensor) -> Iterator[slice]:
        """Columns of whole positions."""
        step = max(1, BLOCK // self.channels) * self.channels
        for start in range(0, x.shape[1], step):
            yield slice(start, min(start + step, x.shape[1]))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b over images: runs of them in float32, their sum in float64, back in the precision of a."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64 if len(a) > RUN else a.dtype, device=a.device)
    for rows_a, rows_b in zip(a.split(RUN), b.split(RUN), strict=True):
        total += times(rows_a.T, rows_a.T if a is b else rows_b.T)
    return total.to(a.dtype)


def _squares(block: Tensor) -> Tensor:
    return block.square().sum(-1).sum(dtype=torch.float64)
