"""The files of CIFAR as they are unpacked, read once and straight: torchvision checks each twice and turns it about.

They are pickles, which are opened only where their digest says that they are those of the authors.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.files import read_bytes

# torchvision's name of a set -> its folder, what its labels are called, and the files of each split with their MD5
FILES: dict[str, tuple[str, str, dict[str, dict[str, str]]]] = {
    "CIFAR10": (
        "cifar-10-batches-py",
        "labels",
        {
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "val": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
    ),
    "CIFAR100": (
        "cifar-100-python",
        "fine_labels",
        {
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "val": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
    ),
}


def read_cifar(kind: str, root: Path, split: str) -> tuple[Tensor, Tensor] | None:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64; None where the authors' files are not below `root`.

    Raises OSError, with the file, where its disk fails.
    """
    folder, named, files = FILES[kind]
    parts = []
    for name, digest in files[split].items():
        path = root / folder / name
        if not path.is_file():
            return None
        content = read_bytes(path)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
            return None
        record: dict[str, Any] = pickle.loads(content, encoding="latin1")
        parts.append((record["data"].reshape(-1, 3, 32, 32), record[named]))
    images = np.concatenate([pixels for pixels, _ in parts])
    return torch.from_numpy(images), torch.tensor([label for _, labels in parts for label in labels])
