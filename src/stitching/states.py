"""Files of stitches, and where the state of an interrupted run lies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.stitching.stitch_spec import StitchSpec
from src.training.run_state import Resume, read_state

SET = "stitches"  # what the files of several stitches together are called
STITCHES = "stitches"  # in what identifies a state: the keys of those that train together


def state_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The states that an interrupted run of stitches of these names left."""
    if len(names) > 1:
        return sorted(folder.glob(f"{SET}-*.resume.pt"))
    file = folder / f"{names[0]}.resume.pt"
    return [file] if file.exists() else []


def check_states(folder: Path, names: Sequence[str], *, resume: bool, overwrite: bool) -> str | None:
    """Neither throw away what an interrupted run has learnt, nor begin it anew in silence.

    Raises FileExistsError for states that nobody asked to go on from; they are removed with `overwrite`. Returns a
    notice where there is nothing to go on from.
    """
    files = state_files(folder, names)
    if files and not resume and not overwrite:
        raise FileExistsError(f"{files[0]} is of an interrupted run; --resume goes on, --overwrite starts anew")
    if resume and not files:
        missing = folder / (f"{names[0]}.resume.pt" if len(names) == 1 else f"{SET}-*.resume.pt")
        return f"no {missing} to go on from; training starts at the first epoch"
    if not resume:
        for file in files:
            file.unlink()
    return None


def check_same_stitches(files: Sequence[Path], specs: Sequence[StitchSpec], about: dict[str, Any]) -> None:
    """Raise UserError about a state of several stitches that are not all among these: it would be thrown away.

    `about` as in `resume_states`.
    """
    keys = {spec.key(**about) for spec in specs}
    for file in files:
        before = read_state(file)["identity"].get(STITCHES)
        if not (isinstance(before, list | tuple) and keys.issuperset(map(str, before))):
            reason = "it was started with other options, layers, networks or images"
            raise UserError(f"cannot resume from {file}: {reason}; --overwrite starts anew")


def resume_states(
    folder: Path,
    names: Sequence[str],
    about: dict[str, Any],
    told: Callable[[int, int], None] | None = None,
    *,
    every: float = 0.0,
) -> Callable[[Sequence[StitchSpec]], Resume]:
    """Where the state of stitches that train together is kept, and what it is of.

    `about` are digests and names of what the stitches are between. `told` hears how many epochs of how many are done.
    `every` as in Resume.
    """

    def state(together: Sequence[StitchSpec]) -> Resume:
        epochs = together[0].epochs
        if len(names) == 1:
            file, identity = folder / f"{names[0]}.resume.pt", together[0].identity() | about
        else:
            keys = [spec.key(**about) for spec in together]
            file, identity = folder / f"{SET}-{keys[0][:16]}.resume.pt", {STITCHES: keys}
        return Resume(file, identity, lambda done: told and told(done, epochs), every)

    return state
