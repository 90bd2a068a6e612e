"""The README names every option that the scripts have, and its commands run."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SCRIPTS = ("train_model", "stitch_nets", "layer_info", "compare_nets", "compare_frank_m2", "eval_net", "eval_stitch")
COMMANDS = re.findall(r"^python (\w+)\.py (.*)$", README, re.MULTILINE)
SHORTER = {
    "compare_nets": ["--run-name", "c", "--overwrite"],
    "train_model": ["-e", "1", "--overwrite"],
    "stitch_nets": ["-e", "1", "--overwrite"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_in_the_readme(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(["--help"])
    options = set(re.findall(r"(?<![\w>-])--?[a-z][\w-]*", capsys.readouterr().out.split("examples:")[0]))
    documented = set(re.findall(r"`(--?[a-z][\w-]*)`", README))
    assert options - documented <= {"-h", "--help"}
    assert f"{script}.py" in README


def test_the_readme_runs_every_script() -> None:
    assert {script for script, _ in COMMANDS} == set(SCRIPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as after `make demo`: the shipped weights and the demo's result."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "model_weights").symlink_to(REPOSITORY / "model_weights")
    demo = re.findall(r"stitch_nets\.py \$\(DEMO\) (.*)", (REPOSITORY / "Makefile").read_text())[0]
    weights = re.findall(r"^DEMO := (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        importlib.import_module("stitch_nets").main([*shlex.split(f"{weights} {demo}"), "-e", "1"])
    return folder


def marked(script: str, arguments: str) -> object:
    """A command with the mark `data` where it needs a data set that is not embedded."""
    needs_data = "cifar10" in arguments.lower() and script != "train_model"
    return pytest.param(script, arguments, marks=[pytest.mark.data] if needs_data else [])


@pytest.mark.parametrize(("script", "arguments"), [marked(*command) for command in COMMANDS])
def test_the_command_runs(script: str, arguments: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    if script == "train_model":
        arguments = arguments.replace("cifar10", "digits")  # the same code, in seconds
    importlib.import_module(script).main([*shlex.split(arguments), *SHORTER.get(script, [])])
