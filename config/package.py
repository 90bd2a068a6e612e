"""How pip makes a package of src/: the same modules under a name of its own, beside whatever else is called `src`.

The modules name each other `src...`; in the copy that is installed the imports say the package's name instead.
"""

import io
import re
import shutil
import tokenize
from pathlib import Path

from setuptools.command.build_py import build_py

NAME = "frankenstein"
_IMPORT = re.compile(r"^(\s*(?:from|import) )src\b", re.MULTILINE)


class BuildPackage(build_py):
    """Copies src/ as the package; an editable install is refused, since it would find the modules by their old name."""

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit(f"{NAME} cannot be installed with -e: run scripts in this folder, or pip install .")
        shutil.rmtree(Path(self.build_lib, NAME), ignore_errors=True)  # of an earlier build, modules that are gone
        super().run()

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        made = super().build_module(module, module_file, package)
        path = Path(made[0])
        path.write_text(renamed(Path(module_file).read_text(encoding="utf-8"), module_file), encoding="utf-8")
        return made


def renamed(source: str, called: str) -> str:
    """The source of a module of `src` as one of NAME. Raises ValueError where the name stands in no plain import."""
    found = _IMPORT.sub(rf"\g<1>{NAME}", source)
    for token in tokenize.generate_tokens(io.StringIO(found).readline):
        if token.type == tokenize.NAME and token.string == "src":
            raise ValueError(f"{called}: {token.line.strip()} names src, which has another name where it is installed")
    return found
