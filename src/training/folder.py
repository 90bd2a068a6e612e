"""The folder that the weights of one training fill: reserved, and kept free of another training's."""

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.core.files import atomic_write, read_bytes, sole_maker
from src.core.tensor_files import parse_tensors

RESUME, LOG = "resume.pt", "training_log.csv"
LOG_COLUMNS: tuple[str, ...] = ("epoch", "train_accuracy", "train_loss", "val_accuracy", "val_loss")


@contextlib.contextmanager
def reserved(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Reserve the folder of the weights; refuse one that another training fills, or has filled.

    Folders that are still empty at the end, since the work failed, are removed.
    """
    try:
        with sole_maker(folder / LOG, "wait for it, or give other seeds or another -o"):
            refuse_existing(folder, resume=resume, overwrite=overwrite)
            yield folder
    finally:
        with contextlib.suppress(OSError):
            for empty in (folder, *folder.parents[:2]):
                empty.rmdir()


def refuse_existing(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if any(folder.glob("*.pt")) and not resume and not overwrite:
        remedy = "--resume goes on, --overwrite starts anew" if (folder / RESUME).exists() else "give --overwrite or -o"
        raise FileExistsError(f"{folder} holds a training already; {remedy}")


def refuse_finished_or_other(folder: Path, facts: dict[str, Any], final: Path) -> None:
    """Where no state is left to go on from, start anew only what was stopped in its first epoch."""
    for path in snapshots(folder):
        before = recipe_of(path)
        if not before:
            raise UserError(f"cannot resume: {path} is not of a training by this script; give --overwrite or -o")
        for key in sorted(before.keys() | facts.keys()):
            if before.get(key) != facts.get(key):
                raise UserError(
                    f"cannot resume: {path} was trained with {key} {before.get(key)}, not {facts.get(key)}; "
                    "--overwrite starts anew"
                )
    if final.exists():
        raise FileExistsError(f"{final} exists, so this training is finished; --overwrite starts anew")


def remove_older(folder: Path, iteration: int, facts: dict[str, Any]) -> None:
    """Delete the weights of a training that this one replaced, so that no one takes them for snapshots of it."""
    for path in snapshots(folder):
        recipe = recipe_of(path)
        if recipe and (int(path.stem) > iteration or recipe != facts):
            path.unlink()


def snapshots(folder: Path) -> list[Path]:
    """The weight files of the folder that are named by an iteration."""
    return sorted(path for path in folder.glob("*.pt") if path.stem.isdecimal())


def recipe_of(path: Path) -> dict[str, Any]:
    """The recipe of a weight file; empty where it has none or is none of ours."""
    try:
        record = parse_tensors(read_bytes(path))
    except ValueError:
        return {}
    recipe = record.get("recipe") if isinstance(record, dict) else None
    return recipe if isinstance(recipe, dict) else {}


def weight_file(folder: Path, iteration: int) -> Path:
    return folder / f"{iteration}.pt"


def numbered(epochs: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """A row an epoch, which it counts from 1."""
    return [{"epoch": epoch, **row} for epoch, row in enumerate(epochs, 1)]


def write_log(path: Path, epochs: Sequence[dict[str, float]]) -> None:
    """Rewrite training_log.csv, a row an epoch: whatever happens, the file holds whole rows only."""
    text = io.StringIO()
    writer = csv.DictWriter(text, LOG_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(numbered(epochs))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
