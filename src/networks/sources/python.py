"""Networks that a function of the user's own Python file returns."""

import contextlib
import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.core.errors import UserError, first_line
from src.core.files import read_bytes
from src.networks.sources.library import LibraryModel, Source


def build(name: str, *, channels: int, classes: int | None, size: int | None) -> LibraryModel:
    """What FILE.py:FUNCTION returns, given `channels`, `classes` and `size` if it takes them; the file is run.

    Raises UserError for a file or function that is not there or fails, and for what is no network.
    """
    file, function = split_name(name)
    maker = _load(file, name).get(function)
    if not callable(maker):
        raise UserError(f"{file} has no function {function!r}")
    offered = {"channels": channels, "classes": classes, "size": size}
    try:
        taken = inspect.signature(maker).parameters
        given = {key: value for key, value in offered.items() if key in taken and value is not None}
        if "classes" in taken and classes is None and taken["classes"].default is inspect.Parameter.empty:
            raise _Unsaid
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            network = maker(**given)
    except _Unsaid:
        raise UserError(f"{name} takes classes; name the data set for whose classes it is with -d") from None
    except (Exception, SystemExit) as error:  # the user's own code
        raise UserError(f"{name} failed: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{name} returned TorchScript, which cannot be cut; return the module that it was made of")
    return LibraryModel(network)


class _Unsaid(Exception):
    """That nobody said how many classes there are."""


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
    module = f"_network_{digest_of(name)}"  # a name that no other module has
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


SOURCE = Source(
    build,
    prefixed=False,
    runs=True,
    for_images=True,
    digest=digest_of,
    code=lambda name, network: f"{split_name(name)[1]} {digest_of(name)}",
    files=lambda name: [split_name(name)[0]],
)
