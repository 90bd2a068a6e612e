"""Metrics of distances between images: CKA with a Gaussian kernel, and mutual nearest neighbours."""

import torch
from torch import Tensor

from src.metrics.gram import BLOCK, BlockProduct, block_sum, row_energies, upper_blocks
from src.metrics.products import times

# Distances that the first, rough estimate of the median looks at.
SAMPLE = 1 << 21


@torch.no_grad()
def rbf_cka(x: Tensor, y: Tensor, threshold: float = 0.5) -> float:
    """Compare centred x: (images, dx) and y: (images, dy), of about unit scale, by CKA with kernels of distances.

    The kernels are exp(-|a - b|^2 / (2 (threshold m)^2)), with m^2 the median of the squared distances between all
    pairs of images, an image paired with itself included. It goes block by block; no n x n matrix is held.
    In [0, 1]; 1: all distances agree up to one common scale; near 0: independent. Invariant to rotation, reflection,
    one common scale, translation. Raise ValueError below 3 images or where more than half of the distances are 0.
    Source: Kornblith et al. 2019, section 3 (thresholds 0.4 and 0.8 there), biased HSIC.
    """
    n = len(x)
    if n < 3:
        raise ValueError(f"{n} images are too few for a median distance; at least 3 are needed")
    kernels = [_Kernel(side, threshold) for side in (x, y)]
    row_sums = torch.zeros(2, n, dtype=torch.float64, device=x.device)
    spare = torch.empty_like(kernels[0].distances.product.buffer)
    totals = [0.0, 0.0, 0.0]
    for rows, columns in upper_blocks(n):
        k, other = kernels[0](rows, columns), kernels[1](rows, columns)
        for sums, block in zip(row_sums, (k, other), strict=True):
            sums[rows] += block.sum(1)
            if rows != columns:
                sums[columns] += block.sum(0)
        for index, (a, b) in enumerate(((k, other), (k, k), (other, other))):
            totals[index] += (1 if rows == columns else 2) * block_sum(a, b, spare)
    pairs = ((0, 1), (0, 0), (1, 1))
    hsic = [
        total - 2 / n * float(row_sums[i] @ row_sums[j]) + float(row_sums[i].sum() * row_sums[j].sum()) / n**2
        for total, (i, j) in zip(totals, pairs, strict=True)
    ]
    if not (hsic[1] > 0 and hsic[2] > 0):
        raise ValueError("CKA is undefined: all images are equally far apart")
    return max(0.0, min(1.0, hsic[0] / (hsic[1] * hsic[2]) ** 0.5))


class _Distances:
    """Blocks of squared distances between rows."""

    def __init__(self, x: Tensor) -> None:
        self.product, self.energy = BlockProduct(x), row_energies(x).to(x.dtype)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        block = self.product(rows, columns).mul_(-2)
        block.add_(self.energy[rows][:, None]).add_(self.energy[columns]).clamp_(min=0)
        return block.fill_diagonal_(0) if rows == columns else block


class _Kernel:
    def __init__(self, x: Tensor, threshold: float) -> None:
        self.distances = _Distances(x)
        median = median_squared_distance(x)
        if median <= 0:
            raise ValueError("the median distance between images is 0: more than half of the pairs are equal")
        self.factor = -1 / (2 * threshold**2 * median)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        return self.distances(rows, columns).mul_(self.factor).exp_()


@torch.no_grad()
def median_squared_distance(x: Tensor) -> float:
    """Return the exact median of all n^2 squared distances, the n zero ones included, in blocks.

    A sample brackets the median; one pass counts what lies below and keeps what lies inside. Should the bracket
    miss, a second pass keeps everything.
    """
    n, distances = len(x), _Distances(x)
    # Of n^2 sorted entries the first n are the diagonal's and each pair of images then fills two.
    middle = [((n * n - 1) // 2 - n) // 2, (n * n // 2 - n) // 2]
    for low, high in (_bracket(distances), (0.0, float("inf"))):
        below, kept = 0, []
        for rows, columns in upper_blocks(n):
            block = distances(rows, columns)
            values = block[tuple(torch.triu_indices(len(block), len(block), 1))] if rows == columns else block.flatten()
            below += int((values < low).sum())
            kept.append(values[(values >= low) & (values <= high)])
        inside = torch.cat(kept)
        if below <= middle[0] and middle[1] < below + len(inside):
            inside = inside.sort().values
            return float(inside[middle[0] - below].double() + inside[middle[1] - below].double()) / 2
    raise AssertionError("unreachable: the second bracket holds every distance")


def _bracket(distances: _Distances) -> tuple[float, float]:
    x, energy = distances.product.x, distances.energy
    picked = slice(None, None, max(1, -(-len(x) * len(x) // SAMPLE)))
    products = times(x[picked], x).mul_(-2).add_(energy).add_(energy[picked][:, None])
    ordered = products.clamp_(min=0).flatten().sort().values
    return float(ordered[int(0.45 * len(ordered))]), float(ordered[int(0.55 * len(ordered))])


@torch.no_grad()
def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> float:
    """Return the share of an image's k nearest neighbours in x: (images, dx) that are so in y: (images, dy) too.

    x and y are centred, of about unit scale, and taken a block of images at a time. Averaged over images, in [0, 1];
    1: every neighbourhood has the same members; k / (images - 1): chance. Euclidean distances, the image itself left
    out. Invariant to rotation, reflection, one common scale, translation. Raise ValueError for k or fewer images, or a
    constant side. Between equally far images the choice is arbitrary.
    Source: Huh et al. 2024, "The Platonic Representation Hypothesis", appendix A (there on normalised features).
    """
    n = len(x)
    if n <= k:
        raise ValueError(f"{n} images are too few for {k} neighbours; at least {k + 1} are needed")
    energies = [row_energies(side).to(side.dtype) for side in (x, y)]
    if not all(bool((energy > 0).any()) for energy in energies):
        raise ValueError("neighbours are undefined: a representation is constant")
    shared = 0
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        near_x, near_y = _nearest(x, energies[0], rows, k), _nearest(y, energies[1], rows, k)
        shared += int((near_x[:, :, None] == near_y[:, None, :]).sum())
    return shared / (n * k)


def _nearest(x: Tensor, energy: Tensor, rows: slice, k: int) -> Tensor:
    # The distance less the row's own |x|^2, which does not change the order.
    distances = times(x[rows], x).mul_(-2).add_(energy)
    distances[torch.arange(len(distances)), torch.arange(rows.start, rows.stop)] = float("inf")
    return distances.topk(k, largest=False).indices
