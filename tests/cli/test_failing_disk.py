"""A disk that fails in the middle of a read or a write: one line with the file, what is lost and what is kept.

Files below the working folder are read and written through stand-ins that count, and fail once, at the n-th operation.
"""

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare_frank_m2
import compare_nets
import eval_net
import eval_stitch
import layer_info
import stitch_nets
import train_model
from src import results
from src.core.files import NotWritten, atomic_write, naming, read_bytes
from src.core.tensor_files import parse_tensors
from studies.__main__ import main as studies
from tests.own_images import write_folder

ERRORS = (errno.EIO, errno.ESTALE, errno.EDQUOT)
STITCH = ["a3.pt", "b3.pt", "bn1", "bn1", "-b", "16", "--run-name", "run"]
STUDY = """
pairs = [["a3.pt", "b3.pt"]]

[stitch]
layers = "bn1"
epochs = 1
batch_size = 16

[compare]
layers = ["bn1", "fc1"]
metrics = ["cka", "l2"]
"""
Operation = tuple[str, str]


class File:
    """A file whose reads and writes are told beforehand."""

    def __init__(self, file: Any, tell: Callable[[str], None]) -> None:
        self._file, self._tell = file, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        self._tell("read")
        return iter(self._file)

    def __next__(self) -> Any:
        return next(self._file)

    def read(self, *size: int) -> Any:
        self._tell("read")
        return self._file.read(*size)

    def readline(self, *size: int) -> Any:
        self._tell("read")
        return self._file.readline(*size)

    def write(self, content: Any) -> int:
        self._tell("write")
        return self._file.write(content)


class Disk:
    """All files below a folder; the n-th operation on them fails with an error, none where `at` is None."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.operations, self.at, self.error = os.path.realpath(folder), [], None, errno.EIO
        self.failed: Operation = "", ""
        opened = {module: module.open for module in (io, builtins)}
        for module, real in opened.items():
            patch.setattr(module, "open", lambda file, *rest, real=real, **more: self._open(real, file, *rest, **more))
        for name in ("replace", "link"):
            real = getattr(os, name)
            patch.setattr(os, name, lambda *paths, real=real, name=name: self._move(real, name, *paths))

    def begin(self, at: int | None = None, error: int = errno.EIO) -> None:
        self.operations, self.at, self.error = [], at, error

    def tell(self, what: str, path: str, *, named: bool) -> None:
        self.operations.append((what, os.path.relpath(path, self.folder)))
        if self.at is not None and len(self.operations) == self.at + 1:
            self.failed = self.operations[-1]
            raise OSError(self.error, os.strerror(self.error), *([path] if named else []))

    def _ours(self, file: Any) -> str:
        path = os.path.realpath(file) if isinstance(file, str | os.PathLike) else ""
        return path if path.startswith(self.folder + os.sep) else ""

    def _open(self, real: Any, file: Any, *rest: Any, **more: Any) -> Any:
        if not (path := self._ours(file)):
            return real(file, *rest, **more)
        self.tell("open", path, named=True)
        return File(real(file, *rest, **more), lambda what: self.tell(what, path, named=False))

    def _move(self, real: Any, name: str, *paths: Any) -> None:
        if path := self._ours(paths[0]):
            self.tell(name, path, named=True)
        real(*paths)


@pytest.fixture
def disk(toy: Path, monkeypatch) -> Disk:
    """The toy networks, and results that some scripts read."""
    stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "0", "--run-name", "before"])
    write_folder(toy / "images")
    np.savez(toy / "arrays.npz", **_arrays())
    Path("s.toml").write_text(STUDY)
    studies(["worker", "s.toml", "--shard", "1/1", "--device", "cpu", "-o", "made"])
    return Disk(toy, monkeypatch)


def _arrays() -> Any:
    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 4
    return {"x_train": images, "y_train": labels, "x_val": images, "y_val": labels, "classes": np.array(list("abcd"))}


SAVED = ["results/before/bn1-bn1.pkl", "after", "-b", "16", "--run-name", "run"]
WORK = ["worker", "s.toml", "--shard", "1/1", "--device", "cpu"]
COMMANDS: dict[str, tuple[Callable[[list[str]], Any], list[str]]] = {
    "layer_info": (layer_info.main, ["a3.pt"]),
    "eval_net": (eval_net.main, ["a3.pt", "--run-name", "run"]),
    "eval_net, arrays": (eval_net.main, ["a3.pt", "-d", "arrays:arrays.npz", "--run-name", "run"]),
    "train_model": (
        train_model.main,
        ["-m", "toy_w3", "-d", "toy", "-e", "3", "-b", "16", "-s", "2", "--run-name", "run"],
    ),
    "train_model, cache": (
        train_model.main,
        [
            "-m",
            "toy_w3",
            "-d",
            "folder:images",
            "-e",
            "2",
            "-b",
            "16",
            "--cache",
            "c",
            "--num-workers",
            "0",
            "--run-name",
            "run",
        ],
    ),
    "stitch_nets": (stitch_nets.main, [*STITCH, "-e", "2"]),
    "stitch_nets, several": (stitch_nets.main, [*STITCH, "-e", "2", "-i", "ps_inv,random"]),
    "eval_stitch": (eval_stitch.main, SAVED),
    "compare_frank_m2": (compare_frank_m2.main, [*SAVED[:2], "l2", *SAVED[2:]]),
    "compare_nets": (compare_nets.main, ["a3.pt", "b3.pt", "bn1", "bn1", "toy", "cka", "--run-name", "run"]),
    "studies": (studies, WORK),
    "studies, table": (studies, ["table", "s.toml", "-o", "made"]),
    "studies, report": (studies, ["report", "s.toml", "-o", "made"]),
}
MADE = ("results/run", "snapshots", "c", "results/s")


def chosen(operations: list[Operation]) -> list[int]:
    """The first operation of each kind on each kind of file, and the last of all."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for number, (what, path) in enumerate(operations):
        kinds.setdefault((what, Path(path).suffix), []).append(number)
    return sorted({*(numbers[0] for numbers in kinds.values()), len(operations) - 1})


def clear() -> None:
    for folder in MADE:
        shutil.rmtree(folder, ignore_errors=True)


def whole(folder: Path) -> None:
    """Every result and weight file is whole, and every log ends with its line."""
    for path in folder.rglob("*"):
        if path.name.startswith("."):
            continue
        if path.suffix == ".pkl":
            results.read(path)
        elif path.suffix == ".pt":
            parse_tensors(path.read_bytes())
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n")


# Pillow leaves the file that it could not read to the collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_failing_disk_is_one_line_and_the_next_run_goes_on(name: str, disk: Disk, capsys, monkeypatch) -> None:
    monkeypatch.setattr("src.studies.runner.pause_after", lambda deaths: 0.0)
    script, command = COMMANDS[name]
    clear()
    disk.begin()
    script(command)
    operations, lines = disk.operations, []
    for turn, number in enumerate(chosen(operations)):
        clear()
        error = ERRORS[turn % len(ERRORS)]
        disk.begin(number, error)
        capsys.readouterr()
        try:
            script(command)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        disk.begin()
        said = capsys.readouterr().err
        ends = [line for line in said.splitlines() if line.startswith("error: ")]
        where = f"{name}: {disk.failed}: {said}"
        assert (code, len(ends)) in ((0, 0), (2, 1)) and "Traceback" not in said, where
        whole(Path(disk.folder))
        if ends:
            lines.append(ends[0])
            assert os.strerror(error) in ends[0], where
            assert "; nothing is lost; " in ends[0] or "; this file is lost, those before it are whole; " in ends[0], (
                where
            )
            file = ends[0].split(f"{os.strerror(error)}: ")[1].split(";")[0]
            assert Path(file).suffix in Path(disk.failed[1]).name, where
        if code or name == "studies":
            script([*command, *(option for option in ("--resume", "--overwrite") if option in "".join(ends))])
        assert not [path for path in Path(disk.folder).rglob(".*") if path.suffix in (".tmp", ".lock")], where
    assert lines, operations


def test_reads_and_writes_name_their_file(tmp_path: Path, disk: Disk) -> None:
    (disk_file := Path(disk.folder) / "x.bin").write_bytes(b"abc")
    disk.begin(1, errno.ESTALE)
    with pytest.raises(OSError, match="x.bin") as caught:
        read_bytes(disk_file)
    assert caught.value.errno == errno.ESTALE and caught.value.filename == str(disk_file)
    disk.begin(1, errno.EIO)
    with pytest.raises(NotWritten, match="x.bin"), atomic_write(disk_file) as file:
        file.write(b"new")
    disk.begin()
    assert disk_file.read_bytes() == b"abc" and not list(disk_file.parent.glob(".x.bin*"))
    with pytest.raises(FileNotFoundError, match="absent"), naming("x"):
        Path("absent").read_bytes()
