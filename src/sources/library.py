"""What the sources share: an architecture of a library, and the one-line ends of what can go wrong with it."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, nn

from src.preprocessing import Preprocessing

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A fresh network with what its source says of it; `preprocessing` is None where that is nothing."""

    network: nn.Module
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where architectures come from.

    `build(name, channels=, classes=, size=)` makes a fresh one, drawn from torch's global generator; `classes` and
    `size` are None where the source's own number is wanted. `published(name)` gives the state dict that the source
    itself offers under `word`.
    """

    build: Callable[..., Architecture]
    word: str = ""
    published: Callable[[str], State] | None = None


def require(library: str) -> ModuleType:
    """Import a library of an extra; ValueError, with the command that installs it, where it is absent."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ValueError(f"{library} is not installed: pip install -r requirements-nets.txt") from None


def unknown(library: str, name: str, names: Iterable[str]) -> ValueError:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return ValueError(f"{library} has no classifier {name!r}" + (f"; close: {', '.join(close)}" if close else ""))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")
