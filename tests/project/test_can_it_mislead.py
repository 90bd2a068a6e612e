"""The example of coloured digits: its sets of images, and its page."""

import numpy as np
import torch

from benchmarks.can_it_mislead import CLASSES, COLOURS, PAGE, images_of
from benchmarks.pages import renew
from src.dataset import load_split


def hue_of(images: np.ndarray) -> np.ndarray:
    """The colour of the ground, told at a corner where there is no ink."""
    apart = np.abs(images[:, 0, 0, None] / 255.0 - COLOURS).sum(2)
    return apart.argmin(1)


def test_sets_of_images_are_what_they_are_called() -> None:
    digits = load_split("digits", "val").labels.numpy()
    for kind, shared in (("agreeing", 1.0), ("conflicting", 0.0), ("independent", 0.1), ("shape", 0.1)):
        images, labels = images_of(kind, "val")
        assert images.shape[1:] == (32, 32, 3) and images.dtype == np.uint8
        assert (labels == digits).all() and abs((hue_of(images) == labels).mean() - shared) < 0.07
    images, labels = images_of("colour", "val")
    assert (hue_of(images) == labels).all() and (labels == digits).mean() < 0.2
    noise, labels = images_of("noise", "val")
    means = torch.stack([torch.tensor(noise[labels == label]).double().mean(0) for label in range(CLASSES)])
    assert float((means[0] - means[1]).abs().mean()) > 10  # a pattern of its own for each class


def test_the_page_has_a_row_for_each_front_and_layer() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.count("|") == 9]
    assert len(rows) == 2 + 5 * 3
    other = renew(page, "can_it_mislead", "| a |")
    assert other.count("| a |") == 1 and "| colour | bn3 |" not in other
