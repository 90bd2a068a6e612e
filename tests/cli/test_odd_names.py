"""Names that are no UTF-8, and terminals that are not: everything is written, and printed with escapes."""

import importlib
import io
import json
import os
import sys
from pathlib import Path

import pytest

import compare_nets
import eval_net
from src import results
from src.cli import output
from src.networks import weight_files

ODD = os.fsdecode(b"z\xe9ro-\xff.pt")


class Terminal(io.TextIOWrapper):
    """Standard output of some encoding, as a strict terminal has it."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def odd(toy: Path) -> Path:
    content = weight_files.read_weights(Path("a3.pt"))
    assert content
    Path("a3.pt").rename(ODD)
    return toy


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("eval_net", [ODD, "-d", "toy"]),
        ("compare_nets", [ODD, "b3.pt", "conv2", "conv2", "toy", "cka", "--plot"]),
        ("stitch_nets", [ODD, "b3.pt", "conv2", "conv2", "-d", "toy", "-e", "1", "-b", "16", "--plot"]),
        ("stitch_nets", [ODD, "b3.pt", "conv1,conv2", "conv2", "-d", "toy", "-e", "0", "--resize"]),
        ("layer_info", [ODD, "-d", "toy"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[2:]),
)
def test_every_script_writes_and_prints(
    script: str, arguments: list[str], encoding: str, odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, more in (("text", []), ("json", ["--json"])):
        terminal = Terminal(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            importlib.import_module(script).main([*arguments, "--run-name", run, *more])
        assert list((odd / "results" / run).glob("*.pkl"))
        assert f"results/{run}" in terminal.text()
        if more:
            assert terminal.text().isascii()
            assert repr(ODD) in repr(json.loads(terminal.text()))
    for file in (odd / "results").rglob("*.pkl"):
        assert repr(ODD) in repr(results.read(file))


def test_a_result_is_written_before_it_is_printed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "say", lambda text: (_ for _ in ()).throw(RuntimeError("no terminal")))
    for script, arguments in (
        (compare_nets, ["a3.pt", "b3.pt", "conv2", "conv2", "toy", "cka"]),
        (eval_net, ["a3.pt", "-d", "toy"]),
        (importlib.import_module("stitch_nets"), ["a3.pt", "b3.pt", "conv1,conv2", "conv2", "-d", "toy", "-e", "0"]),
    ):
        with pytest.raises(RuntimeError, match="no terminal"):
            script.main([*arguments, "--run-name", script.__name__])
        assert list((toy / "results" / script.__name__).glob("*.pkl"))


def test_numbers_are_printed_where_they_cannot_be_written(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "results/r/x.pkl")

    monkeypatch.setattr(results, "write", fail)
    for script, arguments in (
        (compare_nets, ["a3.pt", "b3.pt", "conv2", "conv2", "toy", "cka"]),
        (importlib.import_module("stitch_nets"), ["a3.pt", "b3.pt", "conv1,conv2", "conv2", "-d", "toy", "-e", "0"]),
    ):
        with pytest.raises(SystemExit, match="2"):
            script.main([*arguments, "--run-name", "r"])
        printed = capsys.readouterr()
        assert "conv2" in printed.out
        assert printed.err.splitlines()[-1].startswith("error: No space left on device: results/r/x.pkl")
