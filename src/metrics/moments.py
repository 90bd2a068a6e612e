"""Means and sums of products of two paired activations, gathered in one pass, and the affine maps that follow."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from src.metrics.linalg import float64_device, live_features, unit_spectrum
from src.metrics.rows import require_real

# Few features want their long sums cut into so many parts, which cores take one by one and which fit their caches.
THIN, PARTS = 64, 8
# Rows that become float64 at a time: thin products want long sums, those of more features than WIDE need less.
LONG, SHORT, WIDE = 8192, 512, 1024


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


class Sums:
    """Row count, mean and centred sums of products of one representation, (rows, d), in float64.

    n: rows seen. mean: (d,). products: (d, d), centred, not divided by n. Batches are centred about their own mean and
    then merged (Chan, Golub and LeVeque 1983), so nothing cancels, however large the means. With `energies` the
    squared distance of a row from the first rows' mean is one more feature, which only `energy` sees.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu", *, energies: bool = False) -> None:
        self.n, self.d, device = 0, d, float64_device(device)
        self.all_means, self.all_products = _zeros(device, d + energies), _zeros(device, d + energies, d + energies)
        self.shift: Tensor | None = None
        self.buffer = _zeros(device, 0)

    mean = property(lambda self: self.all_means[: self.d])
    products = property(lambda self: self.all_products[: self.d, : self.d])

    def take(self, rows: Tensor) -> None:
        """Hold the next rows, centred, as float64 (features, rows), in which products are fastest, until `settle`.

        They live in a buffer until the next call; what the caller gave is left as it was.
        """
        size = len(self.all_means), len(rows)
        if len(self.buffer) < math.prod(size):
            self.buffer = _zeros(self.buffer.device, math.prod(size))
        self.held = self.buffer[: math.prod(size)].view(size)
        values, energy = self.held[: self.d].copy_(rows.mT), self.held[self.d :]
        mean = values.mean(1)
        values.sub_(mean[:, None])
        if len(energy):
            self.shift = mean if self.shift is None else self.shift
            step = mean - self.shift
            energy.copy_(values.square().sum(0) + 2 * step @ values + step @ step)
            mean = torch.cat([mean, energy.mean(1)])
            energy.sub_(mean[self.d :])
        self.delta = mean - self.all_means
        self.weight = self.n * len(rows) / (self.n + len(rows))

    def settle(self) -> None:
        """Add the rows that are held."""
        _add_products(self.all_products, self, self)
        rows = self.held.shape[1]
        self.n += rows
        self.all_means += self.delta * (rows / self.n)

    def energy(self) -> Tensor:
        """Weights (d + 1,) of a row's features that give its squared distance from the mean, less its average."""
        assert self.shift is not None
        return torch.cat([2 * (self.shift - self.mean), self.mean.new_ones(1)])


def _zeros(device: torch.device, *shape: int) -> Tensor:
    with torch.inference_mode(False):  # tensors made in inference mode could not be added to outside of it
        return torch.zeros(*shape, dtype=torch.float64, device=device)


def _add_products(total: Tensor, x: Sums, y: Sums) -> None:
    """Add those of the rows that both hold. All products are made alike, so that equal activations have equal
    moments to the last bit."""
    a, b, rows = x.held, y.held, x.held.shape[1]
    parts = math.gcd(rows, PARTS) if len(a) + len(b) <= THIN else 1
    if parts == 1:
        total.addmm_(a, b.T)
    else:
        total += torch.bmm(_cut(a, parts), _cut(b, parts).mT).sum(0)
    if x.weight:
        total.addr_(x.delta, y.delta, alpha=x.weight)


def _cut(held: Tensor, parts: int) -> Tensor:
    return held.unflatten(1, (parts, -1)).transpose(0, 1)


class PairedMoments:
    """Row count, means and centred sums of products of x: (rows, dx) and y: (rows, dy), in float64.

    Memory is O((dx + dy)^2), whatever the number of rows. The products are float64: float32 sums of products lose
    every direction weaker than about 3e-4 of the strongest.

    n: rows seen. mean_x: (dx,), mean_y: (dy,). xx: (dx, dx), xy: (dx, dy), yy: (dy, dy), centred, not divided by n.
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

    n = property(lambda self: self.x.n)
    mean_x, mean_y = property(lambda self: self.x.mean), property(lambda self: self.y.mean)
    xx, yy = property(lambda self: self.x.products), property(lambda self: self.y.products)
    xy = property(lambda self: self.all_xy[: self.x.d, : self.y.d])

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows. Raise ValueError where rows or features do not fit, or a value is complex or not finite."""
        expected = len(self.mean_x), len(self.mean_y)
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or (x.shape[1], y.shape[1]) != expected:
            raise ValueError(
                f"expected x (rows, {expected[0]}) and y (rows, {expected[1]}) with equally many rows, "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        gather([(self.x, x), (self.y, y)], [self], rows=LONG if max(expected) <= WIDE else SHORT)

    def add_held(self) -> None:
        """Add the products of the rows that both sides hold, before these settle."""
        _add_products(self.all_xy, self.x, self.y)

    def live(self) -> tuple[Tensor, Tensor]:
        """Tell for each side which features vary at all: (dx,) and (dy,) boolean."""
        return (
            live_features(self.xx.diagonal(), self.mean_x, self.n),
            live_features(self.yy.diagonal(), self.mean_y, self.n),
        )


@torch.inference_mode(False)
@torch.no_grad()
def gather(sides: Sequence[tuple[Sums, Tensor]], pairs: Sequence[PairedMoments], *, rows: int) -> None:
    """Add values (n, d), as many to each side, to sums of their own and to pairs among them, so many `rows` at a time.

    How rows are cut does not depend on the company, so that a pair gets the same bits in any.
    """
    for _, values in sides:
        require_real(values)
    for start in range(0, len(sides[0][1]), rows):
        for sums, values in sides:
            sums.take(values[start : start + rows])
        for pair in pairs:
            pair.add_held()
        for sums, _ in sides:
            sums.settle()
    if not all(torch.isfinite(sums.products.trace()) for sums, _ in sides):
        raise ValueError("activations hold NaN or infinite values (or overflow float64 when squared)")


class Affine(NamedTuple):
    """y = x w^T + b with w: (dy, dx) and b: (dy,), float64."""

    w: Tensor
    b: Tensor


def _through_means(w: Tensor, moments: PairedMoments) -> Affine:
    return Affine(w, moments.mean_y - w @ moments.mean_x)


def _require_rows(moments: PairedMoments) -> None:
    if moments.n == 0:
        raise ValueError("no activations were seen: the data set is empty")


def least_squares(moments: PairedMoments) -> Affine:
    """Fit y ~ x w^T + b by least squares; where several w do equally well, take the one of smallest norm.

    Channels of x without variance get weight 0. Weights are exact whatever the scale of each channel; a direction of x
    weaker than 3e-7 of the strongest (channels at unit variance) counts as absent.
    """
    _require_rows(moments)
    w = moments.xy.new_zeros(moments.xy.T.shape)
    values, vectors, null, scale, live = unit_spectrum(moments.xx, moments.mean_x, moments.n)
    scale = scale[:, None]
    solution = vectors @ ((vectors.T @ (moments.xy[live] / scale)) / values[:, None]) / scale
    if null.shape[1]:
        # Directions that x does not have: scaled features made the solution small in their own units, not in x's.
        absent = torch.linalg.qr(null / scale)[0]
        solution = solution - absent @ (absent.T @ solution)
    w[:, live] = solution.T
    return _through_means(w, moments)


def procrustes(moments: PairedMoments) -> Affine:
    """Fit y - mean ~ (x - mean) w^T with an orthogonal w: orthonormal columns where dy >= dx, else orthonormal rows.

    w maximises the inner product of the mapped x and y: for dy >= dx that is the least-squares optimum; for dy < dx it
    is the optimum for y with dx - dy zero columns appended (Schönemann 1966; the shorter side padded).
    """
    _require_rows(moments)
    return _through_means(orthogonal_factor(moments.xy.T), moments)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Return the matrix with orthonormal rows or columns nearest to `matrix`, of its shape: U V^T of its U S V^T."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def reduced_rank(matrix: Affine | Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factor the best rank-r approximation of a matrix (out, in) into left: (out, r) and right: (r, in).

    Truncated singular value decomposition (Eckart and Young 1936), the singular values shared evenly by both factors.
    """
    matrix = matrix.w if isinstance(matrix, Affine) else matrix
    limit = min(matrix.shape)
    if not 1 <= rank <= limit:
        raise ValueError(f"rank {rank} does not fit a {tuple(matrix.shape)} matrix; use --low-rank 1 to {limit}")
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


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
