"""CIFAR read straight from its files: what torchvision gives, and nothing of a file that is not the authors'."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from src.dataset import cifar
from src.dataset.cifar import read_cifar
from src.dataset.readers import _open_torchvision, read_torchvision


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def write(folder: Path, name: str, record: object) -> str:
    """A file as CIFAR's are; returns its MD5."""
    content = pickle.dumps(record, protocol=2)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_files_of_the_right_digest_are_read_in_order(tmp_path: Path, monkeypatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
    parts = {"one": {"data": pixels[:2], "labels": [3, 1]}, "two": {"data": pixels[2:], "labels": [4, 1, 5]}}
    digests = {name: write(tmp_path / "c", name, record) for name, record in parts.items()}
    monkeypatch.setitem(cifar.FILES, "CIFAR10", ("c", "labels", {"train": digests, "val": {"two": digests["two"]}}))
    monkeypatch.setattr("src.dataset.readers._open_torchvision", lambda *_: pytest.fail("torchvision was asked"))
    images, labels = read_torchvision("CIFAR10", tmp_path, "train")
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.uint8 and labels.tolist() == [3, 1, 4, 1, 5]
    assert images[3, 2, 1, 7] == pixels[3, 2 * 1024 + 32 + 7]  # planes of colour, rows within
    assert len(read_torchvision("CIFAR10", tmp_path, "val")[1]) == 3


def test_other_files_are_left_to_torchvision_and_never_opened(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_cifar("CIFAR100", tmp_path, "val") is None
    write(tmp_path / "cifar-100-python", "test", Evil())
    assert read_cifar("CIFAR100", tmp_path, "val") is None and not Path("executed").exists()
    pickle.loads((tmp_path / "cifar-100-python" / "test").read_bytes())
    assert Path("executed").exists()  # it would have been


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "val"])
def test_it_is_what_torchvision_gives(split: str) -> None:
    root = Path(os.environ["DATASET_ROOT_PYTORCH"])
    straight = read_cifar("CIFAR10", root, split)
    assert straight
    whole = _open_torchvision("CIFAR10", root, split == "train")
    assert torch.equal(straight[0], torch.from_numpy(whole.data).permute(0, 3, 1, 2))
    assert straight[1].tolist() == whole.targets
