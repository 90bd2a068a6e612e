"""What lies in a folder of images, and tables of labels beside them."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.files import naming
from src.dataset.decode import SUFFIXES, Files

TABLE = "labels.csv"  # of yes/no labels, or of classes
TABLES = (".csv", ".tsv", ".txt")
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


def the_table(home: Path) -> Path:
    """The one table beside images that lie in one folder; UserError where there is none, or more than one."""
    if (home / TABLE).is_file():
        return home / TABLE
    tables = [entry for entry in scan(home) if entry.name.lower().endswith(TABLES)]
    if len(tables) != 1:
        names = ", ".join(entry.name for entry in tables) or "none"
        raise UserError(
            f"{home} has images without a folder for each class, and of tables that name their classes: {names}; one "
            f"is needed, {TABLE} or another with a file and a class in a row"
        )
    return Path(tables[0].path)


def with_table(home: Path, table: Path, folder: Path) -> Listing:
    """The images of a folder below (or equal to) `home`, labelled by a table.

    Its rows are a file and a class (what else a row has is not read), with a head or without; or, below a head with
    the names of labels, a file and a 0 or 1 for each. UserError for a table that does not fit the images.
    """
    rows = _rows(table)
    images = {entry.name for entry in scan(folder) if not entry.name.lower().endswith(TABLES) and is_image(entry)}
    by_file = {name: name for name in images} | {Path(name).stem: name for name in images}
    head = None if rows and Path(rows[0][0]).name in by_file else (rows.pop(0) if rows else None)
    if not rows:
        raise UserError(f"{table} names no image")
    is_yes_no = head is not None and table.name == TABLE and (len(head) != 2 or _values(rows, 1) <= {"0", "1"})
    if is_yes_no and head is not None:
        _check_head(table, head)
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        where = f"{table}, row {number + 1} ({row[0]})"
        if is_yes_no and head is not None and (len(row) != len(head) or not set(row[1:]) <= {"0", "1"}):
            raise UserError(f"{where} is not a file and a 0 or 1 for each of {len(head) - 1} labels")
        if len(row) < 2 or not row[1].strip():
            raise UserError(f"{where} has no class")
        name = by_file.get(Path(row[0]).name, row[0])
        if name not in images or name in names:
            raise UserError(f"{where}: {'is there twice' if name in names else f'no such image in {folder}'}")
        names[name] = None
    if missing := images - names.keys():
        raise UserError(f"{table} has no row for {min(missing)}")
    files = Files(home, [str((folder / name).relative_to(home)) for name in names])
    if is_yes_no and head is not None:
        return Listing(files, tuple(head[1:]), torch.tensor([[float(value) for value in row[1:]] for row in rows]))
    classes = tuple(sorted(_values(rows, 1)))
    numbers = {name: number for number, name in enumerate(classes)}
    return Listing(files, classes, torch.tensor([numbers[row[1].strip()] for row in rows]))


def _values(rows: Sequence[Sequence[str]], column: int) -> set[str]:
    return {row[column].strip() for row in rows if len(row) > column}


def _rows(table: Path) -> list[list[str]]:
    """The rows of a table that are not empty, cut at commas, tabs, semicolons or spaces: what its first line has."""
    try:
        with naming(table):
            lines = table.read_text(encoding="utf-8-sig").splitlines()
        first = next((line for line in lines if line.strip()), "")
        mark = next((mark for mark in "\t,;" if mark in first), " ")
        return [row for row in csv.reader(lines, delimiter=mark, skipinitialspace=mark == " ") if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no table of comma-separated UTF-8 text: {error}") from None


def _check_head(table: Path, head: Sequence[str]) -> None:
    if len(head) < 2 or len(set(head)) < len(head) or not all(name.strip() for name in head[1:]):
        raise UserError(f"{table} needs a head: the file's column, and one or more labels, each of a name of its own")


def scan(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, by name, without what systems leave in folders."""
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in _ELSES]
    return sorted(kept, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry) -> bool:
    if entry.is_symlink():  # one that leads nowhere, or round in a circle, says so
        os.stat(entry.path)
    return entry.is_dir()


def is_image(entry: os.DirEntry) -> bool:
    """True; UserError for what is no image, since to leave it out in silence would change the data."""
    if is_folder(entry):
        raise UserError(f"{entry.path} is a folder among images; a class has images alone")
    if not entry.name.lower().endswith(SUFFIXES):
        raise UserError(f"{entry.path} is no image of a kind known here ({', '.join(SUFFIXES)})")
    return True
