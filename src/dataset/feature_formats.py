"""What kinds of files hold activations, and how an array of each is read: mapped into memory where that can be."""

import json
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.tensor_files import parse_tensors
from src.core.text import in_line

IDS = "ids"  # what an array, a list or a metadatum of that name says: which image each row is of
DEEPEST = 20  # dicts within dicts
HEADER = 100_000_000  # bytes of a safetensors header, at most
# of safetensors, and the type of numpy that holds it; bfloat16 is the upper half of a float32
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
DTYPES |= {f"{sign}{bits}": f"<{sign.lower()}{bits // 8}" for sign in "IU" for bits in (8, 16, 32, 64)}


@dataclass(frozen=True, slots=True)
class Saved:
    """One array of a file: its shape, and `read`, an index of rows -> these rows as they are stored.

    place: what to call it in messages. kind: the dtype in words.
    """

    place: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[Any], np.ndarray]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Saved":
        return self  # a copy of a network must not copy 20 GB

    def __len__(self) -> int:
        return self.shape[0]


Arrays = dict[str, Saved]


def _npy(path: Path) -> tuple[dict[str, Saved], None]:
    array = np.lib.format.open_memmap(path, mode="r") if _header(path)[2].hasobject is False else None
    if array is None:
        raise UserError(f"{path} holds Python objects, which are not opened: they could run anything")
    return {path.stem: mapped(str(path), array)}, None


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    with path.open("rb") as file:
        return _npy_header(file)


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def mapped(place: str, array: np.ndarray) -> Saved:
    """An array in memory, or mapped into it, of which nothing stays there that was read."""
    view = getattr(array, "_mmap", None) if array.flags.c_contiguous else None  # of others each row is everywhere
    if view is None or not hasattr(mmap, "MADV_DONTNEED"):
        return Saved(place, array.shape, str(array.dtype), lambda rows: np.asarray(array[rows]))

    def read(rows: Any) -> np.ndarray:
        values = np.array(array[rows])
        view.madvise(mmap.MADV_DONTNEED)  # pages that a process has read count as its memory
        return values

    return Saved(place, array.shape, str(array.dtype), read)


def _npz(path: Path) -> tuple[dict[str, Saved], None]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            name = part.filename.removesuffix(".npy")
            place = f"{path}, {in_line(name)}"
            with archive.open(part) as file:
                shape, in_columns, dtype = _npy_header(file)  # pyright: ignore[reportArgumentType]
                skipped = file.tell()
            if dtype.hasobject:
                raise UserError(f"{place} holds Python objects, which are not opened: they could run anything")
            if part.compress_type == zipfile.ZIP_STORED:
                start = _start_of(path, part.header_offset) + skipped
                if skipped + dtype.itemsize * int(np.prod(shape, dtype=object)) > part.file_size:
                    raise UserError(f"{place} is damaged: its head promises more than is there")
                order = "F" if in_columns else "C"
                array = np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)
                arrays[name] = mapped(place, array)
            else:
                arrays[name] = Saved(place, shape, str(dtype), _Unpacked(path, part.filename))
    return arrays, None


def _start_of(path: Path, offset: int) -> int:
    """Where the bytes of a member begin, behind its local header."""
    with path.open("rb") as file:
        file.seek(offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
    return offset + 30 + int(name) + int(extra)


class _Unpacked:
    """Rows of an array of a compressed .npz, unpacked once."""

    def __init__(self, path: Path, member: str) -> None:
        self.path, self.member = path, member
        self.array: np.ndarray | None = None

    def __call__(self, rows: Any) -> np.ndarray:
        if self.array is None:
            with np.load(self.path, allow_pickle=False) as archive:
                self.array = archive[self.member.removesuffix(".npy")]
        assert self.array is not None
        return self.array[rows]


def _safetensors(path: Path) -> tuple[dict[str, Saved], tuple[str, ...] | None]:
    """The tensors of a file: a length, a header of JSON, and bytes, whose places are held against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(HEADER, size - 8):
            raise UserError(f"{path} is damaged: its head would be {length} bytes long")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its head is no table")
    about = header.pop("__metadata__", None) or {}
    arrays = {}
    for name, record in header.items():
        place = f"{path}, {in_line(name)}"
        kind, shape, (start, stop) = record["dtype"], tuple(record["shape"]), record["data_offsets"]
        if kind not in DTYPES:
            raise UserError(f"{place} holds {in_line(str(kind))} values, and activations are real numbers")
        dtype = np.dtype(DTYPES[kind])
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
        if not whole or stop - start != dtype.itemsize * int(np.prod(shape, dtype=object)) or 8 + length + stop > size:
            raise UserError(f"{place} is damaged: its head promises other bytes than are there")
        array = np.memmap(path, dtype=dtype, mode="r", offset=8 + length + start, shape=shape) if stop > start else None
        array = np.empty(shape, dtype) if array is None else array
        saved = mapped(place, array)
        arrays[name] = saved if kind != "BF16" else Saved(place, shape, "bfloat16", _widened(saved.read))
    ids = about.get(IDS) if isinstance(about, dict) else None
    return arrays, tuple(map(str, json.loads(ids))) if ids else None


def _widened(read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    return lambda rows: (read(rows).astype(np.uint32) << 16).view(np.float32)


def _torch(path: Path) -> tuple[Arrays, tuple[str, ...] | None]:
    """What torch.save wrote: a tensor, called after the file, or dicts and lists of them, by names with dots."""
    try:
        found = parse_tensors(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if isinstance(found, Tensor):
        return {path.stem: _of_tensor(str(path), found)}, None
    ids = found.pop(IDS, None) if isinstance(found, dict) and isinstance(found.get(IDS), list | tuple) else None
    arrays: Arrays = {}
    for name, tensor in _tensors(found):
        if name in arrays:
            raise UserError(f"{path}: the layer {in_line(name)} is there twice")
        arrays[name] = _of_tensor(f"{path}, {in_line(name)}", tensor)
    return arrays, None if ids is None else tuple(map(str, ids))


def _tensors(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if depth > DEEPEST:
        raise UserError("it nests too deep for layers")
    for key, part in parts:
        yield from _tensors(part, f"{name}.{key}" if name else str(key), depth + 1)


def _of_tensor(place: str, tensor: Tensor) -> Saved:
    try:
        return mapped(place, (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy())
    except (TypeError, RuntimeError):  # sparse, quantized, of eight bits
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{place} holds a {tensor.layout} tensor of {kind}, which is no plain array") from None


def joined(place: str, parts: Sequence[Saved]) -> Saved:
    """One array of several, whose images come one part after the other. Raises UserError where they do not fit."""
    first = parts[0]
    if odd := next((part for part in parts if (part.shape[1:], part.kind) != (first.shape[1:], first.kind)), None):
        raise UserError(f"{odd.place} does not continue {first.place}: {odd.shape} after {first.shape}")
    ends = np.cumsum([len(part) for part in parts])

    def read(rows: Any) -> np.ndarray:
        numbers = np.arange(ends[-1])[rows]
        owners = np.searchsorted(ends, numbers, side="right")
        found = None
        for owner in np.unique(owners):
            here = owners == owner
            values = parts[owner].read(numbers[here] - (ends[owner] - len(parts[owner])))
            found = np.empty((len(numbers), *values.shape[1:]), values.dtype) if found is None else found
            found[here] = values
        return first.read(slice(0, 0)) if found is None else found

    return Saved(place, (int(ends[-1]), *first.shape[1:]), first.kind, read)


# by the ending of a file what it holds: arrays, and ids where they are no array
READERS: dict[str, Callable[[Path], tuple[Arrays, tuple[str, ...] | None]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
}
