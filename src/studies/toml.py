"""A TOML file as values, with the line on which each key stands."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.core.files import read_bytes
from src.core.text import visible

Place = tuple[str | int, ...]  # keys and positions, from the outside in
_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([\w-]+|\"[^\"]*\"|'[^']*')\s*=(.*)$")
_STRING = re.compile(r"\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\])*\"|'[^']*'|#.*")


class Document:
    """The values of a TOML file, and where they stand in it.

    Raises FileNotFoundError, or UserError as FILE:LINE: complaint for what is no TOML.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no study file {path}")
        self.path = path
        try:
            self.text = read_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}:1: no UTF-8 text") from None
        self.values = _parse(self.text, path)
        self._lines = _lines_of(self.text)

    def line(self, place: Place) -> int:
        """The line of a value, or of the nearest that holds it; 1 where nothing does."""
        for length in range(len(place), 0, -1):
            held = place[:length]
            # [stitch] stands for the only one of [[stitch]]
            for known in (held, tuple(part for part in held if isinstance(part, str))):
                if known in self._lines:
                    return self._lines[known]
        return 1

    def complaint(self, place: Place, text: str) -> UserError:
        """An error that names file, line and key."""
        key = ".".join(part for part in place if isinstance(part, str))
        said = visible(f"{key}: {text}" if key else text, keep="")
        return UserError(f"{self.path}:{self.line(place)}: {said}")


def _parse(text: str, path: Path) -> dict[str, Any]:
    reader = _reader()
    try:
        return reader.loads(text)
    except ValueError as error:  # of the reader, or of a number of thousands of digits
        reason = str(error)
        where = re.search(r" \(at line (\d+), column \d+\)", reason)
        line = int(where[1]) if where else len(text.splitlines()) or 1
        reason = reason.split(" (at ")[0]
        raise UserError(f"{path}:{line}: {reason[:1].lower()}{reason[1:]}") from None
    except RecursionError:
        raise UserError(f"{path}:1: nests too deep") from None


def _reader() -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install -r requirements-studies.txt") from None


def _lines_of(text: str) -> dict[Place, int]:
    """The line of each table, key and element of an array that begins on a line of its own."""
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    array: Place | None = None  # the key whose value goes on over several lines
    depth = element = 0
    for number, line in enumerate(text.splitlines(), start=1):
        plain = _STRING.sub(lambda match: "" if match[0].startswith("#") else "s" * len(match[0]), line)
        if array is not None:
            if depth == 1 and plain.strip().strip("],"):
                lines.setdefault((*array, element), number)
            element, depth = _after(plain, element, depth)
            array = array if depth > 0 else None
            continue
        if header := _HEADER.match(line):
            names = tuple(part.strip().strip("\"'") for part in header[2].split("."))
            table = names
            if header[1] == "[[":
                counts[names] = counts.get(names, -1) + 1
                table = (*names, counts[names])
                lines.setdefault(names, number)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            place = (*table, key[1].strip("\"'"))
            lines.setdefault(place, number)
            element, depth = _after(plain.partition("=")[2], 0, 0)
            array = place if depth > 0 else None
    return lines


def _after(plain: str, element: int, depth: int) -> tuple[int, int]:
    """How many elements of an array are past, and how deep in brackets one is, at the end of a line."""
    for letter in plain:
        depth += (letter in "[{") - (letter in "]}")
        element += letter == "," and depth == 1
    return element, depth
