"""The data sets, and how to get a split of one."""

from functools import partial
from pathlib import Path

import torch

from src import config
from src.dataset import augment, labels
from src.dataset.celeba import read_celeba
from src.dataset.readers import read_digits, read_torchvision
from src.dataset.spec import SPLITS, DatasetSpec
from src.dataset.split import FolderSplit, MemorySplit, Split
from src.task import MULTI_LABEL, SINGLE_LABEL


def _torchvision(name: str, kind: str, **facts) -> DatasetSpec:
    pad = 2 if facts["channels"] == 1 else 0  # 28 -> 32, the size that the architectures expect
    read = partial(read_torchvision, kind, pad=pad)
    return DatasetSpec(name=name, folder=kind, size=32, task=SINGLE_LABEL, root="pytorch", read=read, **facts)


_CIFAR = {
    "channels": 3,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
    "augment": augment.flip_and_crop,
}

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            folder="Digits",
            channels=1,
            labels=labels.DIGITS,
            size=32,
            mean=(0.3058,),
            std=(0.3241,),
            task=SINGLE_LABEL,
            root=None,
            read=lambda root, split: read_digits(split),
            augment=augment.affine,
        ),
        _torchvision(
            "mnist", "MNIST", channels=1, labels=labels.DIGITS, mean=(0.1307,), std=(0.3081,), augment=augment.affine
        ),
        _torchvision(
            "fashion",
            "FashionMNIST",
            channels=1,
            labels=labels.FASHION,
            mean=(0.2860,),
            std=(0.3530,),
            augment=augment.affine,
        ),
        _torchvision("cifar10", "CIFAR10", labels=labels.CIFAR10, **_CIFAR),
        _torchvision("cifar100", "CIFAR100", labels=labels.CIFAR100, **_CIFAR),
        DatasetSpec(
            name="celeba",
            folder="CelebA",
            channels=3,
            labels=labels.CELEBA,
            size=224,
            mean=(117 / 255,) * 3,
            std=(1 / 255,) * 3,
            task=MULTI_LABEL,
            root="celeba",
            read=read_celeba,
            augment=augment.rotate_and_crop,
            in_memory=False,
            splits=(*SPLITS, "valid"),
        ),
    )
}

_FOLDER_ALIASES = {"celebagenerator": "celeba"}


def canonical_dataset(name: str) -> str:
    """Command-line name of a data set given by that name or by its folder, in any case; ValueError if unknown."""
    lower = name.lower()
    known = {spec.folder.lower(): spec.name for spec in DATASETS.values()} | {n: n for n in DATASETS} | _FOLDER_ALIASES
    if lower not in known:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(sorted(DATASETS))}")
    return known[lower]


def load_split(
    name: str,
    split: str,
    *,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    num_workers: int | None = None,
) -> Split:
    """Open the `train` or `val` images of a data set, or its `valid` ones where it has such (CelebA).

    `root` overrides the configured folder. In-memory sets live on `device`; `num_workers` processes decode the
    images of the others (None: one a core, at most 8). Raises ValueError for unknown names and
    FileNotFoundError, with the remedy, for data that are not there.
    """
    spec = DATASETS[canonical_dataset(name)]
    if split not in spec.splits:
        raise ValueError(f"{spec.name} has no split {split!r}; choose from {', '.join(spec.splits)}")
    if spec.root and root is None:
        root = config.data_root(spec.root)
    images, targets = spec.read(root, split)
    if len(targets) == 0:
        raise ValueError(f"the {split} split of {spec.name} in {root} is empty")
    if spec.in_memory:
        return MemorySplit(spec, images.to(device), targets.to(device))
    return FolderSplit(spec, images, targets, device=device, num_workers=num_workers)
