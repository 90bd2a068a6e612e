"""SVHN, STL-10 and ImageNet as torchvision lays them out, in miniature."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Generator
from torchvision.datasets import STL10, SVHN

from src.dataset import DATASETS, augment, load_split
from src.dataset.folder import first_difference, read_imagenet
from src.dataset.split import MemorySplit


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchvision's look at the digests of the real files."""
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("split", "file"), [("train", "train_32x32.mat"), ("val", "test_32x32.mat")])
def test_svhn(split: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    images, labels = pixels(32, 32, 3, 12), np.array([1, 10, 2, 9] * 3, dtype=np.uint8)[:, None]
    scipy.io.savemat(tmp_path / file, {"X": images, "y": labels})
    found = load_split("svhn", split, root=tmp_path)
    assert isinstance(found, MemorySplit) and found.labels.dtype == torch.int64
    assert found.labels.tolist() == [1, 0, 2, 9] * 3  # where the files say 10
    assert np.array_equal(found.images[5].numpy(), images[..., 5].transpose(2, 0, 1))


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("val", "test")])
def test_stl10(split: str, name: str, tmp_path: Path) -> None:
    home = tmp_path / "stl10_binary"
    home.mkdir()
    images = pixels(4, 3, 96, 96)  # column after column, as the files have them
    (home / f"{name}_X.bin").write_bytes(images.tobytes())
    (home / f"{name}_y.bin").write_bytes(bytes([1, 10, 3, 7]))
    (home / "class_names.txt").write_text("\n".join(DATASETS["stl10"].labels))
    found = load_split("stl10", split, root=tmp_path)
    assert isinstance(found, MemorySplit) and found.labels.tolist() == [0, 9, 2, 6]
    assert np.array_equal(found.images.numpy(), images.transpose(0, 1, 3, 2))
    seen, _ = next(found.batches(4, augment=Generator().manual_seed(0)))
    assert seen.shape == (4, 3, 96, 96)


def test_imagenet(tmp_path: Path) -> None:
    names = DATASETS["imagenet"].labels
    assert len(set(names)) == 1000 and list(names) == sorted(names) and names[0] == "n01440764"
    three = names[:3]
    for number, name in enumerate(three):
        (tmp_path / "imagenet/val" / name).mkdir(parents=True)
        Image.fromarray(pixels(50, 40 + number, 3)).save(tmp_path / "imagenet/val" / name / f"{name}_1.JPEG")
    files, labels = read_imagenet(tmp_path, "val", classes=three)
    assert [file.name for file in files] == [f"{name}_1.JPEG" for name in three] and labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=f"other classes than ImageNet: nothing more against '{names[3]}'"):
        read_imagenet(tmp_path, "val", classes=names)
    with pytest.raises(FileNotFoundError, match="no imagenet/train in .*DATASET_ROOT_PYTORCH.*-d digits"):
        read_imagenet(tmp_path, "train", classes=three)
    spec = replace(DATASETS["imagenet"], labels=three, size=28, read=lambda root, split: (files, labels))
    split = load_split(spec, "val", root=tmp_path, num_workers=0)
    assert next(split.batches(3))[0].shape == (3, 3, 28, 28)


def test_digits_are_not_mirrored() -> None:
    images = torch.arange(32, dtype=torch.uint8).expand(50, 1, 32, 32)  # brighter to the right
    plain, mirrored = (
        augment.flip_and_crop(images, Generator().manual_seed(0), padding=0, mirror=mirror) for mirror in (False, True)
    )
    assert torch.equal(plain, images) and not torch.equal(mirrored, images)


def test_a_random_part_stays_within_the_image_and_is_mirrored_in_half_of_them() -> None:
    ramp = torch.linspace(10, 240, 32).to(torch.uint8)
    images = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)])[None].expand(400, -1, -1, -1)
    found = augment.resized_crop(images, Generator().manual_seed(0), size=28)
    assert found.shape == (400, 2, 28, 28) and found.min() >= 10 and found.max() <= 240
    rightwards = (found[:, 0, :, -1] > found[:, 0, :, 0]).all(1)
    assert 150 < int(rightwards.sum()) < 250
    assert (found[:, 1, -1] > found[:, 1, 0]).all()  # never upside down
    width, height = ((found[:, k].amax((1, 2)) - found[:, k].amin((1, 2))) / 230 for k in (0, 1))
    area = width * height * (32 / 31) ** 2
    assert 0.2 < area.min() < 0.35 and area.max() > 0.85
    assert (width / height).min() > 0.6 and (width / height).max() < 1.6


def test_the_first_difference_is_of_names_in_alphabetical_order() -> None:
    assert first_difference("cab", "bca") == ""
    assert first_difference("cab", "bda") == "'c' against 'd'"
    assert first_difference("cab", "ba") == "'c' against nothing more"
