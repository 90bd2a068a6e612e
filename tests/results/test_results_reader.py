"""Files that mean harm, and files that came to harm: nothing in them runs, and each is refused in one line."""

import codecs
import functools
import io
import os
import pickle
import pickletools
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from src import results
from src.results import read
from tests.paths import ROOT
from tests.results.test_results import frame, result

Spoil = Callable[[Path], bytes]


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self):
        return self.called


class Ours:
    """A class of ours whose making, filling and deletion leave a trace."""

    traces: list[str] = []

    def __setstate__(self, state: Any) -> None:
        Ours.traces.append("filled")

    def __reduce__(self):
        return Ours.make, (), {"a": 1}

    @staticmethod
    def make() -> "Ours":
        Ours.traces.append("made")
        return Ours()


def program(*instructions: bytes) -> bytes:
    return b"\x80\x04" + b"".join(instructions) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, function: str) -> bytes:
    return text(module) + text(function) + b"\x93"


def number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def many(shape: bytes, kind: str = "f8", data: bytes = b"C\x00") -> bytes:
    """An array of any shape, whatever the data."""
    empty = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    dtype = name("numpy", "dtype") + text(kind) + b"\x89\x88\x87R(K\x03" + text("|" if kind == "O8" else "<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return program(empty, b"(K\x01", shape, dtype, b"\x89", data, b"tb")


def torch_payload(marker: Path, *, zipped: bool) -> bytes:
    content = io.BytesIO()
    torch.save(Call(os.mkdir, str(marker)), content, _use_new_zipfile_serialization=zipped)
    return pickle.dumps(Call(torch.storage._load_from_bytes, content.getvalue()))


HUGE = 10**13
DEEP = 200_000  # enough to break hash() of a tuple
MKDIR = "__import__('os').mkdir({!r})"
SPECIAL = b"\x8e" + HUGE.to_bytes(8, "little")  # BINBYTES8, its size declared
ENDLESS = name("pandas.core.indexes.base", "_new_Index") + name("pandas", "RangeIndex") + b"}(" + text("start")
ENDLESS += b"K\x00" + text("stop") + number(HUGE) + text("step") + b"K\x01" + text("name") + b"Nu\x86R"


def storage() -> bytes:
    """The storage of a tensor of three numbers, as pickle writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = pickle.dumps(torch.zeros(3), 4)
    (content,) = (value for _, value, _ in pickletools.genops(whole) if isinstance(value, bytes))
    return name("torch.storage", "_load_from_bytes") + long_bytes(content) + b"\x85R"


def long_bytes(content: bytes) -> bytes:
    return b"B" + len(content).to_bytes(4, "little") + content


def deep_storage() -> bytes:
    """What torch takes for its own, but where the storage should be there is a dict with a deep tuple as a key."""
    head = b"".join(pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {}))
    return head + b"\x80\x02})" + b"\x85" * DEEP + b"Ns." + pickle.dumps([], 2)


# each makes the content of a file; whatever runs makes the folder
PROGRAMS: dict[str, Spoil] = {
    "os.system": lambda marker: pickle.dumps(Call(os.system, f"mkdir {marker}")),
    "os.mkdir": lambda marker: pickle.dumps(Call(os.mkdir, str(marker))),
    "builtins.eval": lambda marker: pickle.dumps(Call(eval, MKDIR.format(str(marker)))),
    "builtins.exec": lambda marker: pickle.dumps(Call(exec, MKDIR.format(str(marker)))),
    "builtins.getattr": lambda marker: pickle.dumps(Call(getattr, Call(__import__, "os"), "mkdir")),
    "functools.partial": lambda marker: pickle.dumps(Call(functools.partial(os.mkdir, str(marker)))),
    "functools.reduce": lambda marker: pickle.dumps(Call(functools.reduce, os.mkdir, [str(marker)])),
    "subprocess": lambda marker: pickle.dumps(Call(subprocess.Popen, ["mkdir", str(marker)])),
    "codecs": lambda marker: pickle.dumps(Call(codecs.encode, "x", "latin1")),
    "protocol 0": lambda marker: b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR.",
    "INST": lambda marker: b"(V" + str(marker).encode() + b"\nios\nmkdir\n.",
    "OBJ": lambda marker: b"(cos\nmkdir\nV" + str(marker).encode() + b"\no.",
    "behind a dot": lambda marker: program(name("numpy", "core.multiarray.os.mkdir"), text(str(marker)), b"\x85R"),
    "NEWOBJ of another class": lambda marker: program(name("pathlib", "Path"), text(str(marker)), b"\x85\x81"),
    "NEWOBJ_EX": lambda marker: program(name("pandas", "DataFrame"), b")}\x92"),
    "extension registry": lambda marker: program(b"\x82\x01"),
    "persistent id": lambda marker: program(b"Pos.mkdir\n"),
    "a torch storage with a payload": lambda marker: torch_payload(marker, zipped=False),
    "a zipped torch storage with a payload": lambda marker: torch_payload(marker, zipped=True),
    "torch.load itself": lambda marker: pickle.dumps(Call(torch.load, str(marker))),
    "numpy.load": lambda marker: pickle.dumps(Call(np.load, str(marker))),
    "pandas.read_pickle": lambda marker: pickle.dumps(Call(pd.read_pickle, str(marker))),
    "a class of ours": lambda marker: pickle.dumps(Ours()),
    "a method as a label": lambda marker: pickle.dumps({"a": frame, "b": 1}),
    "a function that results only mention": lambda marker: program(name("numpy", "ndarray"), b"K\x05\x85\x85R"),
    "a loose name": lambda marker: program(name("numpy", "ndarray")),
    "the state of a class": lambda marker: program(name("pandas", "DataFrame"), b"N}", text("__len__"), b"Ns\x86b"),
}
BOMBS: dict[str, Spoil] = {
    "deep lists": lambda marker: program(b"]" * DEEP, b"a" * (DEEP - 1)),
    "deep tuples": lambda marker: program(b")", b"\x85" * DEEP),
    "a deep tuple as a key": lambda marker: program(b"})", b"\x85" * DEEP, b"Ns"),
    "a deep tuple in a set": lambda marker: program(b"\x8f()", b"\x85" * DEEP, b"\x90"),
    "a deep tuple in an ordered dict": lambda marker: program(
        name("collections", "OrderedDict"), b")R)", b"\x85" * DEEP, b"Ns"
    ),
    "a deep tuple given to an ordered dict": lambda marker: program(
        name("collections", "OrderedDict"), b"]()", b"\x85" * DEEP, b"N\x86e\x85R"
    ),
    "a deep tuple within a torch storage": lambda marker: program(
        name("torch.storage", "_load_from_bytes"), long_bytes(deep_storage()), b"\x85R"
    ),
    "a long tuple as a key": lambda marker: program(b"}(", b"N" * 17, b"tNs"),
    "lists a little too deep": lambda marker: program(b"]" * 150, b"a" * 149),
    "a list within an array": lambda marker: many(b"K\x01\x85", "O8", b"]]a"),
    "deep dicts": lambda marker: program(b"}K\x00" * 100_000, b"}", b"s" * 100_000),
    "an endless frame": lambda marker: program(
        name("pandas", "DataFrame") + b")\x81}" + text("_mgr"),
        name("pandas.core.internals.managers", "BlockManager") + b")](",
        name("pandas.core.indexes.base", "_new_Index") + name("pandas", "RangeIndex") + b"}(",
        text("start") + b"K\x00" + text("stop") + b"K\x00" + text("step") + b"K\x01" + text("name") + b"Nu\x86R",
        ENDLESS,
        b"e\x86Rsb",
    ),
    "an endless shape of a tensor": lambda marker: program(
        name("torch._utils", "_rebuild_tensor_v2"), b"(", storage(), b"K\x00", ENDLESS, b")\x89Nt", b"R"
    ),
    "a tensor of one number repeated": lambda marker: program(
        name("torch._utils", "_rebuild_tensor_v2"),
        b"(",
        storage(),
        b"K\x00" + number(HUGE) + b"\x85K\x00\x85\x89Nt",
        b"R",
    ),
    "a list in itself": lambda marker: program(b"]\x94h\x00a"),
    "two to the hundredth": lambda marker: program(b"]", b"2\x86" * 100),
    "two to the hundredth as a key": lambda marker: program(b"})", b"2\x86" * 100, b"Ns"),
    "two to the hundredth as a name": lambda marker: program(b"]", b"2\x86" * 100, text("x"), b"\x93"),
    "declared bytes": lambda marker: program(SPECIAL, b"x"),
    "declared bytearray": lambda marker: b"\x80\x05\x96" + HUGE.to_bytes(8, "little") + b"x.",
    "declared text": lambda marker: program(b"\x8d" + HUGE.to_bytes(8, "little"), b"x"),
    "declared frame": lambda marker: program(b"\x95" + HUGE.to_bytes(8, "little"), b"N"),
    "declared number": lambda marker: program(b"\x8b\xff\xff\xff\x7f", b"x"),
    "a long number": lambda marker: program(b"\x8b" + (10**6).to_bytes(4, "little"), b"\x7f" * 10**6),
    "far memo": lambda marker: program(b"Nr\xff\xff\xff\xff"),
    "bytearray()": lambda marker: program(name("builtins", "bytearray"), number(HUGE), b"\x85R"),
    "set(range)": lambda marker: program(
        name("builtins", "set"),
        ENDLESS,
        b"\x85R",
    ),
    "an endless index": lambda marker: program(
        ENDLESS,
    ),
    "numpy.ndarray()": lambda marker: program(name("numpy", "ndarray"), number(HUGE), b"\x85\x85R"),
    "_reconstruct of a huge shape": lambda marker: program(
        name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), number(HUGE), b"\x85C\x01b\x87R"
    ),
    "an array of a huge shape": lambda marker: many(number(HUGE) + b"\x85"),
    "objects of a huge shape": lambda marker: many(number(HUGE) + b"\x85", "O8", b"]"),
    "a shape below zero": lambda marker: many(b"J\xff\xff\xff\xff\x85"),
    "a long kind of text": lambda marker: many(b"K\x00\x85", "U99999999"),
    "a structured kind": lambda marker: many(b"K\x01\x85", "V8", b"C\x08" + bytes(8)),
    "the same copy again and again": lambda marker: program(
        name("builtins", "bytearray") + b"\x940B" + (10**6).to_bytes(4, "little") + bytes(10**6) + b"\x94(",
        b"h\x00h\x01\x85R" * 30_000,
        b"l",
    ),
    "frames without end": lambda marker: program(name("pandas", "DataFrame"), b"\x940(", b"h\x00)\x81" * 300_000, b"l"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_nothing_in_a_file_is_run(tmp_path: Path, kind: str) -> None:
    path, marker = tmp_path / "x.pkl", tmp_path / "ran"
    Ours.traces.clear()
    path.write_bytes(PROGRAMS[kind](marker))
    with pytest.raises(ValueError, match=rf"\Acannot read {path} as a result: .+\Z"):
        read(path)
    assert not marker.exists()
    assert Ours.traces == []
    assert pd.DataFrame.__len__ is not None
    if not path.read_bytes().startswith(b"\x80\x04\x82"):
        assert pickle.dumps(frame())  # what pandas and numpy are is as it was


def test_those_files_would_have_run(tmp_path: Path) -> None:
    """The danger is real: plain pickle runs them."""
    for kind in ("os.mkdir", "builtins.eval", "functools.partial", "protocol 0", "INST"):
        marker = tmp_path / kind
        pickle.loads(PROGRAMS[kind](marker))
        assert marker.is_dir()


def test_what_a_file_asks_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(PROGRAMS["builtins.eval"](tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"it asks for builtins\.eval, which no result contains$"):
        read(path)
    path.write_bytes(PROGRAMS["a torch storage with a payload"](tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"it asks for \w+\.mkdir, which no such file needs$"):
        read(path)
    path.write_bytes(program(name("os\x1b[2J" + "x" * 240, "mkdir\nerror: all is well")))
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 240 + len(str(path))


HARMLESS = {"declared frame", "far memo"}  # the reader has no use for either number


def test_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """In a process of its own, whose largest memory and time count."""
    files = {kind: tmp_path / f"{position}.pkl" for position, kind in enumerate(BOMBS)}
    for kind, path in files.items():
        path.write_bytes(BOMBS[kind](tmp_path))
    code = """
import resource, sys, time
from src import results
from src.results import read
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        read(path)
        print("read", end=" ")
    except ValueError as error:
        print("refused" if len(str(error).splitlines()) == 1 else "garbled", end=" ")
    print((peak() - before) // 2**20, time.process_time() - start)
"""
    command = [sys.executable, "-c", code, *map(str, files.values())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for kind, line in zip(files, done.stdout.splitlines(), strict=True):
        outcome, megabytes, seconds = line.split()
        assert outcome == ("read" if kind in HARMLESS else "refused"), kind
        assert int(megabytes) < 150, kind
        assert float(seconds) < 10, kind


def mutants(content: bytes, count: int) -> list[bytes]:
    """Copies with a few bytes changed, inserted, left out or cut off."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        mutant = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(mutant))
            match draw.randrange(5):
                case 0:
                    mutant[place] = draw.randrange(256)
                case 1:
                    mutant[place] ^= 1 << draw.randrange(8)
                case 2:
                    del mutant[place : place + draw.randint(1, 8)]
                case 3:
                    mutant[place:place] = mutant[draw.randrange(len(mutant)) :][: draw.randint(1, 8)]
                case 4 if draw.random() < 0.2:
                    del mutant[place:]
            if not mutant:
                break
        found.append(bytes(mutant))
    return found


def test_spoilt_files_are_read_or_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own way to pickle
        whole = pickle.dumps(result() | {"tensor": torch.ones(3)}, 4)
    path, refused = tmp_path / "x.pkl", 0
    for mutant in mutants(whole, 500):
        path.write_bytes(mutant)
        try:
            read(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"cannot read {path} as a result: ") or "another format" in str(error)
            assert len(str(error).splitlines()) == 1
    assert 100 < refused < 500


@pytest.mark.reference
def test_the_spoilt_published_result_is_read_or_refused(reference: Path, tmp_path: Path) -> None:
    whole = (reference / "published_bn3-bn3.pkl").read_bytes()
    instructions = [position for _, _, position in pickletools.genops(whole) if position is not None]
    draw, path = random.Random(1), tmp_path / "x.pkl"
    for _ in range(60):
        mutant = bytearray(whole)
        for position in draw.sample(instructions, 2):  # the numbers would take most of the changes
            mutant[position] = draw.randrange(256)
        path.write_bytes(mutant)
        try:
            read(path)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1


def test_equal_results_are_equal_bytes_whichever_objects_their_texts_are(tmp_path: Path) -> None:
    """A plan that was just made and one that was read give texts that are one object here, and two there."""
    one, other = "bn1", "".join(["b", "n1"])
    assert one is not other
    for name, end in (("a", one), ("b", other)):
        results.write(tmp_path / name, {"params": {"front_layer": one, "end_layer": end, end: [end]}}, overwrite=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
