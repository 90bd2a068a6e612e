"""Networks that a function of the user's own Python file returns."""

import contextlib
import inspect
import sys

import torch
from torch import nn

from src.core.errors import UserError, first_line
from src.core.python_files import digest_of, function_of, split_name
from src.networks.sources.library import LibraryModel, Source


def build(name: str, *, channels: int, classes: int | None, size: int | None) -> LibraryModel:
    """What FILE.py:FUNCTION returns, given `channels`, `classes` and `size` if it takes them; the file is run.

    Raises UserError for a file or function that is not there or fails, and for what is no network.
    """
    maker = function_of(name)
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


SOURCE = Source(
    build,
    prefixed=False,
    runs=True,
    for_images=True,
    digest=digest_of,
    code=lambda name, network: f"{split_name(name)[1]} {digest_of(name)}",
    files=lambda name: [split_name(name)[0]],
)
