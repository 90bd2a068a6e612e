"""Pickles are looked through before anything is made of them.

A pickle is a program. Its instructions run here on stand-ins that know how deep and how large a value would be and
whether it may be a key, so that nothing which nests deep, multiplies, hashes slowly or goes on for long is ever begun.
What a program may call is for its reader to say.
"""

import pickletools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from src.core.errors import UserError

MAX_DEPTH = 100  # of containers within containers
# What instructions may cost, of any file, and more of a long one: a microsecond each, or as many as DEAR has.
MAX_COST, BYTES_A_COST = 4_000_000, 20
MAX_VALUES = 1_000_000  # where shared ones count each time, or the number of bytes, where that is more
MAX_BITS = 1024  # of whole numbers
MAX_KEY = 2**53  # that is a whole number: some larger ones hash alike
MAX_NUMBERS = 100_000  # of them as keys
MAX_ODD, ODD_SIZE = 1000, 40  # keys that are neither text nor whole number, and their size: these can hash alike, too
ENCODINGS = ("latin1", "latin-1", "ascii", "utf-8", "utf8")
SETS = ("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset", "collections.Counter")
ENCODERS = ("_codecs.encode", "builtins.bytearray", "__builtin__.bytearray")
KEPT = 16  # parts of a tuple that are looked at
# what pickle writes; DUP, POP and INST no such file needs
_WORDS = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST
    EMPTY_TUPLE EMPTY_DICT EMPTY_SET LIST TUPLE TUPLE1 TUPLE2 TUPLE3 DICT FROZENSET APPEND APPENDS SETITEM SETITEMS
    ADDITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD"""
OPCODES = frozenset(_WORDS.split())
DEAR = 5
_MAKERS = frozenset(  # instructions that make containers, fill them, or call
    [
        "MARK",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "EMPTY_DICT",
        "EMPTY_SET",
        "LIST",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "DICT",
        "FROZENSET",
        "APPEND",
        "APPENDS",
        "SETITEM",
        "SETITEMS",
        "ADDITEMS",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "NEWOBJ",
        "BUILD",
        "BINPERSID",
    ]
)
TENSOR_OPCODES = OPCODES | {"BINPERSID", "BINSTRING", "SHORT_BINSTRING"}  # and those of torch


class Sham:
    """What stands for a value other than a text or a whole number: its kind, depth, size, and its first parts."""

    __slots__ = ("depth", "keys_only", "kind", "parts", "sealed", "size")

    def __init__(self, kind: str, parts: Sequence[Any] = ()) -> None:
        self.kind, self.depth, self.size = kind, 0, 1
        self.keys_only = True  # whether all parts may be keys
        self.sealed = False  # whether another one holds it, and knows its depth and size
        self.parts: tuple[Any, ...] = ()
        self.take(parts)

    def take(self, parts: Sequence[Any]) -> None:
        """Hold more parts; raises UserError where it would nest too deep."""
        if self.sealed:
            raise UserError("it fills what is part of something else already")
        if len(self.parts) < KEPT:
            self.parts += tuple(parts[: KEPT - len(self.parts)])
        for part in parts:
            if isinstance(part, Sham):
                self.keys_only, part.sealed = False, True
                self.depth, self.size = max(self.depth, part.depth + 1), self.size + part.size
            else:
                self.size += 1
                if isinstance(part, int) and not -MAX_KEY < part < MAX_KEY:
                    self.keys_only = False
        if self.depth > MAX_DEPTH:
            raise UserError("it nests too deep")


_LEAF = Sham("leaf")
_LEAF.sealed = True


class Program:
    """The instructions of a pickle on stand-ins.

    `words` are the instructions allowed; `length` is the file's, in bytes. `called` hears the name and the arguments of
    each call, `stored` what torch calls the persistent id of numbers; either may raise UserError.
    """

    def __init__(
        self,
        words: frozenset[str],
        length: int,
        *,
        called: Callable[[str, Sham], None] = lambda name, arguments: None,
        stored: Callable[[Sham], Any] = lambda parts: None,
    ) -> None:
        self.words, self.called, self.stored = words, called, stored
        self.credit = MAX_COST + length // BYTES_A_COST
        self.limit = max(MAX_VALUES, length)
        self.numbers = self.odd = 0

    def check(self, content: bytes | BinaryIO) -> None:
        """Look through a pickle, of a stream up to its end; raises UserError for what must not be begun."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for word, argument in _instructions(content):
            self.credit -= DEAR if word in _MAKERS else 1
            if word not in self.words:
                raise UserError(f"it uses {word}, which no such file needs")
            if self.credit < 0:
                raise UserError("it has more instructions than its size allows")
            try:
                _STEPS[word](self, argument)
            except (IndexError, KeyError, AttributeError):
                raise UserError("it is damaged: an instruction lacks what it works on") from None
        if len(self.stack) != 1 or self.marks:
            raise UserError("it is damaged: it leaves values behind")

    def value(self, value: Any) -> None:
        if isinstance(value, Sham) and value.size > self.limit:
            raise UserError("it nests too deep or too wide")
        self.stack.append(value)

    def number(self, argument: Any) -> None:
        if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
            raise UserError(f"it holds a number of {argument.bit_length()} bits")
        self.stack.append(_LEAF if isinstance(argument, bool) else argument)

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        values, self.stack[start:] = self.stack[start:], []
        return values

    def taken(self, count: int) -> list[Any]:
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise IndexError
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def fill(self, values: list[Any]) -> None:
        """Put values into the list, set or dict on top of the stack."""
        target = self.stack[-1]
        if target.kind not in ("list", "dict", "set", "object"):
            raise UserError(f"it fills a {target.kind}")
        if target.kind == "set":
            self.keys(values)
        elif target.kind != "list":
            if len(values) % 2:
                raise UserError("it is damaged: a key lacks its value")
            self.keys(values[::2])
        target.take(values)
        if target.size > self.limit:
            raise UserError("it nests too deep or too wide")

    def keys(self, values: list[Any]) -> None:
        """Refuse what may take long to hash, or to tell apart."""
        for value in values:
            if isinstance(value, int):
                self.numbers += 1
                if not -MAX_KEY < value < MAX_KEY:
                    raise UserError("a key is a number of more than 53 bits")
            elif not isinstance(value, str):
                self.odd += 1
                if value.size > ODD_SIZE:
                    raise UserError(f"a key is a {value.kind}")
        if self.numbers > MAX_NUMBERS or self.odd > MAX_ODD:
            raise UserError("too many of its keys are no text")

    def call(self, _: Any) -> None:
        name, arguments = self.taken(2)
        if not isinstance(name, Sham) or name.kind != "name" or not isinstance(arguments, Sham):
            raise UserError("it calls what is no function")
        text = name.parts[0]
        if text in SETS and arguments.parts:
            if not isinstance(values := arguments.parts[0], Sham) or values.kind not in ("list", "tuple"):
                raise UserError("it makes a set of what is no list")
            if values.size > (MAX_NUMBERS if values.keys_only else MAX_ODD):
                raise UserError("too many of its keys are no text")
        if text in ENCODERS and arguments.parts[1:] and arguments.parts[1] not in ENCODINGS:
            raise UserError("it holds bytes in an encoding other than latin-1, ascii and utf-8")
        self.called(text, arguments)
        made = Sham("object", [arguments])
        made.parts = (text, arguments)
        self.value(made)

    def build(self, _: Any) -> None:
        (state,) = self.taken(1)
        if (target := self.stack[-1]).kind != "object":
            raise UserError(f"it changes a {target.kind}")
        target.take([state])

    def name(self, text: str) -> None:
        made = Sham("name")
        made.parts = (text,)
        self.stack.append(made)

    def stack_global(self, _: Any) -> None:
        module, name = self.taken(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise UserError("it asks for what has no name")
        self.name(f"{module}.{name}")

    def dictionary(self, _: Any) -> None:
        values = self.marked()
        self.value(Sham("dict"))
        self.fill(values)

    def frozenset(self, _: Any) -> None:
        values = self.marked()
        self.keys(values)
        self.value(Sham("set", values))

    def persistent(self, _: Any) -> None:
        (parts,) = self.taken(1)
        if not isinstance(parts, Sham) or parts.kind != "tuple":
            raise UserError("the numbers of a tensor have no name")
        self.stored(parts)
        made = Sham("storage", [parts])
        made.parts = parts.parts
        self.value(made)

    def put(self, place: Any) -> None:
        self.memo[int(place)] = self.stack[-1]

    def get(self, place: Any) -> None:
        self.value(self.memo[int(place)])


def _of_kind(kind: str) -> Callable[[Program, Any], None]:
    return lambda program, _: program.stack.append(Sham(kind))


def _leaf(program: Program, _: Any) -> None:
    program.stack.append(_LEAF)


def _text(program: Program, argument: Any) -> None:
    program.stack.append(argument)


def _nothing(program: Program, _: Any) -> None:
    pass


def _marked_as(kind: str) -> Callable[[Program, Any], None]:
    return lambda program, _: program.value(Sham(kind, program.marked()))


def _tuple_of(count: int) -> Callable[[Program, Any], None]:
    return lambda program, _: program.value(Sham("tuple", program.taken(count)))


def _fill_marked(program: Program, _: Any) -> None:
    values = program.marked()
    program.fill(values)


# what each instruction does to the stand-ins
_STEPS: dict[str, Callable[[Program, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "FLOAT", "BINFLOAT", "BYTEARRAY8"), _leaf),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _leaf),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), Program.number),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _text),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _text),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Program.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Program.get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Program.call),
    **dict.fromkeys(("APPENDS", "SETITEMS", "ADDITEMS"), _fill_marked),
    "MEMOIZE": lambda program, _: program.put(len(program.memo)),
    "MARK": lambda program, _: program.marks.append(len(program.stack)),
    "EMPTY_LIST": _of_kind("list"),
    "EMPTY_TUPLE": _of_kind("tuple"),
    "EMPTY_DICT": _of_kind("dict"),
    "EMPTY_SET": _of_kind("set"),
    "LIST": _marked_as("list"),
    "TUPLE": _marked_as("tuple"),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "DICT": Program.dictionary,
    "FROZENSET": Program.frozenset,
    "APPEND": lambda program, _: program.fill(program.taken(1)),
    "SETITEM": lambda program, _: program.fill(program.taken(2)),
    "GLOBAL": lambda program, argument: program.name(argument.replace(" ", ".", 1)),
    "STACK_GLOBAL": Program.stack_global,
    "BUILD": Program.build,
    "BINPERSID": Program.persistent,
}


def _instructions(content: bytes | BinaryIO) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(content):
            yield opcode.name, argument
    except UserError:
        raise
    except Exception:  # what it says is about pickles, and means nothing to those who have a file
        raise UserError("it is cut, or no pickle") from None
