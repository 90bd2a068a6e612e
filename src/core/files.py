"""Files that are either whole or absent: write beside the target, then rename."""

import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

# what a disk says that is full, failing, over its quota, or of a machine that is gone; nothing that the user misnamed
FAILING = frozenset(
    getattr(errno, name)
    for name in (
        "EIO",
        "ENOSPC",
        "EDQUOT",
        "ESTALE",
        "EREMOTEIO",
        "ENXIO",
        "ENODEV",
        "ENOTCONN",
        "EHOSTDOWN",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)
ATTEMPTS = 100  # at what another process may undo in the moment that it is done
T = TypeVar("T")


class NotWritten(OSError):
    """A disk failed while a file was written: what it was to hold is lost, what it held before is there."""


def is_failing(error: BaseException) -> bool:
    """Whether an error is of a disk that fails, is full or is gone."""
    return isinstance(error, OSError) and error.errno in FAILING


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Give errors of reading the file that they are of: once it is open, the system no longer says."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_bytes(path: Path) -> bytes:
    """All bytes of a file; raises OSError with its name, also where its disk fails on the way."""
    with naming(path):
        return path.read_bytes()


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
        kind = NotWritten if is_failing(error) else OSError
        raise kind(error.errno, error.strerror, str(path)) from None
    finally:
        if temporary:
            with suppress(OSError):  # where it cannot be removed, the next writer does it
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
            with suppress(OSError):
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
