"""The commands of README and docs: each is understood, and those that need no download, container or cluster run."""

import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.dataset import Split, load_split
from src.networks import presentation
from studies.__main__ import parse_args as parse_studies
from tests.pages import TEXTS, blocks, commands, scripts, studies
from tests.paths import ROOT

SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
MAKEFILE = (ROOT / "Makefile").read_text()
SWEEP = "--run-name sweep"
IMAGES = 200
SHORTER = {
    "compare_nets": ["--run-name", "c", "--overwrite"],
    "train_model": ["-e", "1", "--overwrite"],
}


def test_every_command_is_understood() -> None:
    found = [(script, importlib.import_module(script).parse_args(shlex.split(words))) for script, words in scripts()]
    assert {script for script, _ in found} == SCRIPTS
    assert {parse_studies(shlex.split(words)).command for words in studies()} >= {"run", "table", "report"}


def test_every_other_command_is_there() -> None:
    for line in commands():
        for module in re.findall(r"python -m ([\w.]+)", line):
            assert importlib.util.find_spec(module), line
        for target in re.findall(r"make (\w+)", line):
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), line
        for file in re.findall(r"-[rf] (\S+\.(?:txt|yml))", line):
            assert (ROOT / file).is_file(), line


def test_modules_that_the_text_runs_are_there() -> None:
    for text in TEXTS.values():
        for module in re.findall(r"`python -m ([\w.]+)", text):
            assert importlib.util.find_spec(module), module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as after `make demo`: shipped weights, the demo's result, and what the pages tell to make."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "model_weights").symlink_to(ROOT / "model_weights")
    demo = re.findall(r"stitch_nets\.py \$\(DEMO\) (.*)", MAKEFILE)[0]
    weights = re.findall(r"^DEMO := (.*)$", MAKEFILE, re.MULTILINE)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        importlib.import_module("stitch_nets").main([*shlex.split(f"{weights} {demo}"), "-e", "1"])
        for text in TEXTS.values():
            for name, code in re.findall(r"`(\w+\.py)`[^`]*```python\n(.*?)```", text, re.DOTALL):
                Path(name).write_text(code)
        runpy.run_path("images.py")
        runpy.run_path("saved.py")
        np.save("cortex.npy", np.load("cortex.npy")[:IMAGES])  # as many as commands see of the data set here
        make = runpy.run_path("nets.py")["make"]
        for name in ("first.pt", "second.pt"):
            torch.save(make(classes=10, channels=1).state_dict(), name)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands see few images of a data set: that they run is asked here, of all images elsewhere what they find."""

    def some(*arguments: Any, **options: Any) -> Split:
        split = load_split(*arguments, **options)
        return split.take(torch.arange(IMAGES)) if len(split) > IMAGES else split

    monkeypatch.setattr(presentation, "load_split", some)


def marked(script: str, arguments: str) -> object:
    """A command with the mark `data` where it needs a data set that is not embedded; skipped without its library."""
    needs_data = "cifar10" in arguments.lower() and script != "train_model"
    marks = [pytest.mark.data] if needs_data else []
    if "timm:" in arguments and not importlib.util.find_spec("timm"):
        marks.append(pytest.mark.skip(reason="timm is not installed"))
    return pytest.param(script, arguments, marks=marks)


def run(script: str, arguments: str) -> None:
    """Run a command on few images and for one epoch; stitches of CIFAR-10 for none."""
    if script == "train_model":
        arguments = arguments.replace("cifar10", "digits")  # the same code, in seconds
    shorter = SHORTER.get(script, [])
    if script == "stitch_nets":
        epochs = "0" if "cifar10" in arguments.lower() else "1"  # epochs run with the digits already
        stages = re.search(r"-e (\d+(?:,\d+)+)", arguments)
        shorter = ["-e", re.sub(r"\d+", epochs, stages[1]) if stages else epochs, "--overwrite"]
    shorter = [*shorter, *(["--iri-steps", "2"] if " iri" in arguments else [])]
    importlib.import_module(script).main([*shlex.split(arguments), *shorter])


@pytest.mark.parametrize(
    ("script", "arguments"), [marked(*command) for command in scripts() if not command[1].endswith(SWEEP)]
)
def test_the_command_runs(script: str, arguments: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    run(script, arguments)


def test_what_is_read_of_results_is_there(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    (sweep,) = [arguments for script, arguments in scripts() if arguments.endswith(SWEEP)]
    run("stitch_nets", sweep)
    printed = {}
    for block in blocks("bash"):
        python, option, code = shlex.split(block)
        assert (python, option) == ("python", "-c")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, {})
        printed[block] = out.getvalue()
    (table,) = [text for block, text in printed.items() if "results/sweep" in block]
    (facts,) = [text for block, text in printed.items() if "results/demo" in block]
    layers = shlex.split(sweep)[2].split(",")
    assert [row.split()[1] for row in table.splitlines()[-len(layers) :]] == layers
    assert re.match(r"0?1?\.\d+ 0\.\d+ \{'value'", facts)
