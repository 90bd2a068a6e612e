"""Batches on their way to a GPU: the next one is copied while the one before it is computed with."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def on_device(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The same batches on a device. To a GPU they go from pinned memory, on a stream of their own, one ahead."""
    if device.type != "cuda":
        yield from (images.to(device, non_blocking=True) for images in batches)
        return
    aside, ahead = torch.cuda.Stream(device), None
    for images in batches:
        begun = _begin(images, device, aside)
        if ahead:
            yield _arrived(*ahead)
        ahead = begun
    if ahead:
        yield _arrived(*ahead)


def _begin(images: Tensor, device: torch.device, aside: Any) -> tuple[Tensor, Any]:
    """A batch whose copy has begun, and what tells that it has ended."""
    with torch.cuda.stream(aside):
        moved = (images if images.is_pinned() else images.pin_memory()).to(device, non_blocking=True)
        ended = torch.cuda.Event()
        ended.record(aside)
    return moved, ended


def _arrived(moved: Tensor, ended: Any) -> Tensor:
    here = torch.cuda.current_stream(moved.device)
    here.wait_event(ended)
    moved.record_stream(here)  # its memory is of the other stream, which must not reuse it while it is read here
    return moved
