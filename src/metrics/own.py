"""Metrics of the user's own: FILE.py:FUNCTION, two matrices in, a number out, in the table beside the others.

A name is put into the table where the user wrote it: on a command line, in a study's TOML, in a call from Python. What
a file says is looked up there and nowhere else, so that no result, plan or state makes anything run.
"""

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from src.core.errors import UserError, first_line
from src.core.python_files import digest_of, function_of
from src.metrics.registry import MEASURES, METRICS, NOTHING, Metric

BETTER = ("higher", "lower")
_OWN = re.compile(r"(.+\.py:\w+)(?:\?better=(\w+))?", re.DOTALL)
Function = Callable[[np.ndarray, np.ndarray], Any]


def is_own(name: str) -> bool:
    """Whether a name is of a metric of the user's, FILE.py:FUNCTION."""
    return ".py:" in name


def name_own(name: str) -> str:
    """Put a metric into the table that the user named, and return its name; nothing runs before `load_own`.

    Raises UserError for what is no FILE.py:FUNCTION, or FILE.py:FUNCTION?better=lower.
    """
    match = _OWN.fullmatch(name)
    if not match or (match[2] or BETTER[0]) not in BETTER:
        raise UserError(f"{name!r} is no FILE.py:FUNCTION, nor FILE.py:FUNCTION?better=lower")
    if name not in METRICS:
        _put(name, lambda *sides: function_of(match[1])(*sides), better=match[2] or BETTER[0])
    return name


def load_own(names: Iterable[str]) -> dict[str, str]:
    """Run the files of those of some metrics that are the user's; by name the SHA-256 of its file.

    Raises FileNotFoundError or UserError, with one line, for a file or function that is not there or fails, and for a
    name that nobody named.
    """
    digests = {}
    for name in filter(is_own, names):
        match = _OWN.fullmatch(name)
        if name not in METRICS or not match:
            raise UserError(f"nobody named the metric {name!r}, so its file does not run")
        digests[name] = digest_of(match[1])
        function_of(match[1])
    return digests


@contextlib.contextmanager
def in_table(methods: Sequence[str | Function]) -> Iterator[list[str]]:
    """The names of metrics of which some may be functions, which are in the table for as long as the block lasts.

    A function has the name that it was defined by; its attribute `better` may be "lower". Raises UserError where that
    is another metric's name.
    """
    names: list[str] = []
    own: list[str] = []
    try:
        for method in methods:
            if isinstance(method, str):
                names.append(name_own(method) if is_own(method) else method)
                continue
            name = getattr(method, "__name__", type(method).__name__)
            if not callable(method) or name in MEASURES:
                what = "is the name of a metric already" if name in MEASURES else "is no function"
                raise UserError(f"{name!r} {what}; give a function of two matrices, with a name of its own")
            own.append(name)
            names.append(name)
            _put(name, method, better=getattr(method, "better", BETTER[0]))
        load_own(names)
        yield names
    finally:
        for name in own:
            del METRICS[name], MEASURES[name]


def _put(name: str, function: Function, *, better: str) -> None:
    """A line of the table: of its range and of what leaves it alone nothing is known."""
    METRICS[name] = MEASURES[name] = Metric(
        name,
        "your own",
        "matrices",
        lambda sides: _value(function, *sides),
        front=NOTHING,
        end=NOTHING,
        range=(-math.inf, math.inf),
        identical=lambda rows: _value(function, rows, rows),
        higher_is_better=better == BETTER[0],
    )


def _value(function: Function, x: Tensor, y: Tensor) -> float:
    """What a function makes of rows x: (n, dx) and y: (n, dy), float64 arrays of its own; UserError for no number."""
    sides = (side.detach().cpu().double().numpy().copy() for side in (x, y))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            found = function(*sides)
    except (Exception, SystemExit) as error:  # the user's own code
        raise UserError(f"failed: {type(error).__name__}: {first_line(error)}") from None
    try:
        value = float(found)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"gave a {type(found).__name__}, not a number") from None
    if not math.isfinite(value):
        raise UserError(f"gave {value}, not a number")
    return value
