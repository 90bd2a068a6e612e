"""Files that are either whole or absent: write beside the target, then rename."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    Whatever happens inside the block, or to the machine, `path` holds its old content or all of the new one.
    Raises FileExistsError where `overwrite` is false and another process has made `path` in the meantime.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path, overwrite=overwrite)
    finally:
        temporary.unlink(missing_ok=True)


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files that killed writers of `path` on this machine left behind."""
    host = socket.gethostname()
    for leftover in path.parent.glob(f".{path.name}.{host}-*.tmp"):
        pid = leftover.name[: -len(".tmp")].rpartition("-")[2]
        if pid.isdigit() and not _is_running(int(pid)):
            leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
