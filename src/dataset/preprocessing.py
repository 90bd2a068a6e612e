"""What a network does to images before its first layer: size, mean and standard deviation are its own."""

import copy
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from src.core.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
RESIZES = ("crop", "squash")
SHORTER = 8 / 7  # sides: 256 for 224
ORDERS = ("rgb", "bgr")
LUMA = (0.299, 0.587, 0.114)  # brightness of red, green and blue: ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Images (n, channels, h, w) in 0..255 become float32 (n, channels, size, size), normalised, channels last.

    `mean` and `std` are of pixels scaled to 0..1, a value a channel. Images of another size are interpolated first,
    grey ones shown three times to a network of three channels, and of colour ones the brightness to one of one channel.
    `order` is that of its colours, and of `mean` and `std`. `resize` and `shorter` are asked where image files are
    decoded: the shorter side is brought to `shorter` sizes, or both sides are, and the middle is taken.
    Raises UserError for numbers that cannot normalise anything.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    resize: str = "crop"
    shorter: float = SHORTER
    order: str = "rgb"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"image size {self.size} is not positive")
        if len(self.mean) != len(self.std):
            raise UserError(f"mean {self.mean} and std {self.std} differ in their number of channels")
        if not all(0 < value < float("inf") for value in self.std):
            raise UserError(f"std {self.std} is not positive")
        if not all(abs(value) < float("inf") for value in self.mean):
            raise UserError(f"mean {self.mean} is not finite")
        choices = {"interpolation": INTERPOLATIONS, "resize": RESIZES, "order": ORDERS}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name} {value!r} is none of {', '.join(known)}")
        if not 1 <= self.shorter < float("inf"):
            raise UserError(f"shorter side {self.shorter} is not at least the size, 1")
        if self.order != "rgb" and self.channels != 3:
            raise UserError(f"images of {self.channels} channels have no order of colours")

    @property
    def parts(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def rule(self) -> tuple[str, float, str]:
        """How image files are to be decoded."""
        return self.resize, self.shorter, self.interpolation

    def facts(self) -> dict[str, Any]:
        """All of it by name; what came later than files and results that are still read only where it is not usual."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        always = ("size", "mean", "std", "interpolation")
        return {name: value for name, (value, usual) in values.items() if name in always or value != usual}

    def of_pixels(self) -> dict[str, Any]:
        """What is done to images of one size: `facts` without what decodes files."""
        return {name: value for name, value in self.facts().items() if name not in ("resize", "shorter")}

    @classmethod
    def from_facts(cls, record: Any) -> "Preprocessing":
        """The inverse of `facts`, also where these come out of a file; KeyError, TypeError or ValueError for others."""
        numbers = {"mean": tuple(map(float, record["mean"])), "std": tuple(map(float, record["std"]))}
        needed = {"size": int(record["size"]), "interpolation": record["interpolation"]}
        later = [field.name for field in fields(cls) if field.default is not MISSING and field.name not in needed]
        return cls(**numbers, **needed, **{name: record[name] for name in later if name in record})

    @property
    def channels(self) -> int:
        return len(self.mean)

    def __call__(self, images: Tensor) -> Tensor:
        """Images as the network sees them, a copy on their own device."""
        numbers = _on((self.mean, self.std), images.device)
        mean, std = (values.view(1, -1, 1, 1) * 255 for values in numbers)
        # a channel after the other while each has its own numbers, which takes long runs of them; then channels last,
        # the layout in which convolutions are fastest, on processors and on GPUs
        images = self._coloured(self._resized(images.to(dtype=torch.float32, copy=True)))
        images = (images if self.order == "rgb" else images.flip(1)).sub_(mean).div_(std)
        return images.to(memory_format=torch.channels_last, copy=True)

    def _coloured(self, images: Tensor) -> Tensor:
        given = images.shape[1]
        if given == self.channels:
            return images
        if given == 1:
            return images.repeat(1, self.channels, 1, 1)
        if (given, self.channels) != (3, 1):
            raise UserError(f"images of {given} channels cannot be shown to a network of {self.channels}")
        weights = _on(LUMA, images.device).view(1, 3, 1, 1)
        return (images * weights).sum(1, keepdim=True)

    def _resized(self, images: Tensor) -> Tensor:
        if images.shape[2:] == (self.size, self.size):
            return images
        if self.interpolation == "nearest":  # as libraries of images understand it, not as torch's `nearest` does
            return F.interpolate(images, size=(self.size, self.size), mode="nearest-exact")
        options = {"antialias": True, "align_corners": False}
        images = F.interpolate(images, size=(self.size, self.size), mode=self.interpolation, **options)
        return images.clamp_(0, 255)  # bicubic overshoots


def _on(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Constants on a device: a GPU keeps them, so that no step need copy them, and one can be recorded."""
    if device.type == "cuda" and torch.cuda.is_initialized():
        return _kept(values, device)
    return torch.tensor(values).to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _kept(values: tuple[Any, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # others may want gradients of what they do with them
        return torch.tensor(values).to(device)


def resize_text(resize: str, shorter: float, interpolation: str, size: int) -> str:
    """How image files are decoded, in words."""
    longer = round(size * shorter)
    sides = f"both sides to {longer}" if resize == "squash" else f"the shorter side to {longer}"
    return f"{resize}, {sides}" + f", the middle {size}" * (longer != size or resize == "crop") + f", {interpolation}"


def wrap_preprocessing(
    network: nn.Module, preprocessing: Preprocessing | None = None, order: tuple[int, ...] | None = None
) -> nn.Module:
    """The network for images in 0..255, which it preprocesses itself, and with its classes in another order.

    `order` says which of its logits come first, second ...; None leaves images or logits as they are. Its layers and
    their names are the network's: a shallow copy of a class of its own, so that it can be cut like the network.
    """
    before = (_preprocess, preprocessing.parts) if preprocessing else None
    return _between(network, before, (_reordered, order) if order else None)


def for_half(network: nn.Module, half: int) -> nn.Module:
    """The network for images of twice its channels, of which it sees the first (0) or the second (1) half.

    A shallow copy like `wrap_preprocessing`.
    """
    return _between(network, (_half, half), None)


def without_last(network: nn.Module, count: int) -> nn.Module:
    """The network for images of so many more channels, which it does not see. A shallow copy, likewise."""
    return _between(network, (_first, count), None)


def _between(network: nn.Module, before: tuple[Any, Any] | None, after: tuple[Any, Any] | None) -> nn.Module:
    """A shallow copy between functions of what comes in and what goes out, each with what it is told beside that."""
    kind = type(network)

    def forward(self: nn.Module, images: Any) -> Any:
        return _applied(after, kind.forward(self, _applied(before, images)))

    copied = copy.copy(network)
    copied.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return copied


def _applied(step: tuple[Any, Any] | None, values: Any) -> Any:
    if step is None:
        return values
    function, how = step
    if isinstance(values, fx.Proxy):  # one step of the graph, for it may ask for the size of its images
        return values.tracer.create_proxy("call_function", function, (values, how), {})
    return function(values, how)


def _preprocess(images: Tensor, parts: tuple[Any, ...]) -> Tensor:
    return Preprocessing(*parts)(images)


def _reordered(logits: Tensor, order: tuple[int, ...]) -> Tensor:
    return logits[:, list(order)]


def _first(images: Tensor, count: int) -> Tensor:
    return images[:, :-count].contiguous(memory_format=torch.channels_last)


def _half(images: Tensor, half: int) -> Tensor:
    return images.chunk(2, 1)[half].contiguous(memory_format=torch.channels_last)
