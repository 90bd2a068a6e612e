"""Files that are either whole or absent: write beside the target, then rename."""

import fcntl
import glob
import importlib
import io
import json
import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from src.core.errors import UserError

SKIPPED = 100  # classes in one file
ATTEMPTS = 100  # at what another process may undo in the moment that it is done
T = TypeVar("T")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, also while failing runs take back the empty ones that they share with this one.

    Raises OSError where that cannot be done.
    """
    _despite_others(lambda: folder.mkdir(parents=True, exist_ok=True))


def _despite_others(action: Callable[[], T]) -> T:
    """What an action gives, tried again where a folder may have gone in the moment after it was made or seen."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            return action()
    return action()


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    Whatever happens inside the block, or to the machine, `path` holds its old content or all of the new one.
    Raises FileExistsError where `overwrite` is false and another process has made `path` in the meantime.
    """
    make_folder(path.parent)
    remove_leftovers(path)
    temporary = None
    try:
        temporary, file = open_temporary(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _publish(temporary, path, overwrite=overwrite)
    except OSError as error:
        # users know their file, not our temporary one; a full disk names no file at all
        if error.errno is None or error.filename not in (None, str(temporary or "")):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked for as long as it is open: the lock tells writers from their leftovers."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            file = temporary.open("x+b")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        with suppress(OSError):  # a file system without locks: no one will remove anything there
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # remove_leftovers of another process came between open and lock


@contextmanager
def sole_maker(path: Path, remedy: str = "give another --run-name") -> Iterator[None]:
    """Be the only process that makes `path`, from the first work to the last byte; its folder is made, too.

    Raises FileExistsError, with the remedy, where another one is at it. What a killed process left of its claim holds
    no one up.
    """
    claim = path.with_name(f".{path.name}.lock")

    def open_claim() -> BinaryIO:
        make_folder(path.parent)
        return claim.open("wb")

    while True:
        try:
            file = _despite_others(open_claim)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise FileExistsError(f"another run is making {path}; {remedy}") from None
        except OSError:  # a file system without locks
            pass
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # its maker ended between our open and lock
    with file:
        try:
            yield
        finally:
            claim.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
    else:
        # a hard link, unlike a rename, fails where the name is taken: two runs cannot overwrite each other
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise FileExistsError(f"{path} exists already; give --overwrite or another --run-name") from None
        except OSError:  # a file system without hard links
            if path.exists():
                raise FileExistsError(f"{path} exists already; give --overwrite or another --run-name") from None
            temporary.replace(path)
    with suppress(OSError):  # some file systems cannot do it, and the file is in its place already
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files that killed writers of `path` left behind."""
    for leftover in path.parent.glob(glob.escape(f".{path.name}.") + "*.tmp"):
        with suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
            leftover.unlink(missing_ok=True)


def write_tensors(path: Path, record: dict[str, Any]) -> None:
    """Write tensors and built-in values with torch.save, atomically; raises OSError where that fails."""
    content = io.BytesIO()
    torch.save(record, content)  # not straight into the file: a full disk would come out as a RuntimeError of torch
    with atomic_write(path) as file:
        file.write(content.getbuffer())


class Skipped:
    """What stands for an object of a class that is not to be run; its text is the name of that class."""

    def __new__(cls, *_: Any, **__: Any) -> "Skipped":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def __str__(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @classmethod
    def named(cls, name: str) -> type["Skipped"]:
        module, _, last = name.rpartition(".")
        return type(last, (cls,), {"__module__": module, "__qualname__": last})


def _load_tensors(content: bytes, skip: bool) -> Any:
    """torch.load, with `skip` again and again until each class that it may not run has one that stands for it."""
    skipped: list[Any] = []
    while True:
        try:
            with torch.serialization.safe_globals(skipped):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            asked = re.search(r"GLOBAL ((?:\w+\.)+\w+) was not an allowed global", str(error))
            if not skip or not asked or len(skipped) >= SKIPPED:
                raise
            skipped.append(Skipped.named(asked[1]))


def parse_tensors(content: bytes, *, skip: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU, without running anything in it; UserError if it is damaged.

    With `skip`, objects of other classes are `Skipped`; else they are refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols, which the error below refuses anyway
            found = _load_tensors(content, skip)
            if damaged := zipfile.is_zipfile(io.BytesIO(content)) and zipfile.ZipFile(io.BytesIO(content)).testzip():
                raise RuntimeError(f"its part {damaged} is not what was written")  # which torch does not look at
            return found
    except Exception as error:  # a hostile or cut file can make torch raise anything at all
        raise UserError(_reason(error)) from None


def parse_safetensors(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, which holds nothing that could run; UserError if it is damaged."""
    try:
        load = importlib.import_module("safetensors.torch").load  # by name, for type checkers without the extra
    except ImportError:
        raise UserError("safetensors is not installed: pip install -r requirements-nets.txt") from None
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        aliases = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
        # weights that a network has twice are written once, with a word on where the others are
        return tensors | {
            name: tensors[kept] for name, kept in aliases.items() if kept in tensors and name not in tensors
        }
    except Exception as error:  # of kinds of its own
        raise UserError(str(error).splitlines()[0]) from None


def _reason(error: Exception) -> str:
    """Torch's reason in a line, without its advice to load the file unsafely."""
    if asked := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {asked[1]}, which no such file needs"
    if isinstance(error, RuntimeError) and str(error):
        return str(error).splitlines()[0].split(". ")[0]
    return "it is cut, or torch did not write it"
