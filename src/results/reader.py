"""Opens pickles without running them.

A pickle is a program that may call any function by name. Here its instructions work on values alone: a name stands
on the stack as an inert `Name`, and the few names that results contain call a function of this file, which checks
what it is given. Memory and time grow with the size of the file, whatever sizes it claims.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from src.results.objects import CALLS, NAMES, NEW, SCALARS, STATES, Name, hashable, size_of

MAX_DEPTH = 100  # of containers within containers
MAX_VALUES = 1_000_000  # or the number of bytes of the file, where that is more
MAX_BITS = 1024  # of whole numbers
PRICE, PRICE_OF_FRAME = 100, 5000  # bytes that an object takes beside its values
_PANDAS = (pd.DataFrame, pd.Series, pd.Index)
_LEAVES = (*SCALARS, bytearray, set, frozenset, np.ndarray, Tensor, *_PANDAS)


def parse(content: bytes) -> Any:
    """The value that a pickle of built-in containers, numpy arrays, pandas frames and torch tensors holds.

    Raises ValueError, or another error of a malformed program, for anything else.
    """
    value = _Program(content).run()
    limit = max(MAX_VALUES, len(content))
    _check(value, limit, [limit])
    return value


def _instructions(content: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(content):
            yield opcode, argument
    except Exception:  # what it says is about pickles, and means nothing to those who have a result
        raise ValueError("it is cut, or no pickle") from None


class _Program:
    """The instructions of a pickle at work on a stack; `pickletools` reads them and never runs them."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.credit = 10 * max(MAX_VALUES, len(content))

    def run(self) -> Any:
        for opcode, argument in _instructions(self.content):
            if opcode.name == "STOP":
                break
            if opcode.name in _LITERALS:
                if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                    raise ValueError(f"it holds a number of {argument.bit_length()} bits")
                self.stack.append(argument)
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise ValueError(f"it uses {opcode.name}, which no result needs")
        (value,) = self.stack
        return value

    def take(self, count: int) -> list[Any]:
        """The topmost values of the stack, off the stack."""
        if not 0 <= count <= len(self.stack):
            raise ValueError("it takes more than there is")
        split = len(self.stack) - count
        taken = self.stack[split:]
        del self.stack[split:]
        return taken

    def take_marked(self) -> list[Any]:
        return self.take(len(self.stack) - self.marks.pop())

    def fill(self, values: list[Any]) -> None:
        """Put values into the list, set or dict on top of the stack."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is set:
            target.update(hashable(values))
        elif type(target) in (dict, OrderedDict):
            target.update(zip(hashable(values[::2]), values[1::2], strict=True))
        else:
            raise ValueError(f"it fills a {type(target).__name__}")

    def memoize(self, position: int | None) -> None:
        self.memo[len(self.memo) if position is None else position] = self.stack[-1]

    def name(self, module: str, name: str) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("it names a function with something else than text")
        # numpy has moved what these names stand for
        text = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if text not in NAMES:
            raise ValueError(f"it asks for {module}.{name}, which no result contains")
        self.stack.append(Name(text))

    def call(self, functions: dict[str, Callable], price: int) -> None:
        name, arguments = self.take(2)
        if not isinstance(name, Name) or name.text not in functions or not isinstance(arguments, tuple):
            raise ValueError(f"it calls {name.text if isinstance(name, Name) else type(name).__name__}")
        self.pay(price, arguments)
        self.stack.append(functions[name.text](*arguments))

    def build(self) -> None:
        (state,) = self.take(1)
        target = self.stack[-1]
        if type(target) not in STATES or not isinstance(state, (tuple, dict)):
            raise ValueError(f"it changes a {type(target).__name__}")
        self.pay(PRICE, state.values() if isinstance(state, dict) else state)
        STATES[type(target)](target, state)

    def pay(self, price: int, arguments: Iterable[Any]) -> None:
        """Bound what copies of one value, made again and again, can amount to."""
        self.credit -= price + sum(map(size_of, arguments))
        if self.credit < 0:
            raise ValueError("it makes more than its size allows")


_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_LITERALS |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_INSTRUCTIONS: dict[str, Callable[[_Program, Any], Any]] = {
    "PROTO": lambda program, _: None,
    "FRAME": lambda program, _: None,
    "NONE": lambda program, _: program.stack.append(None),
    "NEWTRUE": lambda program, _: program.stack.append(True),
    "NEWFALSE": lambda program, _: program.stack.append(False),
    "MARK": lambda program, _: program.marks.append(len(program.stack)),
    "POP": lambda program, _: program.take(1),
    "POP_MARK": lambda program, _: program.take_marked(),
    "DUP": lambda program, _: program.stack.append(program.stack[-1]),
    "EMPTY_LIST": lambda program, _: program.stack.append([]),
    "EMPTY_TUPLE": lambda program, _: program.stack.append(()),
    "EMPTY_DICT": lambda program, _: program.stack.append({}),
    "EMPTY_SET": lambda program, _: program.stack.append(set()),
    "LIST": lambda program, _: program.stack.append(program.take_marked()),
    "TUPLE": lambda program, _: program.stack.append(tuple(program.take_marked())),
    "TUPLE1": lambda program, _: program.stack.append(tuple(program.take(1))),
    "TUPLE2": lambda program, _: program.stack.append(tuple(program.take(2))),
    "TUPLE3": lambda program, _: program.stack.append(tuple(program.take(3))),
    "DICT": lambda program, _: program.stack.append(_dict(program.take_marked())),
    "FROZENSET": lambda program, _: program.stack.append(frozenset(hashable(program.take_marked()))),
    "APPEND": lambda program, _: program.fill(program.take(1)),
    "APPENDS": lambda program, _: program.fill(program.take_marked()),
    "SETITEM": lambda program, _: program.fill(program.take(2)),
    "SETITEMS": lambda program, _: program.fill(program.take_marked()),
    "ADDITEMS": lambda program, _: program.fill(program.take_marked()),
    "MEMOIZE": lambda program, _: program.memoize(None),
    "GLOBAL": lambda program, argument: program.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda program, _: program.name(*program.take(2)),
    "REDUCE": lambda program, _: program.call(CALLS, PRICE),
    "NEWOBJ": lambda program, _: program.call(NEW, PRICE_OF_FRAME),
    "BUILD": lambda program, _: program.build(),
}
for _size in ("", "BIN", "LONG_BIN"):
    _INSTRUCTIONS[f"{_size}PUT"] = _Program.memoize
    _INSTRUCTIONS[f"{_size}GET"] = lambda program, position: program.stack.append(program.memo[position])


def _dict(values: list[Any]) -> dict:
    return dict(zip(hashable(values[::2]), values[1::2], strict=True))


def _check(value: Any, limit: int, budget: list[int], depth: int = 0) -> None:
    """Refuse what is no value, or more values than can be walked through; `budget` counts down."""
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise ValueError("it nests too deep or too wide for a result")
    if type(value) in (dict, OrderedDict):
        parts = value.values()
    elif type(value) in (list, tuple):
        parts = value
    elif isinstance(value, _LEAVES) and (not isinstance(value, _PANDAS) or len(value) <= limit):
        parts = ()
    else:
        raise ValueError(f"it holds a {value.text if isinstance(value, Name) else type(value).__name__}")
    for part in parts:
        _check(part, limit, budget, depth + 1)
