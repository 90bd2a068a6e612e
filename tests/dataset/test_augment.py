"""Augmentation of whole batches equals slow augmentation of one image after the other."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import affine_transform
from torch import Generator, Tensor
from torch.testing import assert_close

from src.dataset import augment
from src.dataset.augment import affine, flip_and_crop, rotate_and_crop

AUGMENTATIONS: list[Callable[[Tensor, Generator], Tensor]] = [
    flip_and_crop,
    affine,
    lambda images, generator: rotate_and_crop(images, generator, size=12),
]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise(n: int, *, channels: int = 3, size: int = 16) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (n, channels, size, size), dtype=np.uint8))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What an augmentation draws, in order."""
    values: list[Tensor] = []

    def spy(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*arguments, **options) -> Tensor:
            values.append(draw(*arguments, **options))
            return values[-1]

        return wrapper

    monkeypatch.setattr(augment, "_uniform", spy(augment._uniform))
    monkeypatch.setattr(torch, "randint", spy(torch.randint))
    return values


def draws_become(monkeypatch: pytest.MonkeyPatch, *constants: float) -> None:
    values: Iterator[float] = iter(constants)
    monkeypatch.setattr(augment, "_uniform", lambda n, low, high, generator: torch.full((n,), next(values)))


def moved(image: Tensor, matrix: np.ndarray, shift: np.ndarray, size: int) -> Tensor:
    """Output pixel o takes input pixel matrix (o + shift - centre) + centre; edges repeat; (x, y) coordinates."""
    swapped = matrix[::-1, ::-1]  # scipy counts rows first
    centre = (np.array(image.shape[1:]) - 1) / 2
    offset = swapped @ (shift[::-1] - centre) + centre
    planes = image.double().numpy()
    options: dict[str, Any] = {"offset": offset, "output_shape": (size, size), "order": 1, "mode": "nearest"}
    return torch.from_numpy(np.stack([affine_transform(plane, swapped, **options) for plane in planes])).float()


def test_flip_and_crop_gives_each_image_one_of_its_own_crops() -> None:
    images = noise(400, channels=2, size=6)
    changed = flip_and_crop(images, seeded())
    assert changed.dtype == torch.uint8
    found = []
    for image, result in zip(images, changed, strict=True):
        padded = F.pad(image, (4,) * 4)
        crops = {
            (top, left, flip): crop.flip(2) if flip else crop
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            for crop in [padded[:, top : top + 6, left : left + 6]]
        }
        (place,) = (place for place, crop in crops.items() if torch.equal(crop, result))
        found.append(place)
    tops, lefts, flips = zip(*found, strict=True)
    assert set(tops) == set(lefts) == set(range(9))
    assert 160 < sum(flips) < 240
    assert len(set(found)) > 120  # of 162: the three draws do not depend on each other


def test_affine_moves_each_image_by_its_own_map(drawn: list[Tensor]) -> None:
    images = noise(8)
    changed = affine(images, seeded())
    for i, (image, result) in enumerate(zip(images, changed, strict=True)):
        angle, shear, scale = (values[i].double().item() for values in drawn)
        angle, shear = np.deg2rad(angle), np.deg2rad(shear)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = rotation @ np.array([[1, np.tan(shear)], [0, 1]]) / scale
        assert_close(result, moved(image, matrix, np.zeros(2), 16), atol=0.01, rtol=0)


def test_rotate_and_crop_moves_each_image_by_its_own_map(drawn: list[Tensor]) -> None:
    images = noise(8)
    changed = rotate_and_crop(images, seeded(), size=12)
    angles, tops, lefts = drawn
    for i, (image, result) in enumerate(zip(images, changed, strict=True)):
        angle = np.deg2rad(angles[i].double().item())
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = np.array([lefts[i].item(), tops[i].item()])
        assert_close(result, moved(image, rotation, shift, 12), atol=0.01, rtol=0)


def test_affine_draws_from_the_promised_ranges(drawn: list[Tensor]) -> None:
    affine(noise(3000, channels=1, size=2), seeded())
    for values, low, high in zip(drawn, (-5, -5, 0.9), (5, 5, 1.1), strict=True):
        width = high - low
        assert low <= values.min() < low + width / 100
        assert high - width / 100 < values.max() <= high


def test_rotate_and_crop_draws_from_the_promised_ranges(drawn: list[Tensor]) -> None:
    rotate_and_crop(noise(3000, channels=1, size=4), seeded(), size=2)
    angles, tops, lefts = drawn
    assert -10 <= angles.min() < -9.9
    assert 9.9 < angles.max() <= 10
    assert set(tops.tolist()) == set(lefts.tolist()) == {0, 1, 2}


def test_no_angle_no_shear_and_scale_one_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draws_become(monkeypatch, 0.0, 0.0, 1.0)
    assert_close(affine(noise(4), seeded()), noise(4).float(), atol=1e-3, rtol=0)


def test_no_angle_is_a_plain_crop(monkeypatch: pytest.MonkeyPatch, drawn: list[Tensor]) -> None:
    draws_become(monkeypatch, 0.0)
    images = noise(4)
    changed = rotate_and_crop(images, seeded(), size=12)
    tops, lefts = drawn
    for image, result, top, left in zip(images, changed, tops, lefts, strict=True):
        assert_close(result, image[:, top : top + 12, left : left + 12].float(), atol=1e-2, rtol=0)


def test_a_quarter_turn_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    draws_become(monkeypatch, 90.0, 0.0, 1.0)
    images = noise(2)
    assert_close(affine(images, seeded()), images.rot90(1, (2, 3)).float(), atol=0.01, rtol=0)


def test_scale_above_one_enlarges(monkeypatch: pytest.MonkeyPatch) -> None:
    draws_become(monkeypatch, 0.0, 0.0, 2.0)
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., 3:5, 3:5] = 100
    expected = F.interpolate(image[..., 2:6, 2:6].float(), scale_factor=2, mode="bilinear", align_corners=False)
    assert_close(affine(image, seeded())[..., 1:7, 1:7], expected[..., 1:7, 1:7], atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_moved_images_repeat_their_edge_and_cropped_ones_meet_zeros(seed: int) -> None:
    white = torch.full((6, 1, 16, 16), 255, dtype=torch.uint8)
    for edge_repeats in AUGMENTATIONS[1:]:
        assert_close(edge_repeats(white, seeded(seed)).min().item(), 255.0, atol=1e-3, rtol=0)
    assert flip_and_crop(white, seeded(seed)).min() == 0


@pytest.mark.parametrize("change", AUGMENTATIONS)
def test_each_image_draws_its_own_and_equal_seeds_draw_alike(change: Callable[[Tensor, Generator], Tensor]) -> None:
    one = noise(1)
    images = one.expand(8, -1, -1, -1)
    changed = change(images, seeded(1))
    assert len({result.numpy().tobytes() for result in changed}) > 5
    assert torch.equal(changed, change(images, seeded(1)))
    assert not torch.equal(changed, change(images, seeded(2)))
    assert torch.equal(one, noise(1))


@pytest.mark.parametrize("change", AUGMENTATIONS)
def test_values_stay_within_range(change: Callable[[Tensor, Generator], Tensor]) -> None:
    changed = change(noise(64), seeded()).float()
    assert changed.min() >= -1e-3
    assert changed.max() <= 255 + 1e-3


@pytest.mark.parametrize("change", AUGMENTATIONS)
def test_the_global_generator_is_left_alone(change: Callable[[Tensor, Generator], Tensor]) -> None:
    before = torch.get_rng_state()
    change(noise(2), seeded())
    assert torch.equal(torch.get_rng_state(), before)
