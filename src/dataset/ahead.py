"""The batches of an epoch, drawn beforehand: what a GPU then needs of each is there, and nobody waits for a copy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from src.dataset.augment import DrawnAhead, drawn_ahead

if TYPE_CHECKING:
    from src.dataset.split import Batch, MemorySplit


class Ahead:
    """So many batches of a split, in the order and with the changes that `Split.batches` draws from the generators.

    `rows` says which images a step takes, and how they are changed; `make` makes a batch of that on the device.
    """

    def __init__(
        self, split: "MemorySplit", batch_size: int, steps: int, order: Generator, augment: Generator | None
    ) -> None:
        self._split, self._change = split, None
        index = torch.randperm(len(split), generator=order)[: steps * batch_size].view(steps, batch_size)
        tables = [index]
        if augment is not None:
            shape = batch_size, *split.images.shape[1:]
            self._change = change_of(split)
            assert self._change
            tables.append(torch.stack([self._change.draw(shape, augment) for _ in range(steps)]))
        self._tables = [table.to(split.device, non_blocking=True) for table in tables]

    def rows(self, step: int) -> list[Tensor]:
        """What tells the batch of a step from others: tensors of one shape in all steps."""
        return [table[step] for table in self._tables]

    def make(self, rows: Sequence[Tensor]) -> "Batch":
        """Images and labels."""
        images = self._split.images.index_select(0, rows[0])
        if self._change:
            images = self._change.apply(images, rows[1])
        return self._split.as_seen(images), self._split.labels.index_select(0, rows[0])


def change_of(split: "MemorySplit") -> DrawnAhead | None:
    """What is done to training images of a split, in two; None where that cannot be."""
    return drawn_ahead(split.spec.augment, split.images.shape)
