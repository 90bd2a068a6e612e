"""Functions of the user's own Python files, FILE.py:FUNCTION: who calls this runs the file."""

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.core.errors import UserError, first_line
from src.core.files import read_bytes


def function_of(name: str) -> Callable[..., Any]:
    """The function that FILE.py:FUNCTION names; the file is run, once a process.

    Raises FileNotFoundError where there is no such file, UserError where it fails or has no such function.
    """
    file, function = split_name(name)
    found = _load(file, name).get(function)
    if not callable(found):
        raise UserError(f"{file} has no function {function!r}")
    return found


def split_name(name: str) -> tuple[Path, str]:
    """FILE.py:FUNCTION as a file, with its folders, and the function's name."""
    file, _, function = name.partition(".py:")
    return Path(f"{file}.py"), function


def digest_of(name: str) -> str:
    """The SHA-256 of the file that FILE.py:FUNCTION names; raises FileNotFoundError where there is none."""
    file = split_name(name)[0]
    if not file.is_file():
        raise FileNotFoundError(f"no Python file {file}")
    return hashlib.sha256(read_bytes(file)).hexdigest()


def _load(file: Path, name: str) -> dict[str, Any]:
    module = f"_user_file_{digest_of(name)}"  # a name that no other module has
    if module in sys.modules:
        return vars(sys.modules[module])
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec and spec.loader
    loaded = sys.modules[module] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))  # what stands beside it may be imported by it
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # the user's own code
        del sys.modules[module]
        raise UserError(f"{file} cannot be run: {type(error).__name__}: {first_line(error)}") from None
    finally:
        sys.path.remove(str(file.parent.resolve()))
    return vars(loaded)
