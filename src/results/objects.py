"""What pickles of results may ask for by name, and the checked functions that answer in place of the real ones."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.pickles import ENCODINGS, MAX_KEY
from src.core.tensor_files import parse_tensors

SCALARS = (str, int, float, complex, bytes, type(None), np.generic)  # bool is an int


@dataclass(frozen=True, slots=True)
class Name:
    """A name of a function or class, `module.name`: text that does nothing."""

    text: str


@dataclass(slots=True)
class _Dtype:
    """The kind of a numpy array's elements; a later instruction may give their byte order."""

    kind: np.dtype


@dataclass(slots=True)
class Blocks:
    """What a pandas frame (two axes) or series (one) holds: its labels, and (values, positions) of columns."""

    blocks: list[tuple[np.ndarray, Any]]
    axes: list[pd.Index]

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values, _ in self.blocks)


@dataclass(slots=True)
class _Strings:
    """The strings of a pandas string array."""

    values: np.ndarray | None = None


def size_of(value: Any) -> int:
    """What it takes to copy a value, or to walk through it."""
    if isinstance(value, (np.ndarray, Blocks)):
        return 1 + value.nbytes
    return 1 + len(value) if isinstance(value, (bytes, bytearray, str, list, tuple, dict)) else 1


def hashable(values: list[Any]) -> list[Any]:
    """Values that hash in no time: of tuples, only short ones of scalars do."""
    for value in values:
        parts = value if type(value) is tuple and len(value) <= 16 else [value]
        if not all(isinstance(part, SCALARS) for part in parts):
            raise UserError(f"a key is a {type(value).__name__}")
        if any(isinstance(part, int) and not -MAX_KEY < part < MAX_KEY for part in parts):
            raise UserError("a key is a number of more than 53 bits")
    return values


def _shape(numbers: Any) -> tuple[int, ...]:
    """Sizes of a few dimensions; a range that never ends is none."""
    if type(numbers) is not tuple or len(numbers) > 32 or not all(type(n) is int and n >= 0 for n in numbers):
        raise UserError("an array or tensor has no shape")
    return numbers


def _list(values: Any) -> list[Any]:
    if type(values) is not list:
        raise UserError(f"it makes a set of a {type(values).__name__}")
    return hashable(values)


def _bytearray(value: Any = b"", encoding: str = "latin-1") -> bytearray:
    if isinstance(value, bytes):
        return bytearray(value)
    if not isinstance(value, str):  # a number is how many, whatever the file's size
        raise UserError(f"it makes bytes of a {type(value).__name__}")
    if encoding not in ENCODINGS:  # others take time by the square of the text
        raise UserError("it holds bytes in an encoding other than latin-1, ascii and utf-8")
    return bytearray(value.encode(encoding))


def _dtype(code: Any, *_: Any) -> _Dtype:
    if not re.fullmatch(r"[?biufcSU]\d{0,4}|O8?", code, re.ASCII):
        raise UserError(f"it holds an array of the kind {code!r}")
    return _Dtype(np.dtype(code))


def _order_bytes(dtype: _Dtype, state: Any) -> None:
    dtype.kind = dtype.kind.newbyteorder(state[1])


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind != Name("numpy.ndarray") or shape != (0,):
        raise UserError("it asks for a foreign kind of array")
    return np.empty(0, np.int8)


def _fill_array(array: np.ndarray, state: Any) -> None:
    _, shape, dtype, fortran, data = state
    if array.shape != (0,):
        raise UserError("an array is filled twice")
    _check_size(shape, dtype.kind, data)
    array.__setstate__((1, shape, dtype.kind, bool(fortran), data))  # pyright: ignore[reportArgumentType]


def _check_size(shape: tuple[int, ...], kind: np.dtype, data: Any) -> None:
    count = math.prod(_shape(shape))
    if kind.hasobject:
        fits = type(data) is list and len(data) == count and all(isinstance(value, SCALARS) for value in data)
    else:
        fits = isinstance(data, (bytes, bytearray)) and len(data) == count * kind.itemsize
    if not fits:
        raise UserError(f"an array of the shape {shape} is given other values than that")


def _array_of_buffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    _check_size(shape, dtype.kind, data)
    return np.frombuffer(data, dtype.kind).reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    _check_size((), dtype.kind, data)
    return np.frombuffer(data, dtype.kind)[0]


def _storage(content: bytes) -> Any:
    """The numbers of a tensor; torch's own function of this name would run what it reads."""
    storage = parse_tensors(content)
    if not isinstance(storage, torch.TypedStorage):
        raise UserError("a tensor has no numbers")
    return storage


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    flat = torch.empty(0, dtype=storage.dtype).set_(storage)
    if math.prod(_shape(size)) > len(flat):
        raise UserError(f"a tensor of the size {size} is given {len(flat)} values")
    return flat.as_strided(size, _shape(stride), *_shape((offset,)))


def _strings(kind: Any, *_: Any) -> _Strings:
    if not isinstance(kind, Name) or not kind.text.endswith(".StringArray"):
        raise UserError("it asks for a foreign kind of pandas array")
    return _Strings()


def _fill_strings(strings: _Strings, state: Any) -> None:
    strings.values = next(part for part in state if isinstance(part, np.ndarray))


def _values(values: Any) -> np.ndarray:
    values = values.values if isinstance(values, _Strings) else values
    if not isinstance(values, np.ndarray):
        raise UserError("a frame holds something else than arrays")
    return values


def _label(name: Any) -> Any:
    return hashable([name])[0]


def _index(kind: Name, parts: dict[str, Any]) -> pd.Index:
    name = _label(parts["name"])
    if kind.text.endswith(".RangeIndex"):
        return pd.RangeIndex(parts["start"], parts["stop"], parts["step"], name=name)
    return pd.Index(_values(parts["data"]), name=name)


def _block(values: Any, places: Any, dimensions: Any) -> tuple[np.ndarray, Any]:
    """Values (columns, rows), and which columns they are."""
    return np.atleast_2d(_values(values)), places


def _blocks(blocks: Any = (), axes: Any = ()) -> Blocks:
    if not all(isinstance(axis, pd.Index) for axis in axes):
        raise UserError("a frame has other labels than an index")
    return Blocks([(_values(values), places) for values, places in blocks], list(axes))


def _fill_blocks(blocks: Blocks, state: Any) -> None:
    parts = state[3]["0.14.1"]
    filled = _blocks([_block(block["values"], block["mgr_locs"], None) for block in parts["blocks"]], parts["axes"])
    blocks.blocks, blocks.axes = filled.blocks, filled.axes


def _fill_frame(frame: pd.DataFrame, state: Any) -> None:
    labels, index = state["_mgr"].axes
    columns = {}
    for values, places in state["_mgr"].blocks:
        places = range(*places.indices(len(labels))) if isinstance(places, slice) else _values(places).tolist()
        columns.update(zip(places, values, strict=True))
    frame.__init__({place: columns[place] for place in range(len(labels))}, index=index)
    frame.columns = labels


def _fill_series(series: pd.Series, state: Any) -> None:
    (index,), ((values, _),) = state["_mgr"].axes, state["_mgr"].blocks
    series.__init__(values[0], index=index, name=_label(state.get("_name", state.get("name"))))


# what results call by name, and what answers
CALLS: dict[str, Callable] = {
    "builtins.set": lambda values: set(_list(values)),
    "builtins.frozenset": lambda values: frozenset(_list(values)),
    "builtins.complex": complex,
    "builtins.bytearray": _bytearray,
    "builtins.slice": slice,
    "collections.OrderedDict": lambda: OrderedDict(),
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array_of_buffer,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.storage._load_from_bytes": _storage,
    "pandas._libs.internals._unpickle_block": _block,
    "pandas.core.internals.blocks.new_block": _block,
    "pandas.core.internals.managers.BlockManager": _blocks,
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": _strings,
    "pandas.core.indexes.base._new_Index": _index,
    "pandas.StringDtype": lambda *_: None,
    "pandas.core.arrays.string_.StringDtype": lambda *_: None,
}
# the classes of which they make empty objects
NEW: dict[str, Callable] = {
    "pandas.DataFrame": lambda: pd.DataFrame(),
    "pandas.core.frame.DataFrame": lambda: pd.DataFrame(),
    "pandas.Series": lambda: pd.Series(),
    "pandas.core.series.Series": lambda: pd.Series(),
    "pandas.core.internals.managers.BlockManager": lambda: Blocks([], []),
    "pandas.core.internals.managers.SingleBlockManager": lambda: Blocks([], []),
}
# and those that they only mention
NAMES = {*CALLS, *NEW, "numpy.ndarray", "pandas.arrays.StringArray", "pandas.core.arrays.string_.StringArray"}
NAMES |= {"pandas.Index", "pandas.core.indexes.base.Index"}
NAMES |= {"pandas.RangeIndex", "pandas.core.indexes.range.RangeIndex"}
NAMES |= {f"pandas.core.indexes.numeric.{kind}64Index" for kind in ("Int", "UInt", "Float")}
# how an object that is there already takes on its state
STATES: dict[type, Callable[[Any, Any], None]] = {
    _Dtype: _order_bytes,
    np.ndarray: _fill_array,
    _Strings: _fill_strings,
    Blocks: _fill_blocks,
    pd.DataFrame: _fill_frame,
    pd.Series: _fill_series,
    OrderedDict: lambda mapping, state: None,  # torch's notes on a state dict
}
