"""What a network is: one file an architecture, one line of MODELS each."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from src.core.errors import UserError
from src.core.text import close_to
from src.models.dense import Dense
from src.models.inceptionv1 import InceptionV1
from src.models.lenet import LeNet
from src.models.resnet20 import ResNet20
from src.models.tiny10 import NbnTiny10, Tiny10
from src.models.vit import ViT

__all__ = ["MODELS", "Architecture", "build_model", "canonical_name", "folder_name", "model_names"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A line of MODELS: the name that weight folders carry, and the constructor (channels, classes, size)."""

    folder: str
    build: Callable[..., nn.Module]


WIDTH = "<width>"
# A name with <width> stands for a family: users write a positive integer, below a million, in its place.
MODELS = {
    "lenet": Architecture("LeNet", LeNet),
    "dense": Architecture("Dense", Dense),
    "tiny10": Architecture("Tiny10", Tiny10),
    "nbn_tiny10": Architecture("NbnTiny10", NbnTiny10),
    "resnet20_w<width>": Architecture("ResNet20_w<width>", ResNet20),
    "vit_w<width>": Architecture("ViT_w<width>", ViT),
    "inceptionv1": Architecture("InceptionV1", InceptionV1),
    "inceptionv1_bn": Architecture("InceptionV1_bn", partial(InceptionV1, batch_norm=True)),
}


def model_names() -> list[str]:
    """The names that help texts show, with <width> where any positive integer goes."""
    return list(MODELS)


def _find(name: str) -> tuple[str, str]:
    """The key of MODELS and the width ("" where the architecture has none) that a name in any spelling means."""
    for key, architecture in MODELS.items():
        for spelling in (key, architecture.folder):
            pattern = re.escape(spelling).replace(re.escape(WIDTH), "([1-9][0-9]{0,5})")
            match = re.fullmatch(pattern, name, re.IGNORECASE | re.ASCII)
            if match:
                return key, match[1] if match.re.groups else ""
    raise UserError(f"unknown model {name!r}{close_to(name, model_names())}; known models: {', '.join(model_names())}")


def canonical_name(name: str) -> str:
    """The command line's name for any spelling of a model, or of its weight folder: "NbnTiny10" to "nbn_tiny10".

    Raises UserError for an unknown name.
    """
    key, width = _find(name)
    return key.replace(WIDTH, width)


def folder_name(name: str) -> str:
    """The name of a model's weight folder for any spelling of it: "resnet20_w3" to "ResNet20_w3".

    Raises UserError for an unknown name.
    """
    key, width = _find(name)
    return MODELS[key].folder.replace(WIDTH, width)


def build_model(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
    """A freshly initialised network, drawn from PyTorch's global generator.

    Images (n, channels, size, size) become logits (n, classes). Raises UserError for an unknown name, for a size that
    the architecture cannot take, and for channels or classes below 1.
    """
    key, width = _find(name)
    for what, count in (("channels", channels), ("classes", classes)):
        if count < 1:
            raise UserError(f"{what} is {count}; a network needs at least 1")
    options = {"width": int(width)} if width else {}
    return MODELS[key].build(channels=channels, classes=classes, size=size, **options)
