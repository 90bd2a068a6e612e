"""One thing or many of a file changed: fields, instructions, lengths, kinds, cuts, bits, nesting, encodings."""

import contextlib
import functools
import io
import json
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from src.core.tensor_files import parse_tensors
from src.results.reader import parse
from tests.fuzz.seeds import saved

ESCAPE = "\x1b[2J\x1b]0;x\x07"
SCALARS: list[Any] = [
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.5, 1.5, 1e308, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        "x",
        "1",
        ESCAPE,
        "../../x",
        "/etc/passwd",
        "a" * 5000,
        "\ud800",
        "a\nerror: all is well",
        "\u202e",
        "$\\frac$",
    ),
    *("evil.py:make#0", "./evil.py:make@a3.pt", "evil.py:make?size=32", "hf:evil", "hf:google/vit", "tiny10#0"),
    *(
        "resnet20_w999999",
        "vit_w99968",
        "toy_w3",
        "toy_w900000",
        "timm:test_vit@pretrained",
        "torchvision:resnet18@DEFAULT",
    ),
    *(
        "folder:/",
        "arrays:/dev/zero",
        "digits",
        "a3.pt?size=100000",
        "a3.pt?size=0",
        "a3.pt?layout=x",
        "maps",
        "tokens",
    ),
]
BUILT_IN: list[Any] = [*SCALARS, [], {}, [1], ["a"], {"a": {}}, [[1, 2], [3]], {"acc": None}, [None] * 3]


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@functools.cache
def odd_objects() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [
            torch.zeros(2, dtype=torch.float8_e4m3fn),
            torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
            torch.zeros(2, dtype=torch.complex64),
            torch.eye(2).to_sparse(),
            torch.zeros(0),
            torch.tensor(1),
            torch.tensor([float("nan")]),
            torch.zeros(1).expand(5000),
            torch.ones(3, 3, 3, 3),
            torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
            torch.empty(2, device="meta"),
            torch.zeros(2, dtype=torch.bool),
        ]
    arrays = [np.zeros((0, 3)), np.array("text"), np.array([None, 1], object), np.zeros(3, complex), np.arange(4)]
    more = [b"bytes", (), (1, 2), {1: 2}, {(1, 2): 3}, {2**60: 1}, {1.5: 1}, {None: 1}, {1, 2}, 1j, deep(50), deep(200)]
    return [*BUILT_IN, *tensors, *arrays, *more, np.float32("nan"), np.int64(-1), np.float64(0)]


def fresh(value: Any) -> Any:
    """A value whose lists and dicts are its own, for they are changed in their place."""
    if isinstance(value, dict):
        return {key: fresh(part) for key, part in value.items()}
    return [fresh(part) for part in value] if isinstance(value, list) else value


def places(value: Any, found: list[tuple[Any, Any]] | None = None, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (container, key) within dicts and lists."""
    found = [] if found is None else found
    if isinstance(value, dict | list) and depth < 12:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            places(value[key], found, depth + 1)
    return found


def change(value: Any, draw: random.Random, choices: list[Any]) -> Any:
    """One field of a value, or a few, changed, left out, added or moved."""
    for _ in range(1 if draw.random() < 0.7 else draw.randint(2, 6)):
        held = places(value)
        if not held or draw.random() < 0.01:
            return fresh(draw.choice(choices))
        if draw.random() < 0.4:  # fields near the top matter most, and are few
            held = [place for place in held if place[0] is value] or held
        container, key = draw.choice(held)
        what = draw.random()
        if what < 0.7:
            container[key] = fresh(draw.choice(choices if draw.random() < 0.4 else BUILT_IN))
        elif what < 0.8:
            del container[key]
        elif isinstance(container, dict) and what < 0.9:
            name = draw.choice([ESCAPE, "x", 7, -1, "format", "params", ""])
            container[name] = container.pop(key)
        else:
            other, place = draw.choice(held)
            with contextlib.suppress(LookupError):  # it may have gone
                container[key] = fresh(other[place])  # nothing holds itself
    return value


def flip(content: bytes, draw: random.Random) -> bytes:
    """Bytes changed, inserted, left out, repeated or cut off; and what may be a length made another."""
    spoilt = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        if not spoilt:
            break
        place = draw.randrange(min(len(spoilt), 400) if draw.random() < 0.3 else len(spoilt))
        what = draw.randrange(7)
        if what == 0:
            spoilt[place] = draw.randrange(256)
        elif what == 1:
            spoilt[place] ^= 1 << draw.randrange(8)
        elif what == 2:
            del spoilt[place : place + draw.randint(1, 8)]
        elif what == 3:
            spoilt[place:place] = spoilt[draw.randrange(len(spoilt)) :][: draw.randint(1, 40)]
        elif what == 4:
            spoilt[place : place + 4] = struct.pack("<I", draw.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]))
        elif what == 5:
            spoilt[place : place + 8] = struct.pack("<Q", draw.choice([0, 2**20, 2**40, 2**63, 2**64 - 1]))
        elif draw.random() < 0.2:
            del spoilt[place:]
    return bytes(spoilt)


def reorder(program: bytes, draw: random.Random) -> bytes:
    """A pickle with instructions left out, repeated, exchanged, replaced, or with other numbers and names."""
    starts = [place for *_, place in pickletools.genops(program) if place is not None]
    parts = [program[one:other] for one, other in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(draw.randint(1, 4)):
        place, other = draw.randrange(len(parts)), draw.randrange(len(parts))
        what = draw.randrange(7)
        if what == 0:
            parts[place] = b""
        elif what == 1:
            parts[place] = parts[other]
        elif what == 2:
            parts[place] *= min(draw.choice([2, 10, 1000, 50_000]), 1 + 10**6 // (1 + len(parts[place])))
        elif what == 3:
            parts[place], parts[other] = parts[other], parts[place]
        elif what == 4:
            parts[place] = draw.choice(INSTRUCTIONS)
        elif what == 5:
            one = draw.choice(INSTRUCTIONS)
            parts.insert(place, one * min(draw.choice([1, 1, 10, 100_000]), 1 + 10**6 // len(one)))
        elif parts[place][:1] in b"KMJ":
            number = draw.choice([0, 2**31, 2**53, 2**62])
            parts[place] = b"\x8a\x08" + number.to_bytes(8, "little")
    return b"".join(parts)


def _called(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n(V{argument}\ntR".encode()


INSTRUCTIONS = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.arg is None),
    *(
        b"K\xff",
        b"J\xff\xff\xff\x7f",
        b"h\x00",
        b"q\x00",
        b"]",
        b"}",
        b")\x85\x85",
        b"\x8c\x01x",
        b"NNs",
        b"h\x01h\x02s",
    ),
    *(b"cos\nsystem\n", _called("os", "system", "touch executed"), _called("os", "mkdir", "executed")),
    *(_called("builtins", "eval", "open('executed', 'w')"), _called("builtins", "bytearray", "99999999999")),
    b"cbuiltins\nbytearray\n(V" + b"\xc3\xa9" * 50_000 + b"\nVpunycode\ntR",
    b"\x8a\x08" + (2**61 - 1).to_bytes(8, "little"),
]


def _pickled(value: Any, draw: random.Random) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pickle.dumps(value, draw.choice([2, 3, 4, 4, 5]))


def spoil_result(content: bytes, draw: random.Random) -> bytes:
    what = draw.random()
    if what < 0.7:
        return _pickled(change(parse(content), draw, odd_objects()), draw)
    return reorder(content, draw) if what < 0.88 else flip(content, draw)


def spoil_weights(content: bytes, draw: random.Random) -> bytes:
    what = draw.random()
    if what < 0.6:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            changed = change(parse_tensors(content), draw, odd_objects())
            try:
                return saved(changed, zipped=draw.random() < 0.7)
            except Exception:  # what torch cannot write
                return flip(content, draw)
    if what < 0.9 and content.startswith(b"PK"):
        return _repacked(content, draw)
    return flip(content, draw)


def _repacked(content: bytes, draw: random.Random) -> bytes:
    """An archive whose parts are spoilt, with checksums that fit them."""
    spoilt = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if draw.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(spoilt, "w", packing) as made:
        for part in archive.infolist():
            parts = archive.read(part)
            if part.filename.endswith("data.pkl"):
                parts = reorder(parts, draw) if draw.random() < 0.7 else flip(parts, draw)
            elif draw.random() < 0.02:
                parts = flip(parts, draw) if draw.random() < 0.5 else parts[: len(parts) // 2]
            if draw.random() > 0.003:
                made.writestr(part.filename, parts)
    return spoilt.getvalue()


def spoil_json(content: bytes, draw: random.Random) -> bytes:
    what = draw.random()
    if what < 0.75:
        text = json.dumps(change(json.loads(content), draw, BUILT_IN))
        return text.encode(draw.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig"]))
    if what < 0.8:
        return b"[" * draw.choice([100, 100_000]) + content
    return flip(content, draw)


KEYS = ("image_size", "minutes", "seeds", "x", "low_rank", "epochs")


def spoil_text(content: bytes, draw: random.Random) -> bytes:
    """A study with values, keys and lines changed."""
    lines = content.decode().split("\n")
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(lines))
        what, (key, sign, _) = draw.random(), lines[place].partition(" = ")
        value = draw.choice([json.dumps(one) for one in BUILT_IN] + ["inf", "nan", "1979-05-27", "{a = 1}", "[" * 2000])
        if what < 0.6 and sign:
            lines[place] = f"{key} = {value}"
        elif what < 0.7:
            lines[place] = ""
        elif what < 0.8:
            lines.insert(place, draw.choice(lines))
        elif what < 0.9:
            lines.insert(
                place, f"{draw.choice(['image_size', 'minutes', 'seeds', 'x', 'low_rank', 'epochs'])} = {value}"
            )
        else:
            lines[place] = f"{key} = {list(range(draw.choice([10, 1000, 100_000])))}"
    return flip(content, draw) if draw.random() < 0.15 else "\n".join(lines).encode("utf-8", "surrogatepass")


def spoil_safetensors(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return flip(content, draw)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change(json.loads(content[8 : 8 + length]), draw, BUILT_IN)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def spoil_arrays(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return flip(content, draw)
    arrays = dict(np.load(io.BytesIO(content)))
    odd = [one for one in odd_objects() if isinstance(one, np.ndarray)]
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(sorted(arrays))
        what = draw.random()
        if what < 0.4:
            arrays[name] = draw.choice(odd)
        elif what < 0.7:
            kinds: list[Any] = [np.float32, np.int8, np.uint64, bool, "U9", "datetime64[s]", ">f8"]
            arrays[name] = np.resize(arrays[name], draw.choice([(2,), (1, 2), (3, 3, 3, 3, 3), (), (0, 8, 8)])).astype(
                draw.choice(kinds if arrays[name].dtype.kind in "uif" else ["U30"])
            )
        else:
            arrays.pop(name)
            if not arrays:
                break
    spoilt = io.BytesIO()
    np.savez(spoilt, **arrays)
    return spoilt.getvalue()


SHAPES = ["(12, 5)", "(10**9, 6)", "(1000000000000, 5)", "(-12, 5)", "(12, -1)", "()", "(12,)", "(12, 0)", "(12, 5,"]
SHAPES += ["(True, 5)", "(12.0, 5)", "(99999999999999999999, 1)", "'12'", "[12, 5]", "(12, 1, 1, 1, 1)", "(60, 1)"]
DESCRS = [
    "'<f2'",
    "'>f8'",
    "'|O'",
    "'<U5'",
    "'|V2'",
    "'<c8'",
    "[('a', '<f2')]",
    "'<M8[s]'",
    "'|b1'",
    "'<i8'",
    "'x'",
    "3",
]


def spoil_array(content: bytes, draw: random.Random) -> bytes:
    """An .npy whose head promises other things, or bytes changed."""
    if draw.random() < 0.4:
        return flip(content, draw)
    start = content.index(b"\n") + 1
    descr, shape = draw.choice(DESCRS), draw.choice(SHAPES)
    order = draw.choice(["True", "False", "0", "'C'"])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = draw.choice([text, text, text, "{" * 300, text[:-5], f"{text}\0", "__import__('os').mkdir('executed')"])
    version, width = draw.choice([(b"\x01\x00", "<H"), (b"\x02\x00", "<I"), (b"\x03\x00", "<I"), (b"\x09\x00", "<H")])
    length = draw.choice([len(text) + 1, len(text) + 1, 0, 60_000])
    return b"\x93NUMPY" + version + struct.pack(width, length) + text.encode() + b"\n" + content[start:]


def spoil_folder(content: bytes, draw: random.Random) -> bytes:
    files = pickle.loads(content)
    name = draw.choice(sorted(files))
    if name.endswith(".json"):
        files[name] = spoil_json(files[name], draw)
    else:
        files[name] = spoil_safetensors(files[name], draw)
    return pickle.dumps(files)


SPOILERS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **dict.fromkeys(("result", "published"), spoil_result),
    **dict.fromkeys(("weights", "resume", "kept", "timm", "torchvision", "identical", "activations pt"), spoil_weights),
    **dict.fromkeys(("lease", "failure", "plan", "rows"), spoil_json),
    "safetensors": spoil_safetensors,
    **dict.fromkeys(("npz", "activations npz"), spoil_arrays),
    "activations npy": spoil_array,
    "activations safetensors": spoil_safetensors,
    "study": spoil_text,
    "transformers": spoil_folder,
}
# how often a kind comes
WEIGHTS = {
    "result": 30,
    "published": 8,
    "weights": 25,
    "resume": 8,
    "kept": 5,
    "safetensors": 5,
    "npz": 5,
    "study": 8,
    "lease": 3,
}
WEIGHTS |= {"failure": 3, "plan": 5, "timm": 2, "torchvision": 1, "transformers": 2, "rows": 4}
WEIGHTS |= {
    "activations npy": 4,
    "activations npz": 4,
    "activations safetensors": 4,
    "activations pt": 4,
    "identical": 2,
}
