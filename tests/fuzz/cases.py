"""What was found once: files that crashed a reader, hung it, or ended in a traceback."""

import io
import struct
import zipfile

DEEP = 200_000
PRIME = 2**61 - 1  # multiples of it hash alike


def archive(program: bytes, numbers: bytes = bytes(16), packing: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save of a pickle, with the numbers of one tensor."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", packing) as made:
        for name, part in (("data.pkl", b"\x80\x02" + program), ("byteorder", b"little"), ("version", b"3\n")):
            made.writestr(f"a/{name}", part)
        made.writestr("a/data/0", numbers)
    return content.getvalue()


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    return b"\x8a\x0c" + value.to_bytes(12, "little", signed=True)


def tensor(numbers: int, size: int, stride: int) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(numbers) + b"tQ"
    rest = number(0) + number(size) + b"\x85" + number(stride) + b"\x85\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def tensor_of_bytes(numbers: int, size: int) -> bytes:
    """One whose numbers are counted in bytes, as those of kinds that have no storage of their own."""
    storage = b"(" + text("storage") + b"ctorch.storage\nUntypedStorage\n" + text("0") + text("cpu") + number(numbers)
    rest = number(0) + number(size) + b"\x85" + number(1) + b"\x85\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage + b"tQ" + rest + b"ctorch\nuint64\ntR"


def held(value: bytes) -> bytes:
    return b"}" + text("w") + value + b"s."


EXOTIC = text(b"\xc3\xa9" * 290_000) + text("punycode") + b"\x86R."
ALIKE = b"".join(map(number, range(0, 30_000 * PRIME, PRIME)))
# weight files: pickles, which may be results, too
PROGRAMS = {
    "a deep tuple as a key": b"})" + b"\x85" * DEEP + b"Ns.",
    "a deep tuple": held(b")" + b"\x85" * DEEP),
    "bytes in an exotic encoding": b"cbuiltins\nbytearray\n" + EXOTIC,
    "text in an exotic encoding": b"c_codecs\nencode\n" + EXOTIC,
    "keys that hash alike": b"}(" + b"".join(number(PRIME * i) + b"N" for i in range(30_000)) + b"u.",
    "tuples that hash alike": b"}(" + b"".join(number(i) + b"\x85N" for i in range(30_000)) + b"u.",
    "a set of what hashes alike": b"cbuiltins\nset\n](" + ALIKE + b"e\x85R.",
    "a million copies": b"]" + b"2" * 10**6 + b".",
    "marks taken back": b"]" + b"(1" * 10**6 + b".",
    "instructions without end": b"]" + b")0" * 10**6 + b".",
    "two to the hundredth": b")" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(100)) + b".",
    "a list filled within another": b"]q\x00]q\x01h\x00ah\x00h\x01a.",
}
WEIGHTS = {name: archive(program) for name, program in PROGRAMS.items()} | {
    "numbers behind the end": archive(held(tensor(10**6, 10**6, 1))),
    "a few numbers behind the end": archive(held(tensor(5, 5, 1))),
    "bytes taken for numbers": archive(held(tensor_of_bytes(16, 16))),
    "a tensor larger than its numbers": archive(held(tensor(4, 10**9, 1))),
    "one number repeated": archive(held(tensor(4, 10**12, 0))),
    "a packed archive": archive(held(tensor(4, 4, 1)), packing=zipfile.ZIP_DEFLATED),
}
RESULTS = {name: b"\x80\x02" + program for name, program in PROGRAMS.items()}
# what a configuration of transformers said
TRANSFORMERS = {
    "layers without end": ("num_hidden_layers", 2**53),
    "an escape sequence for an architecture": ("model_type", "\x1b[2J\x1b]0;x\x07"),
}
