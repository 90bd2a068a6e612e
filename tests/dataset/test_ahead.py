"""An epoch that is drawn beforehand against one that is drawn batch by batch."""

from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from torch import Generator

from src.dataset import DATASETS, augment
from src.dataset.split import MarkedSplit, MemorySplit

IMAGES, BATCH, STEPS = 23, 4, 3


def split_of(name: str, change=None) -> MemorySplit:
    spec = DATASETS[name] if change is None else replace(DATASETS[name], augment=change)
    generator = Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, spec.channels, 32, 32), generator=generator, dtype=torch.uint8)
    return MemorySplit(spec, pixels, torch.arange(IMAGES) % 10)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cifar10", None),
        ("mnist", None),
        ("cifar10", partial(augment.flip_and_crop, mirror=False, padding=2)),
        ("cifar10", augment.of_known_size),
        ("mnist", augment.of_known_size),
    ],
)
@pytest.mark.parametrize("still", [False, True])
def test_it_has_the_same_batches_and_leaves_the_generators_alike(name: str, change, still: bool) -> None:
    split = split_of(name, change)
    split = split.unaugmented() if still else split
    pairs = [[Generator().manual_seed(seed) for seed in (1, 2)] for _ in range(2)]
    ahead = split.ahead(BATCH, STEPS, order=pairs[0][0], augment=pairs[0][1])
    assert split.draws_ahead and ahead
    batches = split.batches(BATCH, order=pairs[1][0], augment=pairs[1][1], drop_last=True)
    for step, (images, labels) in enumerate(islice(batches, STEPS)):
        found = ahead.make(ahead.rows(step))
        assert torch.equal(found[0], images) and torch.equal(found[1], labels)
        assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(*pairs, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


def test_others_are_drawn_as_they_come() -> None:
    for split in (MarkedSplit(split_of("cifar10")), split_of("cifar10", lambda images, generator: images)):
        assert not split.draws_ahead
        assert split.ahead(BATCH, STEPS, order=Generator(), augment=Generator()) is None
