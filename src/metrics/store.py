"""Flattened activations of both sides, kept whole for the metrics that compare images with images."""

import torch
from torch import Tensor

from src.metrics.linalg import float64_device, live_features
from src.metrics.rows import float64_pieces


class FeatureStore:
    """Two preallocated float32 buffers, x: (n, dx) and y: (n, dy), filled batch by batch and then centred in place.

    The number of images must be known beforehand, so the two buffers are all the memory this takes.
    mean_x, mean_y: (d,) float64 means. squares_x, squares_y: (d,) float64 centred sums of squares (after `centre`).
    """

    def __init__(self, n: int, dx: int, dy: int, device: torch.device | str = "cpu") -> None:
        self.device = float64_device(device)
        self.capacity = n
        self.x, self.y = (torch.empty(n, d, device=self.device) for d in (dx, dy))
        self.clear(n)

    def clear(self, n: int) -> None:
        """Forget everything and expect n images, at most as many as at first."""
        if n > self.capacity:
            raise ValueError(f"the store holds {self.capacity} images, not {n}")
        self.n, self.filled, self.centred = n, 0, False
        self.mean_x, self.mean_y = (_zeros(b.shape[1], self.device) for b in (self.x, self.y))
        self.squares_x, self.squares_y = self.mean_x.clone(), self.mean_y.clone()

    @property
    def room(self) -> int:
        """Images that are still missing."""
        return self.n - self.filled

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Add images, one a row. Raise ValueError where they do not fit or are not finite."""
        if len(x) != len(y):
            raise ValueError(f"{len(x)} images on one side, {len(y)} on the other")
        if len(x) > self.room:
            raise ValueError(f"{self.filled + len(x)} images came where {self.n} were announced")
        if len(x) == 0:
            return
        into = slice(self.filled, self.filled + len(x))
        for buffer, mean, rows in ((self.x, self.mean_x, x), (self.y, self.mean_y, y)):
            buffer[into] = rows
            total = _column_sums(rows, self.device)
            if not torch.isfinite(total.sum()):
                raise ValueError("activations hold NaN or infinite values")
            mean += total / self.n
        self.filled += len(x)

    @torch.no_grad()
    def centre(self) -> None:
        """Subtract the mean of every feature and bring the whole of each side to about unit scale, in place."""
        if self.room:
            raise ValueError(f"{self.filled} images came where {self.n} were announced")
        if self.centred:
            return
        self.centred = True
        self.squares_x = _centre(self.x[: self.n], self.mean_x)
        self.squares_y = _centre(self.y[: self.n], self.mean_y)

    def centred_rows(self) -> tuple[Tensor, Tensor]:
        """Return x and y, centred; each side is divided by a power of two, which no metric of stored features sees."""
        self.centre()
        return self.x[: self.n], self.y[: self.n]

    def live(self) -> tuple[Tensor, Tensor]:
        """Return for each side which features vary: (dx,) and (dy,) boolean."""
        self.centre()
        return (
            live_features(self.squares_x, self.mean_x, self.n),
            live_features(self.squares_y, self.mean_y, self.n),
        )


def _zeros(d: int, device: torch.device) -> Tensor:
    return torch.zeros(d, dtype=torch.float64, device=device)


def _centre(buffer: Tensor, mean: Tensor) -> Tensor:
    buffer.sub_(mean.float())
    # The float32 mean is off by up to 6e-8 of itself; what is left over is small enough to subtract exactly.
    buffer.sub_((_column_sums(buffer, buffer.device) / len(buffer)).float())
    squares = _column_sums(buffer, buffer.device, power=2)
    rms = float((squares.sum() / buffer.numel()).sqrt()) if buffer.numel() else 0.0
    if rms > 0:
        # Products of products of float32 overflow beyond 1e9. A power of two rounds nothing.
        buffer.mul_(2.0 ** -round(torch.tensor(rms, dtype=torch.float64).log2().item()))
    return squares


def _column_sums(rows: Tensor, device: torch.device, power: int = 1) -> Tensor:
    total = _zeros(rows.shape[1], device)
    for piece in float64_pieces(rows, device):
        total += (piece.square_() if power == 2 else piece).sum(0)
    return total
