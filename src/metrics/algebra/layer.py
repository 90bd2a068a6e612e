"""One layer's activations, an image a row, and what is known of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.linalg import float64_device, is_read_at_once, nonconstant_features, rank_floor
from src.metrics.algebra.matrix_rows import float64_pieces, require_real
from src.metrics.algebra.products import add_times, eigh, eigvalsh

# Columns whose products are summed at once where sums of products of images are made in float64.
BLOCK = 512
# Matrices of images x images that the coordinates of two layers take to be found, in float64.
SPAN_MATRICES = 8
# Images whose rank is looked at; that of more is bounded from below by that of a part.
RANK_IMAGES = 1024


class Facts(NamedTuple):
    """What is known of one side: live features (d,), root mean square of the means over the standard deviation, and
    the numerical rank with whether the true one may be larger (None: nobody looked)."""

    nonconstant: Tensor
    offset: float
    rank: tuple[int, bool] | None = None


def facts_of_spread(mean: Tensor, squares: Tensor, n: int) -> Facts:
    """Read the facts from means (d,) and centred sums of squares (d,) of n rows."""
    variance = float(squares.sum()) / max(1, n)
    offset = float(mean.square().sum() / variance) ** 0.5 if variance > 0 else 0.0
    return Facts(nonconstant_features(squares, mean, n), offset)


class Layer:
    """A float32 buffer (n, d), filled batch by batch and then centred in place.

    The number of images must be known beforehand, so the buffer is all the memory this takes.
    rows: (n, d), after `centre` without their mean and divided by 2 ** exponent, which rounds nothing; mean: (d,)
    float64, squares: (d,) float64 centred sums of squares, both in the units of the activations.
    """

    def __init__(self, n: int, d: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device = float64_device(device)
        with torch.inference_mode(False):
            self.buffer = torch.empty(n, d, device=self.device, dtype=dtype)
            self.mean, self.squares = (torch.zeros(d, dtype=torch.float64, device=self.device) for _ in range(2))
        self.known: dict[str, Any] = {}  # what metrics of many pairs find out about this layer once
        self.clear(n)

    @classmethod
    def of(cls, x: Tensor) -> "Layer":
        """The layer whose activations are x: (n, d), centred, in the precision of x."""
        layer = cls(len(x), x.shape[1], x.device, x.dtype)
        layer.update(x)
        layer.centre()
        return layer

    def clear(self, n: int) -> None:
        """Forget everything and expect n images, at most as many as at first."""
        if n > len(self.buffer):
            raise UserError(f"the layer holds {len(self.buffer)} images, not {n}")
        self.n, self.filled, self.centred, self.exponent = n, 0, False, 0
        self.mean.zero_()
        self.known.clear()

    @property
    def rows(self) -> Tensor:
        return self.buffer[: self.n]

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add images x: (rows, d). Raise UserError where they do not fit, or are complex or not finite.

        What is not finite on a GPU is found by `centre`.
        """
        require_real(x)
        if self.filled + len(x) > self.n:
            raise UserError(f"{self.filled + len(x)} images came where {self.n} were announced")
        if len(x) == 0:
            return
        self.buffer[self.filled : self.filled + len(x)] = x
        total = _column_sums(x, self.device)
        if is_read_at_once(self.device) and not torch.isfinite(total.sum()):
            raise UserError("activations hold NaN or infinite values")
        self.mean += total / self.n
        self.filled += len(x)

    @torch.inference_mode(False)
    @torch.no_grad()
    def centre(self) -> Tensor:
        """Subtract the mean of every feature, bring the whole to about unit scale, in place, and return the rows."""
        if self.filled != self.n:
            raise UserError(f"{self.filled} images came where {self.n} were announced")
        rows = self.rows
        if self.centred:
            return rows
        if not torch.isfinite(self.mean.sum()):
            raise UserError("activations hold NaN or infinite values")
        self.centred = True
        rows.sub_(self.mean.to(rows.dtype))
        # The rounded mean is off by up to 6e-8 of itself; what is left over is small enough to subtract exactly.
        rows.sub_((_column_sums(rows, self.device) / max(1, self.n)).to(rows.dtype))
        self.squares.copy_(_column_sums(rows, self.device, power=2))
        rms = (self.squares.sum() / max(1, rows.numel())).sqrt()
        if rms > 0:
            # Products of products of float32 overflow beyond 1e9. A power of two rounds nothing.
            self.exponent = round(rms.log2().item())
            rows.mul_(2.0**-self.exponent)
        return rows

    @property
    def offset(self) -> Tensor:
        """The mean, (d,) float64, in the units of the centred rows: a row plus this is the activation."""
        return self.mean * 2.0**-self.exponent

    def require_varying(self, side: str) -> None:
        """Raise UserError where all images are alike."""
        if not nonconstant_features(self.squares, self.mean, self.n).any():
            raise UserError(f"the {side} representation is constant")

    def facts(self, *, ranked: bool) -> Facts:
        """Return live features and offset, and the rank (of at most RANK_IMAGES images, evenly picked) if asked."""
        rows, step = self.centre(), -(-self.n // RANK_IMAGES)
        facts = facts_of_spread(self.mean, self.squares, self.n)
        if not ranked:
            return facts
        rank = _rank(rows[::step])
        return facts._replace(rank=(rank, step > 1 and rank == len(rows[::step]) - 1))

    def coordinates(self) -> Tensor:
        """Return the rows in the space they span: (n, rank) float64, rank < n, with the same inner products.

        It keeps what any rotation keeps, for what that takes n x n instead of features x features and is exact.
        """
        rows = self.centre()
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        for part in rows.split(BLOCK, dim=1):
            part = part.double()
            add_times(gram, part, part)
        values, vectors = eigh(gram)
        kept = values > rank_floor(values)
        return vectors[:, kept] * values[kept].sqrt()


def row_space_bytes(n: int) -> int:
    """Return what it takes to find the coordinates of two layers of n images."""
    return 8 * SPAN_MATRICES * n * n


def _rank(rows: Tensor) -> int:
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(BLOCK, dim=1):
        part = part.double() - part.double().mean(0)
        size = part.norm(dim=0)
        part = part / torch.where(size > 0, size, torch.ones_like(size))
        add_times(gram, part, part)
    values = eigvalsh(gram)
    return int((values > rank_floor(values)).sum())


def _column_sums(rows: Tensor, device: torch.device, power: int = 1) -> Tensor:
    if device.type == "cuda":  # which makes float64 of each number as it adds it
        squared = power == 2
        wide = torch.float64
        return torch.linalg.vector_norm(rows, dim=0, dtype=wide).square_() if squared else rows.sum(0, dtype=wide)
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
    for piece in float64_pieces(rows, device):
        total += (piece.square_() if power == 2 else piece).sum(0)
    return total
