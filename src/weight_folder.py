"""The folder that the weights of one training fill: reserved, and kept free of another training's."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.files import parse_tensors, sole_maker

RESUME = "resume.pt"


@contextlib.contextmanager
def reserved(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Reserve the folder of the weights; refuse one that another training fills, or has filled.

    Folders that are still empty at the end, since the work failed, are removed.
    """
    try:
        with sole_maker(folder / "training_log.csv", "wait for it, or give other seeds or another -o"):
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
            raise ValueError(f"cannot resume: {path} is not of a training by this script; give --overwrite or -o")
        for key in sorted(before.keys() | facts.keys()):
            if before.get(key) != facts.get(key):
                raise ValueError(
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
        record = parse_tensors(path.read_bytes())
    except ValueError:
        return {}
    recipe = record.get("recipe") if isinstance(record, dict) else None
    return recipe if isinstance(recipe, dict) else {}
