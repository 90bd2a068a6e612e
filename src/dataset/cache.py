"""Decoded images that stay for later epochs: in memory, or in a file that later runs find, too."""

import contextlib
import errno
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from src.core.files import make_folder, naming, open_temporary, remove_leftovers
from src.dataset.decode import Target

FORMAT = 1  # of the files' names: a change of how images are decoded makes other names
MEMORY_GB, FOLDER_GB = 2.0, 50.0
_NAME = re.compile(r"\.?[0-9a-f]{64}\.npy(\.[0-9a-f]+\.tmp)?")


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Where decoded images stay: in memory, or in a file below `folder`.

    `gb` bounds what one split may take in memory (default 2), or all files in the folder (default 50); a split that
    is larger is decoded in every epoch. `on_message` hears of what the folder could not hold.
    """

    folder: Path | None = None
    gb: float | None = None
    on_message: Callable[[str], None] = _silent


class Rows(ABC):
    """Images by their number, some of which are `known` (a boolean each)."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.known = torch.zeros(count, dtype=torch.bool)
        self.shape = shape

    @abstractmethod
    def put(self, index: Tensor, images: Tensor) -> None: ...

    @abstractmethod
    def get(self, index: Tensor) -> Tensor: ...


class InMemory(Rows):
    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        super().__init__(count, shape)
        self._images = torch.empty((count, *shape), dtype=torch.uint8)  # pages are taken when they are written

    def put(self, index: Tensor, images: Tensor) -> None:
        self._images.index_copy_(0, index, images)  # whole rows at once, ten times as fast as an index in brackets
        self.known[index] = True

    def get(self, index: Tensor) -> Tensor:
        return self._images.index_select(0, index)


class InFile(Rows):
    """Rows of a .npy file: a temporary one until all are known, and then, in one step, the file of that name.

    Two processes that make the same file each write their own; the last one stays, with the same bytes. Raises OSError
    where the file system has no room for it.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...]) -> None:
        super().__init__(count, shape)
        self._path, self._stride = path, int(np.prod(shape))
        self._temporary: Path | None = None
        self._maker = os.getpid()
        if self._open_whole():
            self.known[:] = True
            with contextlib.suppress(OSError):
                os.utime(path)  # the file that was longest unused goes first where room is short
            return
        remove_leftovers(path)
        self._temporary, self._file = open_temporary(path)
        try:
            self._begin = _write_header(self._file, (count, *shape))
            _reserve(self._file.fileno(), self._begin + count * self._stride)
        except BaseException:
            self.close()
            raise

    def put(self, index: Tensor, images: Tensor) -> None:
        if self._temporary is None:
            return
        with naming(self._path):
            for row, image in zip(index.tolist(), images.contiguous().numpy(), strict=True):
                _write_at(self._file.fileno(), memoryview(image).cast("B"), self._begin + row * self._stride)
        self.known[index] = True
        if self.known.all():
            with naming(self._path):
                os.fsync(self._file.fileno())
            self._temporary.replace(self._path)
            self._temporary = None
            self._file.close()
            if not self._open_whole():
                raise OSError(f"{self._path} went away as soon as it was made; choose another --cache")

    def get(self, index: Tensor) -> Tensor:
        images = np.empty((len(index), *self.shape), dtype=np.uint8)
        with naming(self._path):
            # not through a map of the file: where its disk fails, that kills the process without a word
            for image, row in zip(images, index.tolist(), strict=True):
                _read_at(self._file.fileno(), memoryview(image).cast("B"), self._begin + row * self._stride)
        return torch.from_numpy(images)

    def _open_whole(self) -> bool:
        """Open the file of that name, if it is there and whole."""
        try:
            file = self._path.open("rb")
        except OSError:
            return False
        try:
            with naming(self._path):
                begin = _begin_of(file, (len(self.known), *self.shape))
        except OSError:
            file.close()
            raise
        if begin is None:
            file.close()
            return False
        self._file, self._begin = file, begin
        return True

    def close(self) -> None:
        """Remove what is not whole; a worker that inherited it leaves it alone."""
        if self._temporary is not None and os.getpid() == self._maker:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            self._temporary = None
        self._file.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.close()


class Kept:
    """The decoded images of a list of files, opened when they are first asked for; None where they do not fit."""

    def __init__(self, files: Sequence[Path], target: Target, keep: CacheOptions) -> None:
        self.files, self.target, self.keep = files, target, keep
        self._opened = False
        self._rows: Rows | None = None

    def rows(self) -> Rows | None:
        if not self._opened:
            self._opened, self._rows = True, self._open()
        return self._rows

    def other(self, files: Sequence[Path]) -> "Kept":
        return Kept(files, self.target, self.keep)

    def _open(self) -> Rows | None:
        count, shape = len(self.files), self.target.shape
        needed = count * int(np.prod(shape))
        if self.keep.folder is None:
            limit = MEMORY_GB if self.keep.gb is None else self.keep.gb
            return InMemory(count, shape) if needed <= 1e9 * limit else None
        folder, limit = self.keep.folder, FOLDER_GB if self.keep.gb is None else self.keep.gb
        path = folder / f"{cache_key(self.files, self.target)}.npy"
        try:
            make_folder(folder)
            if not path.exists() and not _made_room(folder, needed, int(1e9 * limit)):
                self.keep.on_message(
                    f"{count} decoded images take {needed / 1e9:.1f} GB, more than --cache-gb {limit:g}"
                )
                return None
            return InFile(path, count, shape)
        except OSError as error:
            self.keep.on_message(f"no cache in {folder}: {error.strerror or error}; images are decoded in every epoch")
            return None


def cache_key(files: Sequence[Path], target: Target) -> str:
    """SHA-256 of all that decides decoded images: files with sizes and times, what they are decoded to, and by what."""
    import PIL
    import torchvision

    digest = hashlib.sha256(repr((FORMAT, target, PIL.__version__, torchvision.__version__)).encode())
    for file in files:
        state = os.stat(file)
        digest.update(
            f"{os.path.abspath(file)}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def _begin_of(file: BinaryIO, shape: tuple[int, ...]) -> int | None:
    """Where the images of a .npy file begin; None where it is none of whole images of this shape."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        found, fortran, kind = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError):
        return None
    whole = file.tell() + int(np.prod(shape)) == os.fstat(file.fileno()).st_size
    return file.tell() if whole and found == shape and not fortran and kind == np.uint8 else None


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    file.flush()
    return file.tell()


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now, where the file system can: a full disk is then met before any work."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # macOS
        os.truncate(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.truncate(descriptor, size)


def _made_room(folder: Path, needed: int, limit: int) -> bool:
    """Whether `needed` bytes fit in the folder beside its other caches, of which the longest unused are removed."""
    if needed > limit:
        return False
    entries = []
    for entry in os.scandir(folder):
        if _NAME.fullmatch(entry.name):
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                entries.append((not entry.name.endswith(".npy"), state.st_mtime, state.st_size, entry.path))
    used = sum(size for _, _, size, _ in entries)
    for temporary, _, size, path in sorted(entries):
        if used + needed <= limit:
            break
        if not temporary:  # that of another process at work
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= size
    return used + needed <= limit


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _read_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        read = os.preadv(descriptor, [data], offset)
        if not read:
            raise OSError("a file of the cache was cut while it was made; choose another --cache")
        data, offset = data[read:], offset + read
