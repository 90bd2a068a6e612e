"""What a file says of itself is checked before it is used: a kind a field, tables of them a kind of file.

A table is a dict of {key: kind or table}; keys that it does not have pass unread. Fields may be absent unless they are
`required`: who needs one asks for it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.core.errors import UserError
from src.core.files import naming
from src.core.text import has_controls, in_line

MAX_TEXT = 20_000
Table = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: in words, and whether a value is one."""

    words: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Each:
    """A dict whose keys may be anything of a kind, with values of one kind or table."""

    of: Any
    keys: type = str


@dataclass(frozen=True, slots=True)
class Several:
    """A list or tuple of one kind or table, of so many at most."""

    of: Any
    most: int = 100_000


@dataclass(frozen=True, slots=True)
class Maybe:
    """None, or a kind or table."""

    of: Any


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return not np.iscomplexobj(value) and (not isinstance(value, int) or abs(value) < 2**63)


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: _number(value) and isinstance(value, int | np.integer) and low <= int(value) <= high


def _within(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: _number(value) and bool(accepts(float(value)))


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and not has_controls(value)


def _array(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
        return plain and not value.is_quantized and not value.is_complex()
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


TEXT = Kind("text without control characters", _text)
LINES = Kind("text", lambda value: isinstance(value, str) and len(value) < 1_000_000)
DIGEST = Kind("a SHA-256", lambda value: _text(value) and len(value) in (0, 64) and "/" not in value)
SCALAR = Kind("text, a number, true or false", lambda value: isinstance(value, bool) or _text(value) or _number(value))
FLAG = Kind("true or false", lambda value: isinstance(value, bool | np.bool_))
NUMBER = Kind("a number", _number)
FINITE = Kind("a finite number", _within(math.isfinite))
NATURAL = Kind("a whole number, 0 or more", _whole(0, 2**63 - 1))
POSITIVE = Kind("a whole number above 0", _whole(1, 2**63 - 1))
SEED = Kind("a whole number from 0 to 2^63 - 2", _whole(0, 2**63 - 2))
SIZE = Kind("a whole number from 1 to 4096", _whole(1, 4096))
FRACTION = Kind("a number above 0 and at most 1", _within(lambda value: 0 < value <= 1))
SHARE = Kind("a number from 0 to 1", _within(lambda value: 0 <= value <= 1))
SCORE = Kind("a number from 0 to 1", _within(lambda value: math.isnan(value) or 0 <= value <= 1))
ARRAY = Kind("an array of numbers", _array)
ANY = Kind("anything", lambda value: True)
PREPROCESSING = {"size": SIZE, "mean": Several(FINITE, 4096), "std": Several(FINITE, 4096), "interpolation": TEXT}
# what is said of a network, in weight files and in results
NETWORK = {
    "model": Maybe(TEXT),
    "dataset": Maybe(TEXT),
    "path": Maybe(TEXT),
    "preprocessing": Maybe(PREPROCESSING),
    "init_seed": Maybe(SEED),
    "gradient_seed": Maybe(SEED),
    "iteration": Maybe(NATURAL),
    "train_fraction": Maybe(FRACTION),
    "shuffle_labels": Maybe(SHARE),
    "adversarial": Maybe(SHARE),
    "sha256": Maybe(DIGEST),
}


def check(value: Any, wanted: Any, *, required: Iterable[str] = (), place: str = "") -> None:
    """Raise UserError, with the place and the value, for what is not as a kind or table wants it."""
    if isinstance(wanted, Maybe):
        if value is not None:
            check(value, wanted.of, place=place)
    elif isinstance(wanted, Kind):
        if not wanted.accepts(value):
            raise UserError(f"{place} is {short(value)}, not {wanted.words}")
    elif isinstance(wanted, Several):
        if not isinstance(value, list | tuple):
            raise UserError(f"{place} is {short(value)}, not a list")
        if len(value) > wanted.most:
            raise UserError(f"{place} is a {type(value).__name__} of {len(value)}, and {wanted.most} are the most")
        for number, part in enumerate(value):
            check(part, wanted.of, place=f"{place}[{number}]")
    elif not isinstance(value, dict):
        raise UserError(f"{place or 'it'} is {short(value)}, not a table")
    elif isinstance(wanted, Each):
        for key, part in value.items():
            check_key(key, wanted.keys, place)
            check(part, wanted.of, place=_joined(place, key))
    else:
        for key in required:
            if key not in value:
                raise UserError(f"{_joined(place, key)} is missing")
        for key, kind in wanted.items():
            if key in value:
                check(value[key], kind, place=_joined(place, key))


def check_key(key: Any, kind: type, place: str = "") -> None:
    """Raise UserError for a key that is none of a kind, or holds control characters."""
    if not isinstance(key, kind) or isinstance(key, bool) or (isinstance(key, str) and not _text(key)):
        raise UserError(f"{place or 'it'} has the key {short(key)}")


def _joined(place: str, key: Any) -> str:
    return f"{place}.{in_line(str(key), 60)}" if place else in_line(str(key), 60)


def short(value: Any) -> str:
    """A value for a message, if it is short and of a plain kind; else its kind."""
    if isinstance(value, str | bytes):
        return in_line(repr(value[:60]))
    if value is None or isinstance(value, bool | float | np.generic):
        return in_line(repr(value), 60)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a number of many digits"
    return f"a {type(value).__name__}"


def read_json(path: Path, most: int) -> Any:
    """The value of a JSON file of so many bytes at most; raises OSError, or UserError for what is none."""
    with naming(path), path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} is larger than such a file is")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is no JSON") from None
