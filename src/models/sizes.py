"""The one check that every architecture makes of its image size."""

from src.core.errors import UserError


def check_size(architecture: str, size: int, smallest: int) -> None:
    """Raise UserError where images of `size` x `size` pixels leave a layer of the architecture without any output."""
    if size < smallest:
        raise UserError(f"image size {size} is too small for {architecture}; it needs at least {smallest}")
