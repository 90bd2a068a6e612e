"""Bad folders and files of images: one line that names the thing and says what is wrong, and nothing written.

The table in docs/images.md is made by this test: WRITE_IMAGE_TABLE=1 pytest tests/dataset/test_bad_images.py
"""

import importlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.core.errors import UserError
from src.dataset.arrays import arrays_spec
from tests.own_images import digits_of, write_arrays, write_folder, write_table
from tests.paths import ROOT

TABLE = ROOT / "docs" / "images.md"
WEIGHTS = ROOT / "model_weights/Tiny10/Digits/in0-gn0/440.pt"
HEAD = """| what is wrong | message |
|---|---|"""
PLACE = re.compile(r"(<!-- bad images -->\n\n).*(\n<!-- /bad images -->)", re.DOTALL)
Spoil = Callable[[], object]


def image(name: str = "d/val/3/0000.png", **options: object) -> Callable[[Image.Image], None]:
    return lambda picture: picture.save(name, **options)  # pyright: ignore


def write(name: str, content: bytes | str) -> Spoil:
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(name: str) -> Spoil:
    return lambda: shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


def move(name: str, to: str) -> Spoil:
    return lambda: Path(name).rename(to)


def link(name: str, to: str) -> Spoil:
    return lambda: Path(name).symlink_to(to)


def cut(name: str) -> Spoil:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:-40])


def row(text: str) -> Spoil:
    """Put a row in the place of the first of t/val/labels.csv."""

    def spoil() -> None:
        table = Path("t/val/labels.csv")
        head, _, *rest = table.read_text().splitlines()
        table.write_text("\n".join([head, text, *rest]))

    return spoil


def animated() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save("d/val/3/0000.png", save_all=True, append_images=frames[1:])


def emptied(name: str) -> Spoil:
    return lambda: [file.unlink() for file in Path(name).iterdir()]


def arrays(**others: object) -> Spoil:
    images, labels = digits_of("val", 2)
    given = {"images": images, "labels": labels}
    return lambda: write_arrays(
        Path("a.npz"), 2, **{name: value(**given) if callable(value) else value for name, value in others.items()}
    )


def without(*names: str) -> Spoil:
    def spoil() -> None:
        kept = dict(np.load("a.npz"))
        np.savez("a.npz", **{name: value for name, value in kept.items() if name not in names})

    return spoil


def file_in(split: str) -> str:
    return f"d/{split}/3/0000.png" if split == "val" else f"d/{split}/3/0009.png"


DEEP = Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16))
FOLDER: dict[str, Spoil] = {
    "no such folder": remove("d"),
    "a file in its place": lambda: (remove("d")(), Path("d").touch()),
    "neither train/ nor val/ or test/": lambda: (remove("d/train")(), move("d/val", "d/validation")()),
    "no class in val/": lambda: (remove("d/val")(), Path("d/val").mkdir()),
    "a class without images": emptied("d/val/3"),
    "a class that val/ lacks": remove("d/val/3"),
    "a class that train/ lacks": remove("d/train/3"),
    "a class of another name in val/": move("d/val/3", "d/val/three"),
    "an image beside the classes": lambda: shutil.copy("d/val/3/0009.png", "d/val/0.png"),
    "a folder among images": lambda: Path("d/val/3/more").mkdir(),
    "a text among images": write("d/val/3/readme.txt", "hello"),
    "an image of another kind (.gif)": lambda: Image.new("L", (9, 9)).save("d/val/3/x.gif"),
    "a link that leads round in a circle": link("d/val/3/loop.png", "loop.png"),
    "a class that is a link round in a circle": link("d/val/loop", "loop"),
    "a link that leads nowhere": link("d/val/3/x.png", "gone.png"),
    "a labels.csv in val/ alone": write("d/val/labels.csv", "file,round\n"),
    "zero bytes": write("d/val/3/0010.png", b""),
    "no image, but a page": write("d/val/3/0010.png", "<html>not found</html>"),
    "an image of another kind under a known name": lambda: Image.new("L", (9, 9)).save(
        "d/val/3/0010.png", format="GIF"
    ),
    "a cut PNG": cut("d/val/3/0010.png"),
    "a cut JPEG": lambda: (Image.new("L", (99, 99)).save("d/val/3/0010.png", format="JPEG"), cut("d/val/3/0010.png")()),
    "a cut WebP": lambda: (
        Image.effect_noise((99, 99), 50).save("d/val/3/0010.png", format="WEBP"),
        cut("d/val/3/0010.png")(),
    ),
    "an animated PNG": lambda: (animated(), move("d/val/3/0000.png", "d/val/3/0010.png")()),
    "16 bits, grey": lambda: DEEP.save("d/val/3/0010.png"),
    "training images all alike": lambda: [
        Image.new("L", (32, 32), 7).save(file) for file in Path("d/train").rglob("*.png")
    ],
}
MULTI: dict[str, Spoil] = {
    "a table without labels": write("t/val/labels.csv", "file\n0000.png\n"),
    "an empty table": write("t/val/labels.csv", ""),
    "a table of no images": write("t/val/labels.csv", "file,even,small,round\n"),
    "a label twice in the head": write("t/val/labels.csv", "file,even,even\n0000.png,0,1\n"),
    "other labels in val/": lambda: Path("t/val/labels.csv").write_text(
        Path("t/val/labels.csv").read_text().replace("round", "large")
    ),
    "a label that is neither 0 nor 1": row("0000.png,1,2,0"),
    "a row that is too short": row("0000.png,1,0"),
    "a row of an image that is not there": row("gone.png,1,0,0"),
    "a row that is there twice": row("0001.png,1,0,0"),
    "an image without a row": lambda: shutil.copy("t/val/0000.png", "t/val/zz.png"),
    "a table in another encoding": write("t/val/labels.csv", b"file,\xff\xfe\n"),
}
ARRAYS: dict[str, Spoil] = {
    "no such file": remove("a.npz"),
    "a text under its name": write("a.npz", "hello"),
    "a cut file": cut("a.npz"),
    "no y_val": without("y_val"),
    "none of the four": without("x_train", "y_train", "x_val", "y_val"),
    "images of floats with NaN": arrays(x_val=lambda images, labels: np.full(images.shape, np.nan)),
    "images of int64": arrays(x_val=lambda images, labels: images.astype(np.int64)),
    "images (n, c, h, w)": arrays(x_val=lambda images, labels: np.stack([images] * 3, 1)),
    "flat images": arrays(x_val=lambda images, labels: images.reshape(len(images), -1)),
    "no images": arrays(x_val=np.zeros((0, 32, 32), np.uint8), y_val=np.zeros(0, np.int64)),
    "images of another size in x_val": arrays(x_val=lambda images, labels: images[:, :16]),
    "fewer labels than images": arrays(y_val=lambda images, labels: labels[:7]),
    "labels of floats with NaN": arrays(y_val=lambda images, labels: np.where(labels > 5, np.nan, labels)),
    "a label below 0": arrays(y_val=lambda images, labels: labels - 1),
    "a label that y_train lacks": arrays(y_val=lambda images, labels: labels + 1),
    "a class without training images": arrays(y_train=lambda images, labels: np.where(labels == 4, 5, labels)),
    "fewer names than classes": arrays(classes=np.array(list("abc"))),
    "a name twice": arrays(classes=np.array(list("aacdefghij"))),
    "labels of Python objects": arrays(y_val=lambda images, labels: np.array([{}] * len(images), dtype=object)),
}
COMMANDS = {
    "folder": "train_model -m lenet -d folder:d -e 1 -b 10 --num-workers 0",
    "table": "train_model -m lenet -d folder:t -e 1 -b 10 --num-workers 0",
    "arrays": "train_model -m lenet -d arrays:a.npz -e 1 -b 10",
}
CASES = [
    *(("folder", what, spoil) for what, spoil in FOLDER.items()),
    *(("table", what, spoil) for what, spoil in MULTI.items()),
    *(("arrays", what, spoil) for what, spoil in ARRAYS.items()),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders and the file as they are before something is wrong with them."""
    home = tmp_path_factory.mktemp("whole")
    write_folder(home / "d", 3)
    write_table(home / "t", 2)
    write_arrays(home / "a.npz", 2)
    return home


def refuse(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    script, *arguments = command.split()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(arguments)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith(("training images of", "note: "))]
    assert stop.value.code == 2 and captured.out == "" and len(lines) == 1, captured.err
    return lines[0].removeprefix("error: ")


def files_in(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if not path.is_dir())


def test_bad_folders_and_files_are_one_line(whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert len(CASES) >= 30
    rows = []
    for number, (kind, what, spoil) in enumerate(CASES):
        home = tmp_path / str(number)
        shutil.copytree(whole, home)
        monkeypatch.chdir(home)
        spoil()
        before = files_in(home)
        message = refuse(COMMANDS[kind], capsys)
        assert files_in(home) == before, what
        assert re.search(r"\b[dt]\b|a\.npz", message), message  # names the file or its folder
        rows.append(f"| {kind}: {what} | {message.replace(f'{home}/', '')} |")
    text = "\n".join([HEAD, *rows, ""])
    page = TABLE.read_text(encoding="utf-8")
    renewed = PLACE.sub(lambda place: f"{place[1]}{text}{place[2]}", page)
    if os.environ.get("WRITE_IMAGE_TABLE"):
        TABLE.write_text(renewed, encoding="utf-8")
        page = renewed
    assert page.splitlines() == renewed.splitlines() and text in page


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["d/val/3", "d/val/3/0010.png"])
def test_what_may_not_be_read_is_named(name: str, whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(whole, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    Path(name).chmod(0)
    try:
        message = refuse(COMMANDS["folder"], capsys)
        assert "Permission denied" in message and name in message
    finally:
        Path(name).chmod(0o755)


@pytest.mark.parametrize("name", ["d/val/3/0010.png", "d/val/3/0009.png"])
def test_16_bits_a_colour_are_refused_too(name: str, whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """PIL takes 8 of them without a word; in the sample that a folder is known by, and elsewhere."""
    shutil.copytree(whole, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    Path(name).write_bytes(DEEP_COLOUR)
    command = f"eval_net {WEIGHTS} -d folder:d --num-workers 0"
    assert refuse(command, capsys) == f"cannot read the image {name}: it has 16 bits a value; convert it to 8"


def deep_colour() -> bytes:
    """A PNG of 2 x 2 pixels of three 16-bit values, which PIL cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2 * (1 + 12)))) + chunk(b"IEND", b"")


DEEP_COLOUR = deep_colour()


def test_names_of_arrays_are_printed_without_their_control_characters(tmp_path: Path) -> None:
    odd: dict[str, Any] = {"\x1b[2Jx": np.zeros(1)}
    np.savez(tmp_path / "a.npz", **odd)
    with pytest.raises(UserError, match=re.escape("it has: \\x1b[2Jx")):
        arrays_spec("a", tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x_val=np.zeros((1, 8, 8), np.uint8), **odd)
    with pytest.raises(UserError, match=re.escape("has no y_val; it has: x_val, \\x1b[2Jx")):
        arrays_spec("b", tmp_path / "b.npz")
