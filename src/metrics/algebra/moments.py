"""Means and sums of products of two paired activations, gathered in one pass, and the affine maps that follow."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.linalg import (
    Spectrum,
    float64_device,
    is_read_at_once,
    nonconstant_features,
    unit_spectrum,
)
from src.metrics.algebra.matrix_rows import require_real
from src.metrics.algebra.products import add_times

# Rows that become float64 at a time: thin products want long sums, those of more features than WIDE need less.
LONG, SHORT, WIDE = 8192, 512, 1024
GPU_NUMBERS = 1 << 23  # that become float64 at a time on a GPU, for each layer: 64 MB
ROUNDING = 1e-14  # of the variance: float64 sums of products of float32 numbers tell no smaller difference from none


def channels_last_rows(x: Tensor) -> Tensor:
    """Make every position of every image a row: (n, c, h, w) -> (n * h * w, c); (n, c) stays as it is.

    The result may be a transposed view: its channels, not its rows, are then contiguous, which is the cheaper copy.
    """
    if x.dim() == 2:
        return x
    if x.dim() != 4:
        raise UserError(f"expected (n, c, h, w) or (n, c), got shape {tuple(x.shape)}")
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return x.transpose(0, 1).reshape(x.shape[1], -1).T


def flat_rows(x: Tensor) -> Tensor:
    """Make every image a row: (n, c, h, w) -> (n, c * h * w); (n, c) stays as it is."""
    if x.dim() < 2:
        raise UserError(f"expected (n, c, h, w) or (n, c), got shape {tuple(x.shape)}")
    return x.flatten(1)


class Sums:
    """Row count, mean and centred sums of products of one representation, (rows, d), in float64.

    n: rows seen. mean: (d,). products: (d, d), centred, not divided by n. Batches are centred about their own mean and
    then merged (Chan, Golub and LeVeque 1983), so nothing cancels, however large the means. With `energies` the
    squared distance of a row from the first rows' mean is one more feature, which only `energy` sees; `most` is the
    largest of them. known: what was made of the sums as they are, for all who ask; the next rows make it forgotten.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu", *, energies: bool = False) -> None:
        self.n, self.d, device = 0, d, float64_device(device)
        self.all_means, self.all_products = _zeros(device, d + energies), _zeros(device, d + energies, d + energies)
        self.shift: Tensor | None = None
        self.buffer, self.most = _zeros(device, 0), _zeros(device, 1)
        self.known: dict[str, Any] = {}

    mean = property(lambda self: self.all_means[: self.d])
    products = property(lambda self: self.all_products[: self.d, : self.d])

    def take(self, rows: Tensor) -> None:
        """Hold the next rows, centred, as float64 (features, rows), in which products are fastest, until `merge`.

        They live in a buffer until the next call; what the caller gave is left as it was.
        """
        size = len(self.all_means), len(rows)
        if len(self.buffer) < math.prod(size):
            self.buffer = _zeros(self.buffer.device, math.prod(size))
        self.batch = self.buffer[: math.prod(size)].view(size)
        values, energy = self.batch[: self.d].copy_(rows.mT.to(self.buffer.device)), self.batch[self.d :]
        mean = values.mean(1)
        values.sub_(mean[:, None])
        if len(energy):
            self.shift = mean if self.shift is None else self.shift
            step = mean - self.shift
            energy.copy_(values.square().sum(0) + 2 * step @ values + step @ step)
            self.most = torch.maximum(self.most, energy.max())
            mean = torch.cat([mean, energy.mean(1)])
            energy.sub_(mean[self.d :])
        self.delta = mean - self.all_means
        self.weight = self.n * len(rows) / (self.n + len(rows))

    def merge(self) -> None:
        """Add the rows that are held."""
        self.known.clear()
        _add_products(self.all_products, self, self)
        rows = self.batch.shape[1]
        self.n += rows
        self.all_means += self.delta * (rows / self.n)

    def spectrum(self) -> Spectrum:
        """The directions of the features at unit variance, found once."""
        if "spectrum" not in self.known:
            self.known["spectrum"] = unit_spectrum(self.products, self.mean, self.n)
        return self.known["spectrum"]

    def require_finite(self) -> None:
        """Raise UserError where a value was not finite, or too large for its square."""
        if not torch.isfinite(self.products.trace()):
            raise UserError("activations hold NaN or infinite values (or overflow float64 when squared)")

    def energy(self) -> Tensor:
        """Weights (d + 1,) of a row's features that give its squared distance from the mean, less its average."""
        assert self.shift is not None
        return torch.cat([2 * (self.shift - self.mean), self.mean.new_ones(1)])


def _zeros(device: torch.device, *shape: int) -> Tensor:
    with torch.inference_mode(False):  # tensors made in inference mode could not be added to outside of it
        return torch.zeros(*shape, dtype=torch.float64, device=device)


def _add_products(total: Tensor, x: Sums, y: Sums) -> None:
    """Add the products of the rows that both hold."""
    add_times(total, x.batch, y.batch)
    if x.weight:
        total.addr_(x.delta, y.delta, alpha=x.weight)


class PairedMoments:
    """Row count, means and centred sums of products of x: (rows, dx) and y: (rows, dy), in float64.

    Memory is O((dx + dy)^2), whatever the number of rows. The products are float64: float32 sums of products lose
    every direction weaker than about 3e-4 of the strongest.

    n: rows seen. mean_x: (dx,), mean_y: (dy,). xx: (dx, dx), xy: (dx, dy), yy: (dy, dy), centred, not divided by n.
    known: as that of `Sums`.
    """

    def __init__(self, dx: int, dy: int, device: torch.device | str = "cpu") -> None:
        self._join(Sums(dx, device), Sums(dy, device))

    @classmethod
    def of(cls, x: Sums, y: Sums) -> "PairedMoments":
        """Moments of two representations whose own sums others may share; `gather` feeds them."""
        moments = cls.__new__(cls)
        moments._join(x, y)
        return moments

    def _join(self, x: Sums, y: Sums) -> None:
        self.x, self.y, self.device = x, y, x.mean.device
        self.all_xy = _zeros(self.device, len(x.all_means), len(y.all_means))
        self.known: dict[str, Any] = {}

    n = property(lambda self: self.x.n)
    mean_x, mean_y = property(lambda self: self.x.mean), property(lambda self: self.y.mean)
    xx, yy = property(lambda self: self.x.products), property(lambda self: self.y.products)
    xy = property(lambda self: self.all_xy[: self.x.d, : self.y.d])

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows. Raise UserError where rows or features do not fit, or a value is complex or not finite."""
        expected = len(self.mean_x), len(self.mean_y)
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or (x.shape[1], y.shape[1]) != expected:
            raise UserError(
                f"expected x (rows, {expected[0]}) and y (rows, {expected[1]}) with equally many rows, "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        gather([(self.x, x), (self.y, y)], [self], rows=rows_at_once(*expected, self.device))

    def add_held(self) -> None:
        """Add the products of the rows that both sides hold, before these settle."""
        self.known.clear()
        _add_products(self.all_xy, self.x, self.y)

    def require_finite(self) -> None:
        """Raise UserError where a value of either side was not finite."""
        self.x.require_finite()
        self.y.require_finite()

    def nonconstant(self) -> tuple[Tensor, Tensor]:
        """Tell for each side which features vary at all: (dx,) and (dy,) boolean."""
        return (
            nonconstant_features(self.xx.diagonal(), self.mean_x, self.n),
            nonconstant_features(self.yy.diagonal(), self.mean_y, self.n),
        )


def rows_at_once(dx: int, dy: int, device: torch.device | str = "cpu") -> int:
    """How many rows of so many features on either side become float64 at a time: of a GPU what a GPU holds easily."""
    if torch.device(device).type == "cuda":
        return max(SHORT, GPU_NUMBERS // max(1, dx, dy))
    return LONG if max(dx, dy) <= WIDE else SHORT


@torch.inference_mode(False)
@torch.no_grad()
def gather(sides: Sequence[tuple[Sums, Tensor]], pairs: Sequence[PairedMoments], *, rows: int) -> None:
    """Add values (n, d), as many to each side, to sums of their own and to pairs among them, so many `rows` at a time.

    How rows are cut does not depend on the company, so that a pair gets the same bits in any. Raise UserError for
    complex values, and for those that are not finite; of sums on a GPU who reads them does, by `require_finite`.
    """
    for _, values in sides:
        require_real(values)
    for start in range(0, len(sides[0][1]), rows):
        for sums, values in sides:
            sums.take(values[start : start + rows])
        for pair in pairs:
            pair.add_held()
        for sums, _ in sides:
            sums.merge()
    for sums, _ in sides:
        if is_read_at_once(sums.buffer.device):
            sums.require_finite()


class Affine(NamedTuple):
    """y = x w^T + b with w: (dy, dx) and b: (dy,), float64."""

    w: Tensor
    b: Tensor


def joined(parts: Sequence[PairedMoments]) -> PairedMoments:
    """The moments of the rows of all parts together (Chan, Golub and LeVeque 1983)."""
    total = PairedMoments(len(parts[0].mean_x), len(parts[0].mean_y), parts[0].device)
    for part in parts:
        if not part.n:
            continue
        n = total.n + part.n
        apart = part.mean_x - total.mean_x, part.mean_y - total.mean_y
        weight = total.n * part.n / n
        for into, add, one, other in (
            (total.xx, part.xx, apart[0], apart[0]),
            (total.xy, part.xy, apart[0], apart[1]),
            (total.yy, part.yy, apart[1], apart[1]),
        ):
            into.add_(add).addr_(one, other, alpha=weight)
        for side, difference in zip((total.x, total.y), apart, strict=True):
            side.mean.add_(difference * (part.n / n))
            side.n = n
    return total


def with_matching_bias(w: Tensor, moments: PairedMoments) -> Affine:
    """Return the map with the matrix w: (dy, dx) whose bias takes the mean of x to the mean of y."""
    return Affine(w, moments.mean_y - w @ moments.mean_x)


def _require_rows(moments: PairedMoments) -> None:
    if moments.n == 0:
        raise UserError("no activations were seen: the data set is empty")
    if not is_read_at_once(moments.device):
        moments.require_finite()


def least_squares(moments: PairedMoments, mask: Tensor | None = None) -> Affine:
    """Fit y ~ x w^T + b by least squares; where several w do equally well, take the one of smallest norm.

    mask: (dy, dx) of zeros and ones; w is then the best among the matrices that are zero wherever it is. Channels of
    x without variance get weight 0. Weights are exact whatever the scale of each channel; a direction of x weaker
    than 3e-7 of the strongest (channels at unit variance) counts as absent.
    """
    _require_rows(moments)
    if mask is None:
        return with_matching_bias(_solution(moments.x.spectrum(), moments.xy, moments.x.known), moments)
    w = moments.xy.new_zeros(moments.xy.T.shape)
    patterns, kind = mask.to(w.device).bool().unique(dim=0, return_inverse=True)
    for number, allowed in enumerate(patterns):  # outputs that may read the same inputs are one problem
        inputs, outputs = allowed.nonzero()[:, 0], (kind == number).nonzero()[:, 0]
        if len(inputs):
            spectrum = unit_spectrum(moments.xx[inputs][:, inputs], moments.mean_x[inputs], moments.n)
            w[outputs[:, None], inputs] = _solution(spectrum, moments.xy[inputs][:, outputs], {})
    return with_matching_bias(w, moments)


def _solution(spectrum: Spectrum, xy: Tensor, known: dict[str, Any]) -> Tensor:
    """The least-squares matrix (dy, dx) from x, whose spectrum and sums of products with y are given.

    known: keeps what is the same for any y.
    """
    values, vectors, null, scale, nonconstant = spectrum
    scale = scale[:, None]
    solution = vectors @ ((vectors.T @ (xy[nonconstant] / scale)) / values[:, None]) / scale
    if null.shape[1]:
        # Directions that x does not have: scaled features made the solution small in their own units, not in x's.
        if "absent" not in known:
            known["absent"] = torch.linalg.qr(null / scale)[0]
        absent = known["absent"]
        solution = solution - absent @ (absent.T @ solution)
    w = xy.new_zeros(xy.T.shape)
    w[:, nonconstant] = solution.T
    return w


def reduced_rank_regression(moments: PairedMoments, rank: int) -> Affine:
    """Fit y ~ x w^T + b with a w of at most this rank, by least squares in the units of y.

    w = U U^T w_ls, with U the leading eigenvectors of w_ls Sxx w_ls^T: the directions of y in which the unrestricted
    fit varies most (Izenman 1975; Reinsel and Velu 1998). Raise UserError where w has no such rank.
    """
    full = least_squares(moments).w
    check_rank(rank, full)
    _, vectors = torch.linalg.eigh(full @ moments.xx @ full.T)
    leading = vectors[:, -rank:]
    return with_matching_bias(leading @ (leading.T @ full), moments)


def procrustes(moments: PairedMoments, rank: int | None = None) -> Affine:
    """Fit y - mean ~ (x - mean) w^T with an orthogonal w: orthonormal columns where dy >= dx, else orthonormal rows.

    w maximises the inner product of the mapped x and y: for dy >= dx that is the least-squares optimum; for dy < dx it
    is the optimum for y with dx - dy zero columns appended (Schönemann 1966; the shorter side padded). With `rank`
    only so many directions are mapped, those that contribute most to the inner product.
    """
    _require_rows(moments)
    return with_matching_bias(orthogonal_factor(moments.xy.T, rank), moments)


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
    """Raise UserError, with the remedy, for a rank that a matrix of this shape cannot have."""
    limit = min(matrix.shape)
    if not 1 <= rank <= limit:
        raise UserError(f"rank {rank} does not fit a {tuple(matrix.shape)} matrix; use --low-rank 1 to {limit}")


def correlation(moments: PairedMoments) -> Tensor:
    """Correlate every channel of y with every channel of x: (dy, dx) in [-1, 1]; exactly 0 where one does not vary."""
    _require_rows(moments)
    nonconstant_x, nonconstant_y = moments.nonconstant()
    result = moments.xy.T / moments.yy.diagonal().sqrt()[:, None] / moments.xx.diagonal().sqrt()
    both = nonconstant_y[:, None] & nonconstant_x
    return torch.where(both, result.clamp(-1, 1), result.new_zeros(()))


def r_squared(moments: PairedMoments, affine: Affine) -> float:
    """Return the share of the variance of y that x w^T + b explains, all channels of y pooled.

    1: every row exact; 0: no better than the mean of y; negative: worse. Raise UserError where y does not vary.
    """
    _require_rows(moments)
    if not moments.nonconstant()[1].any():
        raise UserError("R2 is undefined: the activations to explain are constant")
    w, b = affine.w.to(moments.xy), affine.b.to(moments.xy)
    total = moments.yy.trace()
    explained = 2 * (w * moments.xy.T).sum() - ((w @ moments.xx) * w).sum()
    offset = moments.mean_y - w @ moments.mean_x - b
    return float((explained - moments.n * offset.square().sum()) / total)


def squared_error(moments: PairedMoments, affine: Affine) -> float:
    """Return the mean squared difference of x w^T + b and y, over rows and channels of y; never below 0."""
    _require_rows(moments)
    w, b = affine.w.to(moments.xx), affine.b.to(moments.xx)
    # [w, -1] times the moments of both sides times its own transpose
    squares = ((w @ moments.xx - moments.xy.T) * w).sum() - (w @ moments.xy - moments.yy).trace()
    offset = w @ moments.mean_x + b - moments.mean_y
    # what rounding leaves of a perfect map is no difference, and may be below 0
    squares = squares if squares > ROUNDING * moments.yy.trace() else 0 * squares
    return float((squares / moments.n + offset @ offset) / len(moments.mean_y))
