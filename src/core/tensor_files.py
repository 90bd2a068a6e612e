"""Files of torch.save and safetensors: written whole, and read without running, or believing, anything in them."""

import importlib
import io
import json
import math
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from src.core.errors import UserError, first_line
from src.core.files import atomic_write
from src.core.pickles import KEPT, TENSOR_OPCODES, Program, Sham
from src.core.text import in_line

ZIP = b"PK\x03\x04"
SKIPPED = 100  # classes in one file
LEGACY_PICKLES = 5  # that stand before the numbers of a file that is no archive
FREE = 2**20  # values that a tensor may have whatever the size of its file, as one number repeated does
_STRIDED = re.compile(r"torch\._utils\._rebuild_(tensor(_v2|_v3)?|qtensor)")


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


def parse_tensors(content: bytes, *, skip: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU, without running anything in it; UserError if it is damaged.

    With `skip`, objects of other classes are `Skipped`; else they are refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols, which the error below refuses anyway
            _check_archive(content) if content.startswith(ZIP) else _check_legacy(content)
            return _load(content, skip)
    except UserError as error:
        raise UserError(in_line(str(error))) from None  # words of the file may be in it
    except Exception as error:  # a hostile or cut file can make torch raise anything at all
        raise UserError(in_line(_reason(error))) from None


def _load(content: bytes, skip: bool) -> Any:
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
        raise UserError(in_line(first_line(error))) from None


def _check_archive(content: bytes) -> None:
    """Look through a file of torch.save since 1.6: a zip archive of a pickle and of the numbers it speaks of."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = archive.infolist()
        folders = {part.filename.partition("/")[2].partition("/")[0] for part in parts}
        if "code" in folders or "archive_format" in folders:
            raise UserError("it is a program of TorchScript or torch.export; save its state_dict() instead")
        # torch unpacks, though it packs nothing: a small file could then be a large one
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise UserError("it is packed, which torch does not do")
        if sum(part.file_size for part in parts) > len(content):
            raise UserError("its parts are larger than the whole")
        if damaged := archive.testzip():
            raise UserError(f"its part {damaged} is not what was written")  # which torch does not look at
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))  # torch's own: there must not be two views of one file
    size_of = getattr(reader, "get_record_size", lambda name: len(reader.get_record(name)))  # which older torch lacks
    sizes: dict[str, int] = {}
    for name in reader.get_all_records():
        if name.startswith("data/"):
            sizes[name.removeprefix("data/")] = size_of(name)

    def stored(parts: Sham) -> None:
        key, numbers, width = _storage_of(parts, len(content))
        if sizes.get(key) != numbers * width:  # torch would read on behind them
            raise UserError(f"its numbers {key[:20]!r} are not as many as it says")

    Program(TENSOR_OPCODES, len(content), called=_check_call, stored=stored).check(reader.get_record("data.pkl"))


def _check_legacy(content: bytes) -> None:
    """Look through a file of an older torch.save: pickles, then the numbers."""
    stream = io.BytesIO(content)

    def stored(parts: Sham) -> None:
        _storage_of(parts, len(content))

    program = Program(TENSOR_OPCODES, len(content), called=_check_call, stored=stored)
    for number in range(LEGACY_PICKLES):
        try:
            program.check(stream)
        except UserError:
            if not number:
                raise UserError("it is cut, or torch did not write it") from None
            raise


def _storage_of(parts: Sham, length: int) -> tuple[str, int, int]:
    """The key of the numbers of a persistent id, how many there are, and how many bytes each takes."""
    kind, key, numbers = parts.parts[1], parts.parts[2], parts.parts[4]
    if parts.parts[0] != "storage" or not isinstance(kind, Sham) or kind.kind != "name" or not isinstance(key, str):
        raise UserError("the numbers of a tensor have no name")
    if not isinstance(numbers, int) or not 0 <= numbers <= length:
        raise UserError("a tensor has more numbers than its file has bytes")
    name = kind.parts[0].rpartition(".")[2]
    if name == "UntypedStorage":
        return key, numbers, 1
    dtype = torch.storage._storage_type_to_dtype_map().get(name)
    if dtype is None:
        raise UserError(f"its numbers are a {name[:40]}, which is no kind of numbers")
    return key, numbers, dtype.itemsize


def _check_call(name: str, arguments: Sham) -> None:
    """Refuse a tensor that reaches beyond its numbers, or is far larger than they are."""
    if not _STRIDED.fullmatch(name):
        return
    storage, offset, size, stride = (*arguments.parts, None, None, None, None)[:4]
    numbers = storage.parts[4] if isinstance(storage, Sham) and storage.kind == "storage" else None
    if numbers and (dtype := _dtype_of(arguments)):  # its numbers are counted in bytes
        numbers //= dtype.itemsize
    sizes, steps = _tuple(size), _tuple(stride)
    if numbers is None or sizes is None or steps is None or not isinstance(offset, int):
        raise UserError("a tensor has no numbers, or no shape")
    if len(sizes) != len(steps) or not all(isinstance(one, int) and one >= 0 for one in (offset, *sizes, *steps)):
        raise UserError("a tensor has no shape")
    last = offset + sum((many - 1) * step for many, step in zip(sizes, steps, strict=True))
    if 0 not in sizes and (last >= numbers or math.prod(sizes) > max(numbers, FREE)):
        raise UserError(f"a tensor of the size {tuple(sizes)} is given {numbers} values")


def _dtype_of(arguments: Sham) -> torch.dtype | None:
    """The kind of numbers of a tensor that says it itself, as those do for whose kind there is no storage."""
    for part in arguments.parts[4:]:
        if isinstance(part, Sham) and part.kind == "name":
            found = getattr(torch, part.parts[0].removeprefix("torch."), None)
            if isinstance(found, torch.dtype):
                return found
    return None


def _tuple(value: Any) -> tuple[Any, ...] | None:
    return value.parts if isinstance(value, Sham) and value.kind == "tuple" and value.size <= KEPT else None


def _reason(error: Exception) -> str:
    """Torch's reason in a line, without its advice to load the file unsafely."""
    if asked := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {asked[1]}, which no such file needs"
    if isinstance(error, RuntimeError) and str(error):
        return str(error).splitlines()[0].split(". ")[0]
    return "it is cut, or torch did not write it"
