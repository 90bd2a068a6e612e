"""The README names every option that the scripts have, and its commands run."""

import argparse
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src.dataset import Split, load_split
from src.networks import presentation as on_data
from tests.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (\w+)\.py (.*)$", README, re.MULTILINE)
SECTIONS = {
    "layer_info": "Look at an architecture",
    "train_model": "Train a network",
    "stitch_nets": "Stitch two networks",
    "eval_net": "Evaluate",
    "eval_stitch": "Evaluate",
    "compare_nets": "Compare representations",
    "compare_frank_m2": "Compare representations",
}
SCRIPTS = tuple(SECTIONS)
IMAGES = 300
SHORTER = {
    "compare_nets": ["--run-name", "c", "--overwrite"],
    "train_model": ["-e", "1", "--overwrite"],
    "stitch_nets": ["-e", "1", "--overwrite"],
}


def options_of(script: str, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], Any]:
    """The names of each option of a script with its default; None where that is decided later."""
    parsers = []

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args([])
    (parser,) = parsers
    return {
        tuple(action.option_strings): None if action.default is False else action.default
        for action in parser._actions
        if action.option_strings and "--help" not in action.option_strings
    }


def documented_options(section: str, script: str) -> dict[str, tuple[str, str]]:
    """{name of an option: (row, default)} of a section's table, without rows that are marked as another script's."""
    text = re.split(r"^## ", README, flags=re.MULTILINE)
    (body,) = [part for part in text if part.startswith(f"{section}\n")]
    options = {}
    for row in re.findall(r"^\| (`-.*) \|$", body, re.MULTILINE):
        names, meaning, default = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
        whose = re.match(r"\(`(\w+)\.py`\)", meaning)
        if whose is None or whose[1] == script:
            options |= {name: (row, default) for name in re.findall(r"`(--?[\w-]+)`", names)}
    return options


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_tables_of_the_readme_hold_every_option_with_its_default(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(script, monkeypatch)
    own, common = documented_options(SECTIONS[script], script), documented_options("Options of all scripts", script)
    assert {name for names in options for name in names} == own.keys() | common.keys()
    for names, default in options.items():
        (documented,) = {(common | own)[name] for name in names}
        if isinstance(default, int | float):
            assert float(documented[1]) == default, documented
        elif default is not None:
            assert documented[1].rstrip("/") == str(default), documented
        else:
            assert not re.fullmatch(r"[\d.e-]+", documented[1]), documented


def test_the_readme_runs_every_script() -> None:
    assert {script for script, _ in COMMANDS} == set(SCRIPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as after `make demo`: the shipped weights and the demo's result."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "model_weights").symlink_to(ROOT / "model_weights")
    demo = re.findall(r"stitch_nets\.py \$\(DEMO\) (.*)", (ROOT / "Makefile").read_text())[0]
    weights = re.findall(r"^DEMO := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        importlib.import_module("stitch_nets").main([*shlex.split(f"{weights} {demo}"), "-e", "1"])
        for name, code in re.findall(r"`(\w+\.py)`[^`]*```python\n(.*?)```", README, re.DOTALL):
            Path(name).write_text(code)
        runpy.run_path("images.py")
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands see few images of a data set: that they run is asked here, of all images elsewhere what they find."""

    def some(*arguments: Any, **options: Any) -> Split:
        split = load_split(*arguments, **options)
        return split.take(torch.arange(IMAGES)) if len(split) > IMAGES else split

    monkeypatch.setattr(on_data, "load_split", some)


def marked(script: str, arguments: str) -> object:
    """A command with the mark `data` where it needs a data set that is not embedded; skipped without its library."""
    needs_data = "cifar10" in arguments.lower() and script != "train_model"
    marks = [pytest.mark.data] if needs_data else []
    if "timm:" in arguments and not importlib.util.find_spec("timm"):
        marks.append(pytest.mark.skip(reason="timm is not installed"))
    return pytest.param(script, arguments, marks=marks)


@pytest.mark.parametrize(("script", "arguments"), [marked(*command) for command in COMMANDS])
def test_the_command_runs(script: str, arguments: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    if script == "train_model":
        arguments = arguments.replace("cifar10", "digits")  # the same code, in seconds
    shorter = SHORTER.get(script, [])
    if script == "stitch_nets" and "cifar10" in arguments.lower():
        shorter = ["-e", "0", "--overwrite"]  # epochs run with the digits already
    importlib.import_module(script).main([*shlex.split(arguments), *shorter])


def test_the_table_of_the_sweep_is_shown(folder: Path) -> None:
    (sweep,) = [arguments for script, arguments in COMMANDS if "--run-name sweep" in arguments]
    (script,) = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        importlib.import_module("stitch_nets").main([*shlex.split(sweep), *SHORTER["stitch_nets"]])
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=folder, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    layers = shlex.split(sweep)[2].split(",")
    assert [row.split()[1] for row in done.stdout.splitlines()[-len(layers) :]] == layers
