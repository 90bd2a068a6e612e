"""What the plain functions of two matrices share: checks, and bringing both to zero mean and about unit scale."""

import torch
from torch import Tensor


def paired(x: Tensor, y: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return x: (n, dx) and y: (n, dy) as floating point; raise ValueError unless n agrees and is at least `least`."""
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise ValueError(
            f"expected (images, features) on both sides with equally many images, got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    if len(x) < least:
        raise ValueError(f"{len(x)} images are too few; at least {least} are needed")
    return _floating(x), _floating(y)


def unit(x: Tensor, side: str) -> Tensor:
    """Centre the columns of x: (n, d), drop those that do not vary, divide the rest by their common root mean square.

    Keeps gradients. Raise ValueError where no column varies by more than the rounding of its values, or a value is
    not finite.
    """
    largest = x.detach().abs().amax(0) if x.numel() else x.new_zeros(x.shape[1])
    if not torch.isfinite(largest).all():
        raise ValueError(f"the {side} representation holds NaN or infinite values")
    x = x - x.mean(0)
    x = x - x.mean(0)  # the first mean was rounded; what it left over is small enough to subtract exactly
    size = x.detach().abs().amax(0) if x.numel() else largest
    live = size > 4 * torch.finfo(x.dtype).eps * largest
    if not live.any():
        raise ValueError(f"the {side} representation is constant")
    if not live.all():
        x = x[:, live]
    x = x / size.max()  # squares of large float32 values overflow
    return x / x.detach().square().mean().sqrt()


def _floating(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
