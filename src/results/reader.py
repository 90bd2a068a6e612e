"""Opens pickles without running them.

A pickle is a program that may call any function by name. Python's own interpreter of such programs runs here with names
as inert `Name`s, and the few that results contain call a function of `objects`, which checks what it is given. Memory
and time grow with the size of the file, whatever sizes it claims.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partialmethod
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from src.core.errors import UserError
from src.core.pickles import MAX_DEPTH, MAX_VALUES, OPCODES, Program
from src.results.objects import CALLS, NAMES, NEW, SCALARS, STATES, Name, hashable, size_of

PRICE, PRICE_OF_FRAME = 100, 5000  # bytes that an object takes beside its values
_PANDAS = (pd.DataFrame, pd.Series, pd.Index)
_LEAVES = (*SCALARS, bytearray, set, frozenset, np.ndarray, Tensor, *_PANDAS)


def parse(content: bytes) -> Any:
    """The value that a pickle of built-in containers, numpy arrays, pandas frames and torch tensors holds.

    Raises UserError, or another error of a malformed program, for anything else.
    """
    Program(OPCODES, len(content)).check(content)  # before any of it makes anything
    limit = max(MAX_VALUES, len(content))
    value = _Unpickler(content, credit=10 * limit).load()
    _check(value, limit, [limit])
    return value


class _Unpickler(pickle._Unpickler):
    """Python's unpickler in Python; the one in C cannot be kept from hashing, filling and copying what is hostile."""

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes, *, credit: int) -> None:
        super().__init__(io.BytesIO(content))
        self.credit = credit

    def find_class(self, module: str, name: str) -> Name:
        text = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # numpy has moved what these names stand for
        if text not in NAMES:
            raise UserError(f"it asks for {module}.{name}, which no result contains")
        return Name(text)

    def call(self, functions: dict[str, Callable], price: int) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or name.text not in functions or not isinstance(arguments, tuple):
            raise UserError(f"it calls {name.text if isinstance(name, Name) else type(name).__name__}")
        self.pay(price, arguments)
        self.append(functions[name.text](*arguments))

    load_reduce = partialmethod(call, CALLS, PRICE)
    load_newobj = partialmethod(call, NEW, PRICE_OF_FRAME)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) not in STATES or not isinstance(state, (tuple, dict)):
            raise UserError(f"it changes a {type(target).__name__}")
        self.pay(PRICE, state.values() if isinstance(state, dict) else state)
        STATES[type(target)](target, state)

    def pay(self, price: int, arguments: Iterable[Any]) -> None:
        """Bound what copies of one value, made again and again, can amount to."""
        self.credit -= price + sum(map(size_of, arguments))
        if self.credit < 0:
            raise UserError("it makes more than its size allows")

    def load_append(self) -> None:
        self.fill([self.stack.pop()])

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill([key, value])

    def load_appends(self) -> None:
        self.fill(self.pop_mark())

    load_setitems = load_additems = load_appends

    def load_dict(self) -> None:
        values = self.pop_mark()
        self.append({})
        self.fill(values)

    def load_frozenset(self) -> None:
        values = self.pop_mark()  # first, for it changes what append means
        self.append(frozenset(hashable(values)))

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
            raise UserError(f"it fills a {type(target).__name__}")

    def load_stop(self) -> None:
        if len(self.stack) != 1 or self.metastack:
            raise UserError("it is damaged: it leaves values behind")
        super().load_stop()  # pyright: ignore[reportAttributeAccessIssue]


# of the instructions, those that we know; of these, our own way where there is one
_Unpickler.dispatch = {
    ord(opcode.code): getattr(_Unpickler, f"load_{opcode.name.lower()}", pickle._Unpickler.dispatch[ord(opcode.code)])
    for opcode in pickletools.opcodes
    if opcode.name in OPCODES
}


def _check(value: Any, limit: int, budget: list[int], depth: int = 0) -> None:
    """Refuse what is no value, or more values than can be walked through; `budget` counts down."""
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise UserError("it nests too deep or too wide for a result")
    if type(value) in (dict, OrderedDict):
        parts = value.values()
    elif type(value) in (list, tuple):
        parts = value
    elif isinstance(value, _LEAVES) and (not isinstance(value, _PANDAS) or len(value) <= limit):
        parts = ()
    else:
        raise UserError(f"it holds a {value.text if isinstance(value, Name) else type(value).__name__}")
    for part in parts:
        _check(part, limit, budget, depth + 1)
