"""Mean squared difference of two activations of one shape."""

import torch
from torch import Tensor

from src.core.errors import UserError
from src.metrics.algebra.linalg import float64_device, is_read_at_once, nonconstant_features
from src.metrics.algebra.matrix_rows import float64_pieces, require_real


class Differences:
    """Sum of squared differences of x and y: (rows, d), and mean and spread of each feature, in one float64 pass.

    n: rows. total: the sum of squared differences. mean: (2, d) and squares: (2, d), centred sums of squares, of x
    and y, merged batch by batch as in `PairedMoments`.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu") -> None:
        self.device = float64_device(device)
        self.n = 0
        with torch.inference_mode(False):  # tensors made in inference mode could not be added to outside of it
            self.total = torch.zeros((), dtype=torch.float64, device=self.device)
            self.mean, self.squares = (torch.zeros(2, d, dtype=torch.float64, device=self.device) for _ in range(2))

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows. Raise UserError where the shapes differ or a value is not finite (see `require_finite`)."""
        if x.shape != y.shape:
            raise UserError(f"a difference needs equal shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
        require_real(x)
        require_real(y)
        if len(x) == 0:
            return
        for piece_x, piece_y in zip(float64_pieces(x, self.device), float64_pieces(y, self.device), strict=True):
            self._add(piece_x, piece_y)
        if is_read_at_once(self.device):
            self.require_finite()

    def require_finite(self) -> None:
        """Raise UserError where a value was not finite; of a GPU who reads the sums asks, since `update` does not."""
        if not self.total < float("inf"):
            raise UserError("activations hold NaN or infinite values (or overflow float64 when squared)")

    def _add(self, x: Tensor, y: Tensor) -> None:
        self.total += (x - y).square().sum()
        rows = len(x)
        for index, side in enumerate((x, y)):
            mean = side.mean(0)
            delta = mean - self.mean[index]
            self.squares[index] += side.sub_(mean).square_().sum(0) + delta.square() * (self.n * rows / (self.n + rows))
            self.mean[index] += delta * (rows / (self.n + rows))
        self.n += rows

    def by_channel(self, channels: int) -> "Differences":
        """The same of rows that are positions: of features (channels x positions), flattened, those of the channels."""
        pooled = Differences(channels, self.device)
        pooled.n, pooled.total = self.n * (self.mean.shape[1] // channels), self.total
        means = self.mean.view(2, channels, -1)
        pooled.mean = means.mean(2)
        between = (means - pooled.mean[:, :, None]).square().sum(2)
        pooled.squares = self.squares.view(2, channels, -1).sum(2) + self.n * between
        return pooled


def differences_of(x: Tensor, y: Tensor) -> Differences:
    """Return the differences of x and y: (rows, d)."""
    differences = Differences(x.shape[1], x.device)
    differences.update(x, y)
    return differences


def l2(differences: Differences) -> float:
    """Return the mean squared difference of x and y: (rows, d), over all elements.

    In [0, inf), in squared units of the activations; 0: equal. No invariance.
    """
    if differences.n == 0:
        raise UserError("no activations were seen: the data set is empty")
    differences.require_finite()
    return float(differences.total) / (differences.n * differences.mean.shape[1])


def l2_relative(differences: Differences) -> float:
    """Return the squared difference of x and y: (rows, d) relative to the spread of y about its mean.

    sum |x - y|^2 / sum |y - mean(y)|^2, the mean taken of each feature over the rows. In [0, inf); 0: equal; 1: x
    predicts y no better than a constant does. No invariance, not symmetric; this is 1 - R2 of the identity map.
    Raise UserError for a constant y.
    """
    differences.require_finite()
    if not nonconstant_features(differences.squares[1], differences.mean[1], differences.n).any():
        raise UserError("the second representation is constant: its spread cannot be a unit")
    return float(differences.total) / float(differences.squares[1].sum())
