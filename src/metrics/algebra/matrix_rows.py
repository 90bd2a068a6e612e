"""What metrics of rows share: checks, bringing both sides to zero mean and unit scale, and float64 in pieces."""

from collections.abc import Iterator

import torch
from torch import Tensor

from src.core.errors import UserError

# Rows become float64 in pieces of about this many numbers: 4 MB, which stays in the processor's cache.
# On a GPU, where each piece is a launch or two, in larger ones: 256 MB.
PIECE, GPU_PIECE = 1 << 19, 1 << 25


def piece_rows(features: int, device: torch.device | None = None) -> int:
    """Return how many rows of so many features make a piece on a device."""
    size = GPU_PIECE if device is not None and device.type == "cuda" else PIECE
    return max(1, size // max(1, features))


def float64_pieces(x: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Yield the rows of x: (n, d) as float64, a piece at a time, in one reused buffer that the caller may overwrite.

    One buffer, because freeing and allocating large pieces in turn makes the C library's heap grow past 1 GB.
    """
    size = piece_rows(x.shape[1], device)
    buffer = torch.empty(min(len(x), size), x.shape[1], dtype=torch.float64, device=device)
    for rows in x.split(size):
        yield buffer[: len(rows)].copy_(rows.to(device))


def require_real(x: Tensor) -> None:
    """Raise UserError for complex numbers, whose imaginary part every sum here would lose."""
    if x.is_complex():
        raise UserError("the activations are complex; compare their real and imaginary parts as channels of their own")


def paired(x: Tensor, y: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return x: (n, dx) and y: (n, dy) as floating point; raise UserError unless n agrees and is at least `least`."""
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise UserError(
            f"expected (images, features) on both sides with equally many images, got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    if len(x) < least:
        raise UserError(f"{len(x)} images are too few; at least {least} are needed")
    return _floating(x), _floating(y)


def unit(x: Tensor, side: str, *, asks: bool = True) -> Tensor:
    """Centre the columns of x: (n, d), drop those that do not vary, divide the rest by their common root mean square.

    Keeps gradients. Raise UserError where no column varies by more than the rounding of its values, or a value is
    not finite. Where nobody `asks`, since a GPU would have to wait, columns that do not vary are 0, and a constant side
    is NaN.
    """
    largest = x.detach().abs().amax(0) if x.numel() else x.new_zeros(x.shape[1])
    if asks and not torch.isfinite(largest).all():
        raise UserError(f"the {side} representation holds NaN or infinite values")
    x = x - x.mean(0)
    x = x - x.mean(0)  # the first mean was rounded; what it left over is small enough to subtract exactly
    size = x.detach().abs().amax(0) if x.numel() else largest
    nonconstant = size > 4 * torch.finfo(x.dtype).eps * largest
    if not asks:
        x = torch.where(nonconstant, x / torch.where(nonconstant, size, 0.0).max(), 0.0)
        return x / (x.detach().square().sum() / (nonconstant.sum() * len(x))).sqrt()
    if not nonconstant.any():
        raise UserError(f"the {side} representation is constant")
    if not nonconstant.all():
        x = x[:, nonconstant]
    x = x / size.max()  # squares of large float32 values overflow
    return x / x.detach().square().mean().sqrt()


def _floating(x: Tensor) -> Tensor:
    require_real(x)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
