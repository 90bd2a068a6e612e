"""Activations that somebody has saved: .npy, .npz, .safetensors, or a folder of them; nothing of a file runs.

Arrays are mapped into memory where their file allows it (.npy, .safetensors, .npz as np.savez writes it), so that a
file may be larger than the memory; of a compressed .npz one array at a time is unpacked.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.core.errors import UserError, first_line
from src.core.text import in_line

SUFFIXES = (".npy", ".npz", ".safetensors")
IDS, LABELS, OUTPUT = "ids", "labels", "output"  # arrays of these names are no layers
NAMES = "file_names.txt"  # beside a folder's files: an id a line
WHOLE, BLOCK = 1_000_000_000, 1 << 20  # bytes of content that a digest is of, and that are read at once
HEADER = 100_000_000  # bytes of a safetensors header, at most
# of safetensors, and the type of numpy that holds it; bfloat16 is the upper half of a float32
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_REAL = re.compile(r"bfloat16|float\d+|u?int\d+|[<>][fiu]\d+")  # of numpy, in words
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


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """What a file or folder holds: layers by name, images first, and where there are such ids, labels and outputs."""

    path: Path
    layers: Mapping[str, Saved]
    ids: tuple[str, ...] | None = None
    labels: Saved | None = None
    output: Saved | None = None

    @property
    def images(self) -> int:
        return len(next(iter(self.layers.values())))


def read_features(path: Path) -> FeatureFile:
    """What a file or a folder of files holds. Raises UserError, with path and reason, for what is no such thing."""
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    return _checked(path, *(_of_folder(path) if path.is_dir() else _of_file(path)))


def parts_of(path: Path) -> list[Path]:
    """The files that a file or folder of activations consists of, in the order of their names."""
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES] if path.is_dir() else [path]
    beside = path / NAMES if path.is_dir() else path.with_name(NAMES)
    return sorted(files) + [beside] * beside.is_file()


def digest_of_features(path: Path) -> str:
    """SHA-256 of what a file or folder holds; of more than WHOLE bytes of names, sizes and times of change."""
    files = parts_of(path)
    whole = sum(file.stat().st_size for file in files) <= WHOLE
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(repr((file.name, status.st_size, None if whole else status.st_mtime_ns)).encode())
        if whole:
            with file.open("rb") as content:
                while block := content.read(BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def features_of(arrays: Mapping[str, np.ndarray], called: str) -> FeatureFile:
    """The same of arrays in memory, which `called` names in messages. Raises UserError as `read_features` does."""
    places = {name: called if name == called else f"{called}, {in_line(name)}" for name in arrays}
    return _checked(Path(called), {name: _mapped(places[name], array) for name, array in arrays.items()}, None)


def _checked(path: Path, arrays: Mapping[str, Saved], ids: tuple[str, ...] | None) -> FeatureFile:
    layers = {name: saved for name, saved in arrays.items() if name not in (IDS, LABELS, OUTPUT)}
    if not layers:
        raise UserError(f"{path} holds no layer" + f" beside {', '.join(map(in_line, arrays))}" * bool(arrays))
    for name, saved in {name: saved for name, saved in arrays.items() if name != IDS}.items():
        _check(name, saved)
    counts = {name: len(saved) for name, saved in {**layers, **_some(arrays, LABELS, OUTPUT)}.items()}
    first, *others = counts
    for name in others:
        if counts[name] != counts[first]:
            raise UserError(
                f"{path}: {in_line(first)} has {counts[first]} images, {in_line(name)} {counts[name]}; the first axis "
                "is of images"
            )
    if ids is None and IDS in arrays:
        ids = _ids_of(arrays[IDS])
    if ids is not None:
        _check_ids(path, ids, counts[first])
    return FeatureFile(path, layers, ids, arrays.get(LABELS), arrays.get(OUTPUT))


def _some(arrays: Mapping[str, Saved], *names: str) -> dict[str, Saved]:
    return {name: arrays[name] for name in names if name in arrays}


def _of_folder(path: Path) -> tuple[dict[str, Saved], tuple[str, ...] | None]:
    arrays: dict[str, Saved] = {}
    ids = None
    for file in sorted(path.iterdir()):
        if file.suffix in SUFFIXES:
            found, own = _of_file(file)
            single = len(found) == 1 or file.suffix == ".npy"
            for name, saved in found.items():
                called = file.stem if single else name
                if called in arrays:
                    raise UserError(f"{path}: the layer {in_line(called)} is there twice")
                arrays[called] = saved
            ids = own or ids
        elif file.name == NAMES:
            ids = _lines(file)
    if not arrays:
        raise UserError(f"{path} holds no {', '.join(SUFFIXES)}")
    return arrays, ids


def _of_file(path: Path) -> tuple[dict[str, Saved], tuple[str, ...] | None]:
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise UserError(f"{path} is no {', '.join(SUFFIXES)}")
    try:
        arrays, ids = readers[path.suffix](path)
    except (UserError, OSError):
        raise
    except Exception as error:  # a damaged file makes numpy, zipfile and json raise anything, RecursionError too
        raise UserError(f"{path} is damaged, or no {path.suffix}: {in_line(first_line(error))}") from None
    beside = path.with_name(NAMES)
    return arrays, ids or (_lines(beside) if beside.is_file() else None)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line)
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text, an id a line") from None


def _npy(path: Path) -> tuple[dict[str, Saved], None]:
    array = np.lib.format.open_memmap(path, mode="r") if _header(path)[2].hasobject is False else None
    if array is None:
        raise UserError(f"{path} holds Python objects, which are not opened: they could run anything")
    return {path.stem: _mapped(str(path), array)}, None


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    with path.open("rb") as file:
        return _npy_header(file)


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _mapped(place: str, array: np.ndarray) -> Saved:
    return Saved(place, array.shape, str(array.dtype), lambda rows: np.asarray(array[rows]))


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
                arrays[name] = _mapped(place, array)
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
        saved = _mapped(place, array)
        arrays[name] = saved if kind != "BF16" else Saved(place, shape, "bfloat16", _widened(saved.read))
    ids = about.get(IDS) if isinstance(about, dict) else None
    return arrays, tuple(map(str, json.loads(ids))) if ids else None


def _widened(read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    return lambda rows: (read(rows).astype(np.uint32) << 16).view(np.float32)


def _check(name: str, saved: Saved) -> None:
    if not _REAL.fullmatch(saved.kind):
        what = "complex numbers" if "complex" in saved.kind else f"{in_line(saved.kind)} values"
        raise UserError(f"{saved.place} holds {what}, and activations are real numbers")
    if not saved.shape or len(saved) == 0:
        raise UserError(f"{saved.place} holds no images")
    if name not in (LABELS,) and (len(saved.shape) < 2 or 0 in saved.shape):
        raise UserError(f"{saved.place} has the shape {saved.shape}; images are first, and features follow")


def _ids_of(saved: Saved) -> tuple[str, ...]:
    if len(saved.shape) != 1:
        raise UserError(f"{saved.place} has the shape {saved.shape}; ids are one an image")
    values = saved.read(slice(None))
    if values.dtype.kind not in "USiu":
        raise UserError(f"{saved.place} holds {saved.kind} values, and ids are texts or whole numbers")
    texts: Sequence[Any] = values.tolist()
    return tuple(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts)


def _check_ids(path: Path, ids: Sequence[str], images: int) -> None:
    if len(ids) != images:
        raise UserError(f"{path} has {len(ids)} ids for {images} images")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))
        raise UserError(f"{path}: the id {in_line(twice)!r} is there twice")
