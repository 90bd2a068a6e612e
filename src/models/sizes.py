"""The one check that every architecture makes of its image size."""


def check_size(architecture: str, size: int, smallest: int) -> None:
    """Raise ValueError where images of `size` x `size` pixels leave a layer of the architecture without any output."""
    if size < smallest:
        raise ValueError(f"image size {size} is too small for {architecture}; it needs at least {smallest}")
