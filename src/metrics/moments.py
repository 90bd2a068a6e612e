"""Means and sums of products of two paired activations, gathered in one pass, and the affine maps that follow."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.linalg import float64_device, live_features, unit_spectrum
from src.metrics.rows import piece_rows

# Few features want their long sums cut into so many parts, which cores take one by one and which fit their caches.
THIN, PARTS = 64, 8


def channels_last_rows(x: Tensor) -> Tensor:
    """Make every position of every image a row: (n, c, h, w) -> (n * h * w, c); (n, c) stays as it is.

    The result may be a transposed view: its channels, not its rows, are then contiguous, which is the cheaper copy.
    """
    if x.dim() == 2:
        return x
    if x.dim() != 4:
        raise ValueError(f"expected (n, c, h, w) or (n, c), got shape {tuple(x.shape)}")
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return x.transpose(0, 1).reshape(x.shape[1], -1).T


def flat_rows(x: Tensor) -> Tensor:
    """Make every image a row: (n, c, h, w) -> (n, c * h * w); (n, c) stays as it is."""
    if x.dim() < 2:
        raise ValueError(f"expected (n, c, h, w) or (n, c), got shape {tuple(x.shape)}")
    return x.flatten(1)


class PairedMoments:
    """Row count, means and centred sums of products of x: (rows, dx) and y: (rows, dy), in float64.

    Batches are centred about their own mean and then merged (Chan, Golub and LeVeque 1983), so nothing
    cancels, however large the means. Memory is O((dx + dy)^2), whatever the number of rows. The products are float64:
    float32 sums of products lose every direction weaker than about 3e-4 of the strongest.

    n: rows seen. mean_x: (dx,), mean_y: (dy,). xx: (dx, dx), xy: (dx, dy), yy: (dy, dy), centred, not divided by n.
    """

    def __init__(self, dx: int, dy: int, device: torch.device | str = "cpu") -> None:
        self.device = float64_device(device)
        self.n = 0
        self.mean_x, self.mean_y = self._zeros(dx), self._zeros(dy)
        self.xx, self.xy, self.yy = self._zeros(dx, dx), self._zeros(dx, dy), self._zeros(dy, dy)
        self._buffers = [self._zeros(0), self._zeros(0)]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows. Raise ValueError where rows or features do not fit, or a value is not finite."""
        expected = len(self.mean_x), len(self.mean_y)
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or (x.shape[1], y.shape[1]) != expected:
            raise ValueError(
                f"expected x (rows, {expected[0]}) and y (rows, {expected[1]}) with equally many rows, "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if len(x) == 0:
            return
        rows = max(512, 2 * piece_rows(sum(expected)))  # longer than elsewhere: thin products want long sums
        for piece_x, piece_y in zip(x.split(rows), y.split(rows), strict=True):
            self._add(piece_x, piece_y)
        if not torch.isfinite(self.xx.trace() + self.yy.trace()):
            raise ValueError("activations hold NaN or infinite values (or overflow float64 when squared)")

    def _add(self, x: Tensor, y: Tensor) -> None:
        rows = len(x)
        parts = math.gcd(rows, PARTS) if x.shape[1] + y.shape[1] <= THIN else 1
        (x, mean_x), (y, mean_y) = (self._centred(side, values, parts) for side, values in enumerate((x, y)))
        # three products alike, so that equal activations have equal moments to the last bit, and an l2 of exactly 0
        for total, a, b in ((self.xx, x, x), (self.xy, x, y), (self.yy, y, y)):
            if parts == 1:
                total.addmm_(a[0], b[0].T)
            else:
                total += torch.bmm(a, b.mT).sum(0)
        self._shift(rows, mean_x, mean_y)

    def _centred(self, side: int, rows: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """The centred rows as float64 (parts, features, rows a part), in which such products are fastest, and the mean.

        They live in a buffer of their side until the next call; what the caller gave is left as it was.
        """
        if len(self._buffers[side]) < rows.numel():
            self._buffers[side] = self._zeros(rows.numel())
        by_part = rows.unflatten(0, (parts, -1)).mT
        exact = self._buffers[side][: rows.numel()].view(by_part.shape).copy_(by_part)
        mean = exact.mean((0, 2))
        return exact.sub_(mean[:, None]), mean

    def _shift(self, rows: int, mean_x: Tensor, mean_y: Tensor) -> None:
        """Account for the distance between the means of the rows so far and of `rows` new ones."""
        delta_x, delta_y = mean_x - self.mean_x, mean_y - self.mean_y
        weight = self.n * rows / (self.n + rows)
        if weight:
            self.xx.addr_(delta_x, delta_x, alpha=weight)
            self.xy.addr_(delta_x, delta_y, alpha=weight)
            self.yy.addr_(delta_y, delta_y, alpha=weight)
        self.n += rows
        self.mean_x += delta_x * (rows / self.n)
        self.mean_y += delta_y * (rows / self.n)

    def live(self) -> tuple[Tensor, Tensor]:
        """Tell for each side which features vary at all: (dx,) and (dy,) boolean."""
        return (
            live_features(self.xx.diagonal(), self.mean_x, self.n),
            live_features(self.yy.diagonal(), self.mean_y, self.n),
        )


class Affine(NamedTuple):
    """y = x w^T + b with w: (dy, dx) and b: (dy,), float64."""

    w: Tensor
    b: Tensor


def through_means(w: Tensor, moments: PairedMoments) -> Affine:
    """Return the map with the matrix w: (dy, dx) whose bias takes the mean of x to the mean of y."""
    return Affine(w, moments.mean_y - w @ moments.mean_x)


def _require_rows(moments: PairedMoments) -> None:
    if moments.n == 0:
        raise ValueError("no activations were seen: the data set is empty")


def least_squares(moments: PairedMoments, mask: Tensor | None = None) -> Affine:
    """Fit y ~ x w^T + b by least squares; where several w do equally well, take the one of smallest norm.

    mask: (dy, dx) of zeros and ones; w is then the best among the matrices that are zero wherever it is. Channels of
    x without variance get weight 0. Weights are exact whatever the scale of each channel; a direction of x weaker
    than 3e-7 of the strongest (channels at unit variance) counts as absent.
    """
    _require_rows(moments)
    if mask is None:
        return through_means(_solution(moments, slice(None), slice(None)), moments)
    w = moments.xy.new_zeros(moments.xy.T.shape)
    patterns, kind = mask.to(w.device).bool().unique(dim=0, return_inverse=True)
    for number, allowed in enumerate(patterns):  # outputs that may read the same inputs are one problem
        inputs, outputs = allowed.nonzero()[:, 0], (kind == number).nonzero()[:, 0]
        if len(inputs):
            w[outputs[:, None], inputs] = _solution(moments, inputs, outputs)
    return through_means(w, moments)


def _solution(moments: PairedMoments, inputs: Tensor | slice, outputs: Tensor | slice) -> Tensor:
    """The least-squares matrix (outputs, inputs) from some of the channels of x to some of those of y."""
    xx, xy = moments.xx[inputs][:, inputs], moments.xy[inputs][:, outputs]
    values, vectors, null, scale, live = unit_spectrum(xx, moments.mean_x[inputs], moments.n)
    scale = scale[:, None]
    solution = vectors @ ((vectors.T @ (xy[live] / scale)) / values[:, None]) / scale
    if null.shape[1]:
        # Directions that x does not have: scaled features made the solution small in their own units, not in x's.
        absent = torch.linalg.qr(null / scale)[0]
        solution = solution - absent @ (absent.T @ solution)
    w = xy.new_zeros(xy.T.shape)
    w[:, live] = solution.T
    return w


def reduced_rank_regression(moments: PairedMoments, rank: int) -> Affine:
    """Fit y ~ x w^T + b with a w of at most this rank, by least squares in the units of y.

    w = U U^T w_ls, with U the leading eigenvectors of w_ls Sxx w_ls^T: the directions of y in which the unrestricted
    fit varies most (Izenman 1975; Reinsel and Velu 1998). Raise ValueError where w has no such rank.
    """
    full = least_squares(moments).w
    check_rank(rank, full)
    _, vectors = torch.linalg.eigh(full @ moments.xx @ full.T)
    leading = vectors[:, -rank:]
    return through_means(leading @ (leading.T @ full), moments)


def procrustes(moments: PairedMoments, rank: int | None = None) -> Affine:
    """Fit y - mean ~ (x - mean) w^T with an orthogonal w: orthonormal columns where dy >= dx, else orthonormal rows.

    w maximises the inner product of the mapped x and y: for dy >= dx that is the least-squares optimum; for dy < dx it
    is the optimum for y with dx - dy zero columns appended (Schönemann 1966; the shorter side padded). With `rank`
    only so many directions are mapped, those that contribute most to the inner product.
    """
    _require_rows(moments)
    return through_means(orthogonal_factor(moments.xy.T, rank), moments)


def orthogonal_factor(matrix: Tensor, rank: int | None = None) -> Tensor:
    """Return the matrix with orthonormal rows or columns nearest to `matrix`, of its shape: U V^T of its U S V^T.

    With `rank`, of that rank: the product of the leading singular vectors.
    """
    if rank is not None:
        check_rank(rank, matrix)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ vt[:rank]


def reduced_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factor the best rank-r approximation of a matrix (out, in) into left: (out, r) and right: (r, in).

    Truncated singular value decomposition (Eckart and Young 1936), best in the Frobenius norm of the matrix, the
    singular values shared evenly by both factors. Where the matrix has a smaller rank, the factors' spare columns are
    0 on the left and of norm 1 on the right: with 0 on both sides no gradient would ever reach them.
    """
    check_rank(rank, matrix)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    spare = s[:rank] <= s[0] * max(matrix.shape) * torch.finfo(s.dtype).eps
    root[spare] = 0
    return u[:, :rank] * root, torch.where(spare, 1, root)[:, None] * vt[:rank]


def check_rank(rank: int, matrix: Tensor) -> None:
    """Raise ValueError, with the remedy, for a rank that a matrix of this shape cannot have."""
    limit = min(matrix.shape)
    if not 1 <= rank <= limit:
        raise ValueError(f"rank {rank} does not fit a {tuple(matrix.shape)} matrix; use --low-rank 1 to {limit}")


def correlation(moments: PairedMoments) -> Tensor:
    """Correlate every channel of y with every channel of x: (dy, dx) in [-1, 1]; exactly 0 where one does not vary."""
    _require_rows(moments)
    live_x, live_y = moments.live()
    result = moments.xy.T / moments.yy.diagonal().sqrt()[:, None] / moments.xx.diagonal().sqrt()
    both = live_y[:, None] & live_x
    return torch.where(both, result.clamp(-1, 1), result.new_zeros(()))


def r_squared(moments: PairedMoments, affine: Affine) -> float:
    """Return the share of the variance of y that x w^T + b explains, all channels of y pooled.

    1: every row exact; 0: no better than the mean of y; negative: worse. Raise ValueError where y does not vary.
    """
    _require_rows(moments)
    if not moments.live()[1].any():
        raise ValueError("R2 is undefined: the activations to explain are constant")
    w, b = affine.w.to(moments.xy), affine.b.to(moments.xy)
    total = moments.yy.trace()
    explained = 2 * (w * moments.xy.T).sum() - ((w @ moments.xx) * w).sum()
    offset = moments.mean_y - w @ moments.mean_x - b
    return float((explained - moments.n * offset.square().sum()) / total)


def squared_error(moments: PairedMoments, affine: Affine) -> float:
    """Return the mean squared difference of x w^T + b and y, over rows and channels of y; never below 0."""
    _require_rows(moments)
    w, b = affine.w.to(moments.xx), affine.b.to(moments.xx)
    squares = ((w @ moments.xx) * w).sum() - 2 * (w * moments.xy.T).sum() + moments.yy.trace()
    offset = w @ moments.mean_x + b - moments.mean_y
    return max(0.0, float((squares.clamp(min=0) / moments.n + offset @ offset) / len(moments.mean_y)))
