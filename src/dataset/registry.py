"""The data sets that have a name."""

from functools import partial

from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.dataset import augment, labels
from src.dataset.celeba import read_celeba
from src.dataset.dataset_spec import SPLITS, DatasetSpec
from src.dataset.folder import read_imagenet
from src.dataset.readers import read_digits, read_torchvision


def _torchvision(name: str, kind: str, **facts) -> DatasetSpec:
    pad = 2 if facts["channels"] == 1 else 0  # 28 -> 32, the size that the architectures expect
    common = {"size": 32, "task": SINGLE_LABEL, "root": "pytorch", "read": partial(read_torchvision, kind, pad=pad)}
    return DatasetSpec(name=name, folder=kind, **(common | facts))


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
        _torchvision(
            "svhn",
            "SVHN",
            channels=3,
            labels=labels.DIGITS,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
            augment=partial(augment.flip_and_crop, mirror=False),
        ),
        _torchvision(
            "stl10",
            "STL10",
            channels=3,
            labels=labels.STL10,
            size=96,
            mean=(0.4467, 0.4398, 0.4066),
            std=(0.2603, 0.2566, 0.2713),
            augment=partial(augment.flip_and_crop, padding=12),
        ),
        DatasetSpec(
            name="imagenet",
            folder="ImageNet",
            channels=3,
            labels=labels.IMAGENET,
            size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            task=SINGLE_LABEL,
            root="pytorch",
            read=partial(read_imagenet, classes=labels.IMAGENET),
            augment=augment.of_files,
            in_memory=False,
            exact=True,
        ),
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
