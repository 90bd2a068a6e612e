"""pip and conda ask for the same packages with the same bounds."""

import re

import pytest

from tests.paths import ROOT

# What conda-forge calls differently, and what only conda has to name.
PIP_NAMES = {"pytorch": "torch"}
CONDA_ONLY = {"python", "pip"}


def _bounds(lines: list[str]) -> dict[str, str]:
    """Package -> bound, such as {"torch": ">=2.6"}; a line of another shape is an error."""
    bounds = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)([<>=~!][^;\s]*)?(\s*;.*)?", line)
        assert match, line
        assert match[1] not in bounds, f"{match[1]} is named twice"
        bounds[match[1]] = match[2] or ""
    return bounds


def _lines(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


def _requirements(name: str) -> dict[str, str]:
    return _bounds([line for line in _lines(name) if not line.startswith("-r ")])


def _environment() -> dict[str, str]:
    # Our file is flat: the dependencies are its last list.
    _, dependencies = "\n".join(_lines("environment.yml")).split("dependencies:\n")
    return _bounds([line.removeprefix("- ") for line in dependencies.splitlines()])


def test_environment_has_the_bounds_of_the_requirements():
    conda = {PIP_NAMES.get(name, name): bound for name, bound in _environment().items() if name not in CONDA_ONLY}
    assert conda == _requirements("requirements.txt") | _requirements("requirements-plots.txt")


def test_python_of_the_environment_is_that_of_the_project():
    required = re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert required and _environment()["python"] == required[1]


def test_environment_names_one_channel():
    lines = _lines("environment.yml")
    channels = lines[lines.index("channels:") + 1 : lines.index("dependencies:")]
    assert channels == ["- conda-forge", "- nodefaults"]


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_every_requirement_has_a_bound(name: str):
    assert all(_requirements(name).values())


def test_developers_get_what_users_get():
    assert {f"-r requirements{kind}.txt" for kind in ("", "-plots", "-nets", "-studies", "-docs")} <= set(
        _lines("requirements-dev.txt")
    )
