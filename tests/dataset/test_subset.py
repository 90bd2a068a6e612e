"""Fewer training images, and wrong labels: how many, which, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.dataset import DATASETS, load_split, shuffle_labels, take_fraction, take_images
from src.dataset.split import FolderSplit, MemorySplit, Split


def numbered(labels: Tensor, dataset: str = "digits") -> MemorySplit:
    """A split whose images are all of one colour, each its own."""
    numbers = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return MemorySplit(DATASETS[dataset], numbers.expand(-1, 1, 2, 2).clone(), labels)


def colours(split: Split) -> list[int]:
    assert isinstance(split, MemorySplit)
    return split.images[:, 0, 0, 0].tolist()


LABELS = torch.tensor([0] * 20 + [1] * 40 + [2] * 3).repeat(2)


@pytest.mark.parametrize(("fraction", "counts"), [(0.1, [4, 8, 1]), (0.5, [20, 40, 3]), (0.01, [1, 1, 1])])
def test_a_fraction_has_its_part_of_each_class_and_keeps_images_with_their_labels(
    fraction: float, counts: list[int]
) -> None:
    split = numbered(LABELS)
    part = take_fraction(split, fraction, seed=0)
    assert part.labels.bincount().tolist() == counts
    assert colours(part) == sorted(set(colours(part)))
    assert part.labels.tolist() == LABELS[colours(part)].tolist()
    assert len(split) == len(LABELS)


def test_the_seed_decides_and_the_smaller_lies_in_the_larger() -> None:
    split = numbered(LABELS)
    tenth = colours(take_fraction(split, 0.1, seed=3))
    assert tenth == colours(take_fraction(split, 0.1, seed=3))
    assert tenth != colours(take_fraction(split, 0.1, seed=4))
    assert set(tenth) < set(colours(take_fraction(split, 0.5, seed=3))) < set(range(len(LABELS)))


def test_images_of_many_labels_are_drawn_whatever_these_are() -> None:
    attributes = (torch.arange(200)[:, None] % torch.tensor([2, 50]) == 0).float()
    part = take_fraction(numbered(attributes, "celeba"), 0.25, seed=0)
    assert len(part) == 50
    assert torch.equal(part.labels, attributes[colours(part)])


def test_shuffling_moves_labels_of_that_part_only_and_makes_none() -> None:
    labels = torch.arange(10).repeat(20)
    split = numbered(labels)
    for share in (0.0, 0.25, 1.0):
        shuffled = shuffle_labels(split, share, seed=0)
        assert colours(shuffled) == colours(split)
        assert shuffled.labels.bincount().tolist() == [20] * 10
        moved = int((shuffled.labels != labels).sum())
        assert 0.8 * share * 200 <= moved <= share * 200  # a tenth of the moved labels meets its own kind
    assert torch.equal(split.labels, labels)
    again, other = (shuffle_labels(split, 1.0, seed=seed).labels for seed in (0, 1))
    assert torch.equal(again, shuffled.labels) and not torch.equal(other, again)


def test_all_labels_of_an_image_move_together() -> None:
    attributes = torch.arange(120.0).view(40, 3)
    shuffled = shuffle_labels(numbered(attributes, "celeba"), 1.0, seed=0).labels
    assert not torch.equal(shuffled, attributes)
    assert torch.equal(shuffled[shuffled[:, 0].argsort()], attributes)


def test_the_choice_of_images_is_not_their_order() -> None:
    """Training draws the order of images with the seed itself; what is chosen must not be what comes first."""
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))[:50]
    chosen = colours(take_fraction(numbered(torch.zeros(200, dtype=torch.int64)), 0.25, seed=5))
    assert len(set(chosen) & set(order.tolist())) < 25


def test_files_in_a_folder_follow_their_labels() -> None:
    spec, files = replace(DATASETS["celeba"]), [Path(f"{number}.jpg") for number in range(30)]
    split = FolderSplit(spec, files, torch.arange(30.0)[:, None], device="cpu", num_workers=2)
    part = take_fraction(split, 0.5, seed=0)
    assert isinstance(part, FolderSplit) and part.num_workers == 2
    assert [float(path.stem) for path in part.files] == part.labels[:, 0].tolist() and len(part) == 15


def test_real_digits_give_whole_batches() -> None:
    train = load_split("digits", "train")
    part = shuffle_labels(take_fraction(train, 0.1, seed=0), 1.0, seed=0)
    images, labels = next(part.batches(64))
    assert images.shape == (64, 1, 32, 32) and len(part) == 144
    assert labels.bincount(minlength=10).min() > 0


@pytest.mark.parametrize(
    ("count", "counts"), [(1, [1, 0, 0]), (3, [1, 1, 1]), (12, [4, 4, 4]), (60, [27, 27, 6]), (110, [40, 64, 6])]
)
def test_so_many_images_are_as_many_of_each_class(count: int, counts: list[int]) -> None:
    split = numbered(LABELS)
    part = take_images(split, count)
    assert part.labels.bincount(minlength=3).tolist() == counts and len(part) == count
    assert colours(part) == sorted(set(colours(part))) == colours(take_images(split, count))
    assert part.labels.tolist() == LABELS[colours(part)].tolist()
    assert set(colours(part)) < set(colours(take_images(split, count + 1)))
    assert colours(take_images(split, 126)) == colours(take_images(split, 1000)) == list(range(126))


def test_so_many_images_are_not_the_first_ones_and_may_have_many_labels() -> None:
    assert colours(take_images(numbered(torch.zeros(100, dtype=torch.int64)), 10)) != list(range(10))
    many = numbered(torch.ones(50, 40), "celeba")
    assert len(take_images(many, 7)) == 7
    assert len(load_split("digits", "val", images=25)) == 25
