"""Activations that others saved: their usual files, matched images, and what bad ones get."""

import json
import mmap
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compare_nets
from src import results
from src.dataset.feature_files import read_features
from tests.paths import ROOT

DIGITS = [str(ROOT / f"model_weights/Tiny10/Digits/in{seed}-gn{seed}/440.pt") for seed in (0, 1)]
IMAGES = 40


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def activations(images: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(images, 6)).astype(np.float32)
    return x, (x @ random.normal(size=(6, 5)) + random.normal(size=(images, 5))).astype(np.float32)


def ids_of(images: int = IMAGES) -> np.ndarray:
    return np.array([f"image {number}" for number in range(images)])


def save(name: str, **arrays: np.ndarray) -> None:
    np.savez(name, **arrays)  # pyright: ignore[reportArgumentType]


def write_safetensors(
    path: str, tensors: dict[str, tuple[str, np.ndarray]], about: dict[str, str] | None = None
) -> None:
    """As the format has it: a length, a header, and bytes."""
    header: dict[str, Any] = {"__metadata__": about} if about else {}
    body = b""
    for name, (kind, array) in tensors.items():
        start = len(body)
        body += array.tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, len(body)]}
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + body)


def values(*words: str) -> list[float]:
    compare_nets.main([*words, "--run-name", "r", "--overwrite"])
    (path,) = Path("results/r").glob("*.pkl")
    found = results.read(path)["frame"]["value"].tolist()
    path.unlink()
    return found


def test_every_format_and_type_gives_the_same_value() -> None:
    x, y = activations()
    np.save("y.npy", y)
    np.save("plain.npy", x)
    np.save("big.npy", x.astype(">f8"))
    np.save("columns.npy", np.asfortranarray(x))
    save("stored.npz", layer=x)
    np.savez_compressed("packed.npz", layer=x)
    write_safetensors("t.safetensors", {"layer": ("F32", x), "other.0": ("F64", x.astype("<f8"))})
    Path("folder").mkdir()
    np.save("folder/fc1.npy", x)
    np.save("folder/fc2.npy", y)
    specs = {"plain.npy": "plain", "big.npy": "big", "columns.npy": "columns", "stored.npz": "layer"}
    specs |= {"packed.npz": "layer", "t.safetensors": "layer", "folder": "fc1"}
    found = {
        spec: values(f"features:{spec}", "features:y.npy", layer, "y", "none", "cka", "mutual_knn")
        for spec, layer in specs.items()
    }
    expected = found["plain.npy"]
    assert all(pair == expected for pair in found.values())
    assert values("features:t.safetensors", "features:y.npy", "other.0", "y", "none", "cka") == expected[:1]
    np.save("h.npy", x.astype(np.float16))
    assert values("features:h.npy", "features:y.npy", "h", "y", "none", "cka") == pytest.approx(expected[:1], abs=1e-3)


def test_bfloat16_is_read_as_torch_has_it() -> None:
    x, _ = activations()
    stored = torch.from_numpy(x).bfloat16()
    write_safetensors("b.safetensors", {"layer": ("BF16", stored.view(torch.int16).numpy())})
    rows = read_features(Path("b.safetensors")).layers["layer"].read(slice(3, 9))
    assert np.array_equal(rows, stored[3:9].float().numpy())


def test_values_of_a_layer_with_itself_its_shuffle_and_another_width() -> None:
    x, y = activations()
    order = np.random.default_rng(1).permutation(IMAGES)
    save("x.npz", layer=x, ids=ids_of())
    save("scaled.npz", layer=3 * x + 1, ids=ids_of())
    save("shuffled.npz", layer=x[order], ids=ids_of()[order])
    np.save("bare.npy", x[order])
    assert values("features:x.npz", "features:scaled.npz", "layer", "layer", "none", "cka") == pytest.approx(
        [1], abs=1e-6
    )
    assert values("features:x.npz", "features:shuffled.npz", "layer", "layer", "none", "cka") == pytest.approx(
        [1], abs=1e-6
    )
    assert values("features:x.npz", "features:bare.npy", "layer", "bare", "none", "cka")[0] < 0.9
    np.save("y.npy", y)
    assert 0 < values("features:x.npz", "features:y.npy", "layer", "y", "none", "cka")[0] < 1


def test_what_is_taken_for_granted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    x, _ = activations()
    order = np.arange(IMAGES)[::-1]
    save("x.npz", layer=x, ids=ids_of())
    save("back.npz", layer=x[order], ids=ids_of()[order])
    np.save("bare.npy", x)
    values("features:x.npz", "features:back.npz", "layer", "layer", "none", "cka")
    assert "note: the images of back.npz are in another order; they are matched by their ids" in capsys.readouterr().err
    values("features:x.npz", "features:bare.npy", "layer", "bare", "none", "cka")
    assert "note: one file does not say which images it is of" in capsys.readouterr().err
    values("features:x.npz", "features:x.npz", "layer", "layer", "none", "cka")
    assert "note" not in capsys.readouterr().err


def test_layers_may_lie_within_layers_and_be_called_as_ours() -> None:
    x, y = activations()
    save("x.npz", **{"block.fc": x, "block": y, "order": x, "names": y})
    words = ["features:x.npz", "features:x.npz", "block.fc,block,order,names", "block", "none", "cka"]
    assert values(*words) == pytest.approx([values(*words[:2], "order", "names", "none", "cka")[0], 1] * 2, abs=1e-6)


def test_ids_of_whole_numbers_lines_and_metadata() -> None:
    x, _ = activations()
    save("numbers.npz", layer=x, ids=np.arange(IMAGES))
    Path("lines").mkdir()
    np.save("lines/layer.npy", x)
    Path("lines/file_names.txt").write_text("".join(f"{number}\n" for number in range(IMAGES)))
    write_safetensors("t.safetensors", {"layer": ("F32", x)}, {"ids": json.dumps(list(range(IMAGES)))})
    expected = tuple(map(str, range(IMAGES)))
    assert all(read_features(Path(name)).ids == expected for name in ("numbers.npz", "lines", "t.safetensors"))


def test_layouts_say_where_channels_are() -> None:
    random = np.random.default_rng(2)
    maps = random.normal(size=(IMAGES, 3, 4, 5)).astype(np.float32)
    np.save("maps.npy", maps)
    np.save("last.npy", maps.transpose(0, 2, 3, 1))
    np.save("tokens.npy", maps.reshape(IMAGES, 3, 20).transpose(0, 2, 1))
    for other in ("features:last.npy?layout=channels_last", "features:tokens.npy?layout=tokens"):
        name = other.partition(":")[2].partition(".")[0]
        assert values("features:maps.npy", other, "maps", name, "none", "cka") == pytest.approx([1], abs=1e-6)
    same = values("features:maps.npy", "features:last.npy?layout=channels_last", "maps", "last", "none", "corr")
    assert same == pytest.approx([1], abs=1e-6)


def test_decisions_come_from_outputs_and_labels() -> None:
    random = np.random.default_rng(3)
    x, y = activations()
    first, second = random.normal(size=(2, IMAGES, 4)).astype(np.float32)
    labels = np.arange(IMAGES) % 4
    save("x.npz", layer=x, output=first, labels=labels)
    save("y.npz", layer=y, output=second)
    words = ["features:x.npz", "features:y.npz", "layer", "layer", "none", "disagreement", "abs_acc_diff"]
    expected = [(first.argmax(1) != second.argmax(1)).mean()]
    expected += [abs((first.argmax(1) == labels).mean() - (second.argmax(1) == labels).mean())]
    assert values(*words) == pytest.approx(expected)


def test_a_network_is_held_against_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """What a network gives, saved in order: the same numbers come out, to the last digit, on either side."""
    given = ["bn3,bn7", "bn5,bn7", "digits", "cka", "procrustes", "mutual_knn"]
    compare_nets.main([*DIGITS, *given, "--save-activations", "a.safetensors", "--run-name", "r", "--overwrite"])
    (path,) = Path("results/r").glob("*.pkl")
    expected = results.read(path)["frame"]["value"].tolist()
    path.unlink()
    both = values("features:a.safetensors", "features:a.safetensors", "1.bn3,1.bn7", "2.bn5,2.bn7", "none", *given[3:])
    assert both == expected
    assert values(DIGITS[0], "features:a.safetensors", "bn3,bn7", "2.bn5,2.bn7", *given[2:]) == expected
    assert values("features:a.safetensors", DIGITS[1], "1.bn3,1.bn7", *given[1:]) == expected
    assert "a.safetensors is taken to be of the images of digits, in their order" in capsys.readouterr().err
    about = json.loads(
        Path("a.safetensors").read_bytes()[8:][: int.from_bytes(Path("a.safetensors").read_bytes()[:8], "little")]
    )
    assert about["__metadata__"]["split"] == "val" and json.loads(about["__metadata__"]["layouts"])["1.bn3"] == "maps"


def test_saving_is_whole_or_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DIGITS, "bn7", "bn7", "digits", "cka", "--no-save", "--save-activations"]
    for name, message in (("a.npz", "into a .safetensors"), ("there.safetensors", "exists already; give --overwrite")):
        Path("there.safetensors").touch()
        with pytest.raises(SystemExit, match="2"):
            compare_nets.main([*words, name])
        assert message in capsys.readouterr().err
    monkeypatch.setattr(
        "src.evaluation.saving.feed", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(SystemExit, match="2"):
        compare_nets.main([*words, "b.safetensors"])
    assert not list(Path().glob("*b.safetensors*"))


def header(
    kind: str, shape: list[Any], offsets: list[Any], *, length: int | None = None, body: int = 64
) -> Callable[[], None]:
    def write() -> None:
        text = json.dumps({"x": {"dtype": kind, "shape": shape, "data_offsets": offsets}}).encode()
        Path("x.safetensors").write_bytes(
            (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(body)
        )

    return write


def cut(name: str, size: int) -> None:
    Path(name).write_bytes(Path(name).read_bytes()[:size])


def lying_zip() -> None:
    save("x.npz", x=activations()[0])
    content = bytearray(Path("x.npz").read_bytes())
    place = content.index(b"(40, 6)")
    content[place : place + 7] = b"(99, 6)"
    with zipfile.ZipFile("x.npz") as archive:
        member = archive.infolist()[0]
    content[member.header_offset + 14 : member.header_offset + 18] = bytes(4)
    Path("x.npz").write_bytes(content)


def cut_safetensors() -> None:
    write_safetensors("x.safetensors", {"x": ("F32", GOOD)})
    cut("x.safetensors", 300)


GOOD, OBJECTS = activations()[0], np.array([{}], dtype=object)
BAD: dict[str, tuple[Callable[[], Any], str, str]] = {
    "nothing there": (lambda: None, "x.npy", "no file or folder x.npy"),
    "another kind": (lambda: Path("x.csv").touch(), "x.csv", "x.csv is no .npy, .npz, .safetensors"),
    "an empty file": (lambda: Path("x.npy").touch(), "x.npy", "x.npy is damaged, or no .npy"),
    "an empty folder": (lambda: Path("x").mkdir(), "x", "x holds no .npy, .npz, .safetensors"),
    "objects": (lambda: np.save("x.npy", OBJECTS, allow_pickle=True), "x.npy", "holds Python objects"),
    "objects in npz": (lambda: np.savez("x.npz", x=OBJECTS, allow_pickle=True), "x.npz", "holds Python objects"),
    "texts": (lambda: np.save("x.npy", ids_of()[:, None]), "x.npy", "values, and activations are real numbers"),
    "complex": (lambda: np.save("x.npy", GOOD + 1j), "x.npy", "holds complex numbers"),
    "booleans": (lambda: np.save("x.npy", GOOD > 0), "x.npy", "holds bool values"),
    "no images": (lambda: np.save("x.npy", GOOD[:0]), "x.npy", "holds no images"),
    "no features": (lambda: np.save("x.npy", GOOD[:, :0]), "x.npy", "has the shape (40, 0)"),
    "one axis": (lambda: np.save("x.npy", GOOD[:, 0]), "x.npy", "has the shape (40,); images are first"),
    "three axes": (lambda: np.save("x.npy", GOOD[:, :, None]), "x.npy", "say it with ?layout=tokens"),
    "five axes": (lambda: np.save("x.npy", GOOD[:, :, None, None, None]), "x.npy", "neither maps nor tokens"),
    "a number": (lambda: np.save("x.npy", np.float32(1)), "x.npy", "holds no images"),
    "other counts within": (lambda: save("x.npz", a=GOOD, b=GOOD[:9]), "x.npz", "a has 40 images, b 9"),
    "few ids": (lambda: save("x.npz", a=GOOD, ids=ids_of(9)), "x.npz", "has 9 ids for 40 images"),
    "an id twice": (lambda: save("x.npz", a=GOOD, ids=np.repeat(ids_of(20), 2)), "x.npz", "is there twice"),
    "ids of numbers with points": (
        lambda: save("x.npz", a=GOOD, ids=np.arange(40.0)),
        "x.npz",
        "ids are texts or whole",
    ),
    "only ids": (lambda: save("x.npz", ids=ids_of()), "x.npz", "holds no layer beside ids"),
    "a cut npy": (lambda: (np.save("x.npy", GOOD), cut("x.npy", 300)), "x.npy", "is damaged, or no .npy"),
    "a head of 4 GB": (
        lambda: Path("x.npy").write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
        "x.npy",
        "x.npy is damaged, or",
    ),
    "a cut npz": (lambda: (save("x.npz", x=GOOD), cut("x.npz", 300)), "x.npz", "is damaged, or no .npz"),
    "an npz whose head promises more": (lying_zip, "x.npz", "x.npz is damaged, or no .npz"),
    "a cut safetensors": (cut_safetensors, "x.safetensors", "promises other bytes"),
    "a long head": (
        header("F32", [4, 4], [0, 64], length=10**15),
        "x.safetensors",
        "its head would be 1000000000000000",
    ),
    "offsets beyond the end": (header("F32", [4, 4], [64, 128]), "x.safetensors", "promises other bytes"),
    "another shape": (header("F32", [4, 5], [0, 64]), "x.safetensors", "promises other bytes than are there"),
    "a negative shape": (header("F32", [-4, -4], [0, 64]), "x.safetensors", "promises other bytes than are there"),
    "a type that is a number": (header("1e+308", [4, 4], [0, 64]), "x.safetensors", "holds 1e+308 values"),
    "an unknown type": (header("F8_E4M3", [8, 8], [0, 64]), "x.safetensors", "holds F8_E4M3 values"),
    "a name that torch needs": (lambda: save("x.npz", training=GOOD), "x.npz", "no layer can have the name 'training'"),
    "an empty part of a name": (lambda: save("x.npz", **{"a..b": GOOD}), "x.npz", "no layer can have the name 'a..b'"),
    "a head without end": (
        lambda: Path("x.safetensors").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000),
        "x.safetensors",
        "is damaged, or no .safetensors",
    ),
    "NaN": (lambda: np.save("x.npy", np.where(GOOD > 2, np.nan, GOOD)), "x.npy", "NaN or infinite values"),
    "beyond float32": (
        lambda: np.save("x.npy", 1e300 * GOOD.astype(float)),
        "x.npy",
        "x.npy: values beyond those of float32",
    ),
    "a size behind the ?": (lambda: np.save("x.npy", GOOD), "x.npy?size=3", "size says nothing of saved activations"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, spec, message = BAD[case]
    make()
    np.save("good.npy", GOOD)
    with pytest.raises(SystemExit, match="2"):
        compare_nets.main([f"features:{spec}", "features:good.npy", "all", "good", "none", "cka"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and re.search(re.escape(message), lines[0])
    assert not list(Path("results").rglob("*.pkl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["features:x.npy", "features:few.npy", "x", "few", "none", "cka"], "few.npy has 9 images, x.npy 40"),
        (["features:x.npy", DIGITS[0], "x", "bn3", "digits", "cka"], "x.npy has 40 images, digits (val) 359"),
        (
            ["features:i.npz", "features:j.npz", "a", "a", "none", "cka"],
            "j.npz has no image 'image 0', which i.npz has",
        ),
        (["features:x.npy", "features:x.npy", "x", "x", "digits", "cka"], "say none in the place of digits"),
        (["features:x.npy", DIGITS[0], "x", "bn3", "none", "cka"], "name it in the place of none"),
        (["features:x.npy", "features:x.npy", "x", "x", "none", "cka", "--image-size", "8"], "two files see none"),
        ([*DIGITS, "bn3", "bn3", "none", "cka"], "none stands for a data set where both sides are files"),
        (["features:x.npy", "features:x.npy", "y", "x", "none", "cka"], "has no layer 'y'"),
        (["features:x.npy", "features:x.npy", "x", "x", "none", "jsd"], "not logits"),
    ],
)
def test_sides_that_do_not_fit_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", GOOD)
    np.save("few.npy", GOOD[:9])
    save("i.npz", a=GOOD, ids=ids_of())
    save("j.npz", a=GOOD, ids=np.array([f"other {number}" for number in range(IMAGES)]))
    with pytest.raises(SystemExit, match="2"):
        compare_nets.main(words)
    assert message in capsys.readouterr().err


def test_labels_follow_their_images_wherever_they_stand() -> None:
    """Labels of the second file, whose images are in another order; and groups of images that come class by class."""
    random = np.random.default_rng(4)
    x, y = activations()
    first, second = random.normal(size=(2, IMAGES, 4)).astype(np.float32)
    labels, order = np.sort(np.arange(IMAGES) % 4), random.permutation(IMAGES)
    save("x.npz", layer=x, output=first, ids=ids_of())
    save("y.npz", layer=y[order], output=second[order], labels=labels[order], ids=ids_of()[order])
    words = ["features:x.npz", "features:y.npz", "layer", "layer", "none"]
    expected = abs((first.argmax(1) == labels).mean() - (second.argmax(1) == labels).mean())
    assert values(*words, "abs_acc_diff") == pytest.approx([expected])
    save("z.npz", layer=y, output=second, labels=labels, ids=ids_of())
    grouped = values("features:x.npz", "features:z.npz", *words[2:], "cka", "-g", "10")
    assert values(*words, "cka", "-g", "10") == pytest.approx(grouped, abs=1e-6)
    assert grouped != pytest.approx(values("features:x.npz", "features:z.npz", *words[2:], "cka"))


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED") or not Path("/proc/self/status").exists(), reason="of Linux")
@pytest.mark.parametrize("kind", ["npy", "safetensors", "npz"])
def test_what_was_read_does_not_stay_in_memory(kind: str) -> None:
    """A file of 256 MB, most of it a hole, read batch by batch."""
    images, width = 65_536, 1024
    if kind == "npy":
        with Path("x.npy").open("wb") as file:
            about = {"descr": "<f4", "fortran_order": False, "shape": (images, width)}
            np.lib.format.write_array_header_1_0(file, about)
            file.truncate(file.tell() + 4 * images * width)
    elif kind == "npz":
        save("x.npz", x=np.zeros((images, width), np.float32))
    else:
        text = json.dumps({"x": {"dtype": "F32", "shape": [images, width], "data_offsets": [0, 4 * images * width]}})
        with Path("x.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text.encode())
            file.truncate(file.tell() + 4 * images * width)
    rows, before = read_features(Path(f"x.{kind}")).layers["x"].read, resident()
    for start in range(0, images, 4096):
        assert not rows(slice(start, start + 4096)).any()
    assert resident() - before < 64e6


def resident() -> float:
    """Bytes of this process that are in memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return 1024.0 * int(line.split()[1])
