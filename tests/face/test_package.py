"""pip makes a package of its own name: beside a `src` of the user's, which neither shadows nor is shadowed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from config.package import renamed
from tests.paths import ROOT

pytest.importorskip("setuptools", minversion="77")
PROGRAM = """
import sys
import src
import frankenstein
from src.core import MINE
heavy = [name for name in sys.modules if name.partition(".")[0] in ("torch", "numpy", "pandas")]
from frankenstein import compare, load_results, open_network, sew
from frankenstein.dataset import load_split
value = compare([[1.0, 0], [0, 1], [2, 1]], [[2.0, 0], [0, 2], [4, 2]]).values["cka"]
names = sorted(name for name in sys.modules if name == "src" or name.startswith("src."))
print(src.__file__, frankenstein.__file__, names, heavy, round(value, 6), len(load_split("digits", "val")), sep="\\n")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment, in which the package is installed and what it needs is at hand."""
    home = tmp_path_factory.mktemp("fresh")
    for name in ("src", "config"):
        shutil.copytree(ROOT / name, home / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(file, home / "checkout")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(home / "venv"), "platbase": str(home / "venv")})
    Path(site, "outer.pth").write_text(sysconfig.get_path("purelib"))
    install(python, home / "checkout")
    return python


def install(python: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, *options, str(folder)], capture_output=True, text=True, timeout=300)
    assert options or done.returncode == 0, done.stderr
    return done


def test_it_lives_beside_a_src_of_the_users_own(python: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").touch()
    (tmp_path / "src" / "core.py").write_text("MINE = True\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([str(python), "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    mine, theirs, names, heavy, value, images = done.stdout.splitlines()
    assert Path(mine) == tmp_path / "src" / "__init__.py" and Path(theirs).is_relative_to(python.parents[1])
    assert (names, heavy, value, images) == ("['src', 'src.core']", "[]", "1.0", "359")


def test_an_install_that_would_not_work_is_refused(python: Path) -> None:
    done = install(python, python.parents[2] / "checkout", "--editable")
    assert done.returncode != 0 and "frankenstein cannot be installed with -e" in done.stderr


def test_only_imports_name_src() -> None:
    source = 'from src.core import x\nfrom src import results\n"""from a src\n"""\n'
    assert (
        renamed(source, "x.py")
        == 'from frankenstein.core import x\nfrom frankenstein import results\n"""from a src\n"""\n'
    )
    with pytest.raises(ValueError, match=r"x\.py: y = src\.core names src"):
        renamed("from src import core\ny = src.core\n", "x.py")


def test_nothing_dear_is_imported_before_it_is_used() -> None:
    code = "import sys, src; print(dir(src), 'torch' in sys.modules); from src import load_results; print(load_results)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    names, function = done.stdout.splitlines()
    assert all(name in names for name in ("compare", "load_results", "open_network", "sew")) and names.endswith("False")
    assert function.startswith("<function load_results")
