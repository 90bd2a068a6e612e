"""What an option is: data, from which parsers, the check of study files, help and tables are made."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from src.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Option:
    """A command line's option for a field of a spec. Defaults are the spec's.

    kind: what it takes, a key of NUMBERS, or "flag" (nothing), "name" (one of choices), "names" (some of them, with
    commas), "naturals" (numbers with commas, as one value), "text" or "rank" (a positive number, or `full`). many:
    whether it takes several values for as many stitches, set apart by `separator`. default: its default in words, where
    it is None. check: raises UserError for a text that is none of its values.
    """

    field: str
    flags: tuple[str, ...]
    group: str
    help: str
    kind: str = "flag"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    default: str = ""
    separator: str = ","
    check: Callable[[str], Any] | None = None


def naturals(value: Any) -> int | str:
    """A whole number, 0 or more, or several with commas as one text; raises UserError for anything else."""
    number = NUMBERS["natural"]
    if not isinstance(value, str):
        return number.check(value)
    parts = [number.read(part.strip()) for part in value.split(",")]
    return parts[0] if len(parts) == 1 else ",".join(map(str, parts))


def names_among(choices: tuple[str, ...], value: Any) -> str:
    """Some of the choices, with commas, in one text; raises UserError for another one."""
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
    for name in names:
        if name not in choices:
            raise UserError(f"{name!r} is none of {', '.join(choices)}")
    return ",".join(names)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # of a whole number of more than 300 digits
        return False


@dataclass(frozen=True, slots=True)
class Number:
    """A kind of finite number: whole or not, what it is in words, and which ones it takes."""

    kind: type[int] | type[float]
    words: str
    accepts: Callable[[Any], bool] = lambda value: True

    def check(self, value: Any) -> Any:
        """The value of a document, as this kind; raises UserError for any other."""
        kinds = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not _is_finite(value):
            raise UserError(f"{value!r} is not {self.words}")
        return self._accepted(self.kind(value), value)

    def read(self, text: str) -> Any:
        """The number that a text on a command line says; raises UserError for any other."""
        try:
            value = self.kind(text)
        except ValueError:
            raise UserError(f"{text!r} is not {self.words}") from None
        return self._accepted(value, text)

    def _accepted(self, value: Any, said: Any) -> Any:
        if not _is_finite(value) or not self.accepts(value):
            raise UserError(f"{said!r} is not {self.words}")
        return value


NUMBERS = {
    "positive": Number(int, "a whole number above 0", lambda value: value > 0),
    "natural": Number(int, "a whole number, 0 or more", lambda value: value >= 0),
    # what torch's generators take, with room for a second one
    "seed": Number(int, "a whole number from 0 to 2^63 - 2", lambda value: 0 <= value < 2**63 - 1),
    "positive_float": Number(float, "a number above 0", lambda value: value > 0),
    "natural_float": Number(float, "a number, 0 or more", lambda value: value >= 0),
    "finite_float": Number(float, "a finite number"),
    "fraction": Number(float, "a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "share": Number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1),
}


def one_of(*choices: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
            raise UserError(f"{value!r} is none of {', '.join(map(str, choices))}")
        return value

    return check


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{value!r} is no text")
    return value


def rank(value: Any) -> int | None:
    return None if value == "full" else NUMBERS["positive"].check(value)


FLAG = one_of(True, False)
# what each kind of an option takes in a document
CHECKS: dict[str, Callable[[Any], Any]] = {
    **{kind: number.check for kind, number in NUMBERS.items()},
    "rank": rank,
    "flag": FLAG,
    "text": text,
    "naturals": naturals,
}


def _accepted(check: Callable[[str], Any], value: Any) -> str:
    check(text(value))
    return value


def check_of(option: Option) -> Callable[[Any], Any]:
    """What an option takes in a document, or from Python: value -> value; it raises UserError for any other."""
    if option.kind == "names":
        return partial(names_among, option.choices)
    if option.check:
        return partial(_accepted, option.check)
    return one_of(*option.choices) if option.kind == "name" else CHECKS[option.kind]
