"""Folders of image files: a folder a class, or one folder with a table of labels beside the images."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.files import naming
from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.dataset import augment
from src.dataset.dataset_spec import SPLITS, DatasetSpec
from src.dataset.decode import SUFFIXES, Files, look_at

TABLE = "labels.csv"
SIZE = 224  # of images that are not alike
_SAMPLE = 64  # images whose size and colour stand for all
_ELSES = {"thumbs.db", "desktop.ini", TABLE}  # and what begins with a dot


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a split, the names of its classes, and the labels.

    These are numbers (images,), or with a table 0.0 and 1.0 (images, classes).
    """

    files: Files
    classes: tuple[str, ...]
    labels: Tensor

    def in_order(self, classes: tuple[str, ...]) -> "Listing":
        """The same with the columns of its labels in another order."""
        columns = [self.classes.index(name) for name in classes]
        return replace(self, classes=classes, labels=self.labels[:, columns])


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
    return _with_table(home) if (home / TABLE).is_file() else _with_folders(home)


def _with_folders(home: Path) -> Listing:
    classes, names, numbers = [], [], []
    for entry in _entries(home):
        if not _is_folder(entry):
            raise UserError(f"{entry.path} is no folder; each class has one in {home} (or labels stand in {TABLE})")
        images = [image.name for image in _entries(entry.path) if _is_image(image)]
        if not images:
            raise UserError(f"the class {entry.name} has no image in {entry.path}")
        names += [os.path.join(entry.name, image) for image in images]
        numbers += [len(classes)] * len(images)
        classes.append(entry.name)
    if not classes:
        raise UserError(f"{home} holds no folder of a class")
    return Listing(Files(home, names), tuple(classes), torch.tensor(numbers))


def _with_table(home: Path) -> Listing:
    table = home / TABLE
    try:
        with naming(table), table.open(newline="", encoding="utf-8-sig") as file:
            head, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no table of comma-separated UTF-8 text: {error}") from None
    if len(head) < 2 or len(set(head)) < len(head) or not all(name.strip() for name in head[1:]):
        raise UserError(f"{table} needs a head: the file's column, and one or more labels, each of a name of its own")
    images = {entry.name for entry in _entries(home) if _is_image(entry)}
    labels = torch.zeros(len(rows), len(head) - 1)
    seen = set()
    for number, row in enumerate(rows):
        where = f"{table}, row {number + 1} ({row[0]})"
        if len(row) != len(head) or not set(row[1:]) <= {"0", "1"}:
            raise UserError(f"{where} is not a file and a 0 or 1 for each of {len(head) - 1} labels")
        if row[0] not in images or row[0] in seen:
            raise UserError(f"{where}: {'is there twice' if row[0] in seen else f'no such image in {home}'}")
        seen.add(row[0])
        labels[number] = torch.tensor([float(value) for value in row[1:]])
    if images - seen:
        raise UserError(f"{table} has no row for {min(images - seen)}")
    if not rows:
        raise UserError(f"{table} names no image")
    return Listing(Files(home, [row[0] for row in rows]), tuple(head[1:]), labels)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, by name, without what systems leave in folders."""
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in _ELSES]
    return sorted(kept, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry) -> bool:
    if entry.is_symlink():  # one that leads nowhere, or round in a circle, says so
        os.stat(entry.path)
    return entry.is_dir()


def _is_image(entry: os.DirEntry) -> bool:
    """True; UserError for what is no image, since to leave it out in silence would change the data."""
    if _is_folder(entry):
        raise UserError(f"{entry.path} is a folder among images; a class has images alone")
    if not entry.name.lower().endswith(SUFFIXES):
        raise UserError(f"{entry.path} is no image of a kind known here ({', '.join(SUFFIXES)})")
    return True


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
