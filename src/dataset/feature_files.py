"""Activations that somebody has saved: .npy, .npz, .safetensors, .pt, or a folder of them; nothing of a file runs.

Arrays are mapped into memory where their file allows it (.npy, .safetensors, .npz as np.savez writes it), so that a
file may be larger than the memory; of a compressed .npz one array at a time is unpacked, and .pt is read whole.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from src.core.errors import UserError, first_line
from src.core.text import in_line
from src.dataset.feature_formats import IDS, READERS, Arrays, Saved, joined, mapped

SUFFIXES = tuple(READERS)
KINDS = ", ".join(SUFFIXES)
LABELS, OUTPUT = "labels", "output"  # arrays of these names, and ids, are no layers
NAMES = "file_names.txt"  # beside a folder's files: an id a line
FEATURES = "features"  # what a file is called that is of the layer that its folder is called after
WHOLE, BLOCK = 1_000_000_000, 1 << 20  # bytes of content that a digest is of, and that are read at once
_REAL = re.compile(r"bfloat16|float\d+|u?int\d+|[<>][fiu]\d+")  # of numpy, in words
_PART = re.compile(r"(.+)_(\d+)-(\d+)")  # of a layer: its name, the first image, and that behind the last


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
    if not path.is_dir():
        beside = path.with_name(NAMES)
        return [path] + [beside] * beside.is_file()
    files = [file for file in (*path.glob("*"), *path.glob("*/*")) if file.suffix in SUFFIXES or file.name == NAMES]
    return sorted(file for file in files if file.is_file())


def digest_of_features(path: Path) -> str:
    """SHA-256 of what a file or folder holds; of more than WHOLE bytes of names, sizes and times of change."""
    home = path if path.is_dir() else path.parent
    stats = [(file.relative_to(home).as_posix(), file.stat()) for file in parts_of(path)]
    return _digest(home, tuple((name, status.st_size, status.st_mtime_ns) for name, status in stats))


@lru_cache(maxsize=64)
def _digest(home: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    whole, digest = sum(size for _, size, _ in files) <= WHOLE, hashlib.sha256()
    for name, size, time in files:
        digest.update(repr((name, size, None if whole else time)).encode())
        if whole:
            with (home / name).open("rb") as content:
                while block := content.read(BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def features_of(arrays: Mapping[str, np.ndarray], called: str) -> FeatureFile:
    """The same of arrays in memory, which `called` names in messages. Raises UserError as `read_features` does."""
    places = {name: called if name == called else f"{called}, {in_line(name)}" for name in arrays}
    return _checked(Path(called), {name: mapped(places[name], array) for name, array in arrays.items()}, None)


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


def _of_folder(path: Path, *, within: bool = False) -> tuple[Arrays, tuple[str, ...] | None]:
    """The files of a folder and, unless it is one within another, of the folders in it, whose names come first."""
    arrays: Arrays = {}
    ids = None
    for file in sorted(path.iterdir()):
        found: Arrays = {}
        if file.suffix in SUFFIXES and file.is_file():
            found, own = _of_file(file)
            single = len(found) == 1 or file.suffix == ".npy"
            found, ids = {file.stem if single else name: saved for name, saved in found.items()}, own or ids
        elif file.name == NAMES:
            ids = _lines(file)
        elif file.is_dir() and not within:
            inner, own = _of_folder(file, within=True)
            found = {file.name if name == FEATURES else f"{file.name}.{name}": saved for name, saved in inner.items()}
            ids = ids or own
        for name, saved in found.items():
            if name in arrays:
                raise UserError(f"{path}: the layer {in_line(name)} is there twice")
            arrays[name] = saved
    if not arrays and not within:
        raise UserError(f"{path} holds no {KINDS}")
    return _without_parts(path, arrays), ids


def _without_parts(path: Path, arrays: Arrays) -> Arrays:
    """The arrays, those that are called NAME_0-100, NAME_100-250 and so on, of as many images, as one: NAME."""
    series: dict[str, list[tuple[int, int, str]]] = {}
    for name, saved in arrays.items():
        if (part := _PART.fullmatch(name)) and saved.shape and len(saved) == int(part[3]) - int(part[2]):
            series.setdefault(part[1], []).append((int(part[2]), int(part[3]), name))
    for name, parts in series.items():
        parts.sort()
        gap = next((before for before, after in pairwise(parts) if before[1] != after[0]), None)
        if gap or parts[0][0]:
            where = f"{in_line(gap[2])} ends at" if gap else "nothing comes before"
            raise UserError(f"{path}: parts of {in_line(name)} are missing: {where} {gap[1] if gap else parts[0][0]}")
        whole = joined(f"{path}, {in_line(name)}", [arrays[part] for *_, part in parts])
        if name in arrays:
            raise UserError(f"{path}: the layer {in_line(name)} is there twice")
        arrays = {one: saved for one, saved in arrays.items() if one not in {part for *_, part in parts}}
        arrays[name] = whole
    return arrays


def _of_file(path: Path) -> tuple[Arrays, tuple[str, ...] | None]:
    if path.suffix not in READERS:
        raise UserError(f"{path} is no {KINDS}")
    try:
        arrays, ids = READERS[path.suffix](path)
    except (UserError, OSError):
        raise
    except MemoryError:  # of a .pt; or of a head that promises too much
        raise UserError(f"{path} is damaged, or takes more memory than there is") from None
    except Exception as error:  # a damaged file makes numpy, zipfile and json raise anything, RecursionError too
        raise UserError(f"{path} is damaged, or no {path.suffix}: {in_line(first_line(error))}") from None
    beside = path.with_name(NAMES)
    return arrays, ids or (_lines(beside) if beside.is_file() else None)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line)
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text, an id a line") from None


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
