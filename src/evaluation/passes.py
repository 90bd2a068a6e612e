"""One pass over images that feeds the activations of two networks to whoever accumulates them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from src.core.precision import full_precision
from src.core.progress import bar
from src.dataset import Split

BATCH_SIZE = 64  # a batch's activations stay in a processor's cache
GPU_BATCH = 2048  # images of 32 x 32 that keep a GPU busy; of larger ones fewer, but no fewer than on a processor

# images -> output of a layer, (n, *shape), or of several by name
Head = nn.Module | Callable[[Tensor], Any]


def batch_of(split: Split) -> int:
    """Images of a batch where nothing is learnt, on the device of a split."""
    if split.device.type != "cuda":
        return BATCH_SIZE
    return max(BATCH_SIZE, min(GPU_BATCH, GPU_BATCH * 32 * 32 // split.spec.size**2))


@torch.inference_mode()
def feed(
    heads: Sequence[Head],
    split: Split,
    consume: Callable[..., None],
    *,
    batch_size: int | None = None,
    grouped: bool = False,
    skipped: int = 0,
    title: str = "",
) -> None:
    """Call consume(activation of the first head, of the second, ...) for each batch of the split, in its order.

    All heads see the same batch, so rows of the activations always belong to the same image. Where neighbours are
    `grouped`, to stand for all, images that come class by class are taken in an order at random, always the same one.
    `batch_size` is that of the device where nobody says another. Those that begin before the `skipped`-th are left
    out. Products are full float32.
    """
    order = Generator().manual_seed(0) if grouped and split.by_class else None
    with full_precision(), bar(len(split), title, unit="image") as progress:
        seen = 0
        for images, _ in split.batches(batch_size or batch_of(split), order=order):
            seen += len(images)
            if seen > skipped:
                consume(*(head(images) for head in heads))
            progress.update(len(images))
