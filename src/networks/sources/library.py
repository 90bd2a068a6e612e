"""What the sources share: an architecture of a library, and the one-line ends of what can go wrong with it."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from src.core.errors import UserError, first_line
from src.core.text import close_to
from src.cutting.structure import in_plain_memory
from src.dataset.preprocessing import Preprocessing
from src.networks.followed import OwnProcessor

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class LibraryModel:
    """A network with what its source says of it: `preprocessing` and the names of its classes, None where nothing.

    `processor` is what the source itself does to images, which `preprocessing` is held against.
    """

    network: nn.Module
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    processor: OwnProcessor | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where architectures, or trained networks, come from.

    `build(name, channels=, classes=, size=)` makes a fresh one, drawn from torch's global generator; `classes` and
    `size` are None where the source's own number is wanted. `published(name, file)` gives the state dict that the
    source itself offers under `word`: out of the file where `cached(name)` is one, else it may be downloaded.
    `as_published(name, network, preprocessing)` is what a network with these weights does to images, where these change
    it, and `is_published(name, sha256)` says whether a file holds them.
    A source of trained networks alone has `open(name, asked=, download=)` instead, and `fresh(network)` for an
    untrained one like it.

    `prefixed`: a spec begins with the source's name and a colon. `foreign`: what it makes is not this project's.
    `runs`: it runs a file of the user's, of which `digest(name)` is the SHA-256. `for_images`: a network is made for
    the size of the images of a data set, as its source knows none. `code(name, network)` is what decides a network
    beside its weights; by default that is its name. `files(name)` are those that a name is about.
    """

    build: Callable[..., LibraryModel] | None = None
    word: str = ""
    published: Callable[[str, Path | None], State] | None = None
    cached: Callable[[str], Path | None] = lambda name: None
    open: Callable[..., LibraryModel] | None = None
    fresh: Callable[[Any], nn.Module] | None = None
    as_published: Callable[[str, nn.Module, Preprocessing], Preprocessing] = lambda name, network, eyes: eyes
    is_published: Callable[[str, str], bool] = lambda name, sha256: False
    prefixed: bool = True
    foreign: bool = True
    runs: bool = False
    for_images: bool = False
    digest: Callable[[str], str] | None = None
    code: Callable[[str, nn.Module], str | None] | None = None
    files: Callable[[str], list[Path]] = lambda name: []


class NotHere(UserError):
    """What is asked for is neither a file nor in a library's cache, and may not be downloaded."""


def require(library: str) -> ModuleType:
    """Import a library of an extra; UserError, with the command that installs it, where it is absent."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise UserError(f"{library} is not installed: pip install -r requirements-nets.txt") from None


def in_hub_folder(url: str) -> Path | None:
    """Where torch.hub keeps what it has downloaded from an address; None where it has not."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlparse(url).path).name
    return file if file.is_file() else None


def unknown(library: str, name: str, names: Iterable[str]) -> UserError:
    return UserError(f"{library} has no classifier {name!r}{close_to(name, names)}")


def check_forward(network: nn.Module, name: str, *, channels: int, size: int) -> nn.Module:
    """The network, which has taken two blank images; one that does so in plain memory alone gets them that way.

    Its mode is left as it was. Raises UserError, with the network's own reason, where it takes none.
    """
    images, was_training = torch.zeros(2, channels, size, size), network.training
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                network(images.to(memory_format=torch.channels_last, copy=True))  # as they come from the data
            except RuntimeError:
                network(images)
                in_plain_memory(network)
    except Exception as error:  # the network's own code
        raise UserError(f"{name} takes no images of {channels} x {size} x {size}: {first_line(error)}") from None
    finally:
        network.train(was_training)
    return network
