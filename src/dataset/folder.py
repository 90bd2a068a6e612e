"""Folders of image files: a folder a class, or one folder with a table of labels beside the images."""

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.dataset import augment
from src.dataset.dataset_spec import SPLITS, DatasetSpec
from src.dataset.decode import Files, look_at
from src.dataset.label_tables import TABLE, TABLES, Listing, is_folder, is_image, scan, the_table, with_table

INNER = "images"  # the one folder within that of a class, or of a split, in which all images may lie
SIZE = 224  # of images that are not alike
_SAMPLE = 64  # images whose size and colour stand for all


def folder_spec(name: str, root: Path) -> DatasetSpec:
    """What is known of a folder with `train/` and `val/` (or `test/`), of which one may be missing.

    Size and colour are those of a sample. Raises OSError or UserError, with the path, for a folder that is no such
    thing, for classes without images and for splits whose classes differ.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    homes = {split: home for split in SPLITS if (home := _home(root, split))}
    if not homes:
        raise FileNotFoundError(f"{root} has neither train/ nor val/ or test/, with a folder for each class in it")
    listings = {split: _listed(home) for split, home in homes.items()}
    first, *others = listings.values()
    for home, other in zip(list(homes.values())[1:], others, strict=True):
        _check_classes(first, next(iter(homes.values())), other, home)
    if first.labels.dim() == 2:
        listings = {split: one.in_order(first.classes) for split, one in listings.items()}
    own_size, channels = _sampled(first.files)
    return DatasetSpec(
        name=name,
        folder="",
        channels=channels,
        labels=first.classes,
        size=own_size or SIZE,
        mean=(),
        std=(),
        task=SINGLE_LABEL if first.labels.dim() == 1 else MULTI_LABEL,
        root=None,
        read=lambda _, split: (listings[split].files, listings[split].labels),
        augment=augment.of_files,
        in_memory=False,
        splits=tuple(listings),
        exact=True,
        own_size=own_size,
    )


def read_imagenet(root: Path, split: str, *, classes: tuple[str, ...]) -> tuple[Files, Tensor]:
    """ImageNet as torchvision lays it out: train/ and val/, a folder for each of 1,000 WordNet numbers."""
    home = root / "imagenet" / split
    if not home.is_dir():
        raise FileNotFoundError(
            f"no imagenet/{split} in {root}, and it is not to be had without its makers' leave; point pytorch in "
            "config/default.env or DATASET_ROOT_PYTORCH to a folder that has it, or try the embedded set: -d digits"
        )
    found = _listed(home)
    if found.classes != classes:
        raise UserError(f"{home} has other classes than ImageNet: {first_difference(found.classes, classes)}")
    return found.files, found.labels


def first_difference(one: Sequence[str], other: Sequence[str]) -> str:
    """Where two lists of classes, both in alphabetical order, first differ; '' where they hold the same names."""
    for first, second in zip_longest(sorted(one), sorted(other)):
        if first != second:
            return " against ".join("nothing more" if name is None else repr(name) for name in (first, second))
    return ""


def _home(root: Path, split: str) -> Path | None:
    names = (split, "test") if split == "val" else (split,)
    return next((root / name for name in names if (root / name).is_dir()), None)


def _listed(home: Path) -> Listing:
    entries = [entry for entry in scan(home) if not _is_text(entry)]
    is_inner = _is_inner(entries)
    if (home / TABLE).is_file() or is_inner or (entries and not any(map(is_folder, entries))):
        return with_table(home, the_table(home), home / INNER if is_inner else home)
    return _with_folders(home)


def _is_inner(entries: Sequence[os.DirEntry]) -> bool:
    return len(entries) == 1 and entries[0].name == INNER and is_folder(entries[0])


def _with_folders(home: Path) -> Listing:
    classes, names, numbers = [], [], []
    for entry in scan(home):
        if not is_folder(entry):
            raise UserError(f"{entry.path} is no folder; each class has one in {home} (or labels stand in {TABLE})")
        images = _images_of(entry)
        if not images:
            raise UserError(f"the class {entry.name} has no image in {entry.path}")
        names += [os.path.join(entry.name, image) for image in images]
        numbers += [len(classes)] * len(images)
        classes.append(entry.name)
    if not classes:
        raise UserError(f"{home} holds no folder of a class")
    return Listing(Files(home, names), tuple(classes), torch.tensor(numbers))


def _images_of(folder: os.DirEntry) -> list[str]:
    """The images of a class; those in `images/`, if beside that are texts alone, as in Tiny ImageNet."""
    entries = [entry for entry in scan(folder.path) if not _is_text(entry)]
    if _is_inner(entries):
        return [os.path.join(INNER, image.name) for image in scan(entries[0].path) if is_image(image)]
    return [image.name for image in scan(folder.path) if is_image(image)]


def _is_text(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(TABLES) and not is_folder(entry)


def _check_classes(first: Listing, home: Path, other: Listing, other_home: Path) -> None:
    if first.labels.dim() != other.labels.dim():
        raise UserError(f"of {home} and {other_home} only one has a {TABLE}")
    for one, two, has, lacks in ((first, other, home, other_home), (other, first, other_home, home)):
        if missing := sorted(set(one.classes) - set(two.classes)):
            raise UserError(f"the class {missing[0]} is in {has} and not in {lacks}")


def _sampled(files: Files) -> tuple[int | None, int]:
    """The size of a sample of images where all are N x N, and their channels: 1 where all are grey, else 3."""
    step = max(1, len(files) // _SAMPLE)
    looks = [look_at(files[number]) for number in range(0, len(files), step)]
    sizes = {size for size, _ in looks}
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    return width if width == height else None, max(channels for _, channels in looks)
