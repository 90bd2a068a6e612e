"""What a network does to images before its first layer: size, mean and standard deviation are its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Images (n, channels, h, w) in 0..255 become float32 (n, channels, size, size), normalised, channels last.

    `mean` and `std` are of pixels scaled to 0..1, a value a channel. Images of another size are interpolated first.
    Raises ValueError for numbers that cannot normalise anything.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"image size {self.size} is not positive")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} differ in their number of channels")
        if not all(0 < value < float("inf") for value in self.std):
            raise ValueError(f"std {self.std} is not positive")
        if not all(abs(value) < float("inf") for value in self.mean):
            raise ValueError(f"mean {self.mean} is not finite")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is none of {', '.join(INTERPOLATIONS)}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def on(self, device: torch.device | str) -> Callable[[Tensor], Tensor]:
        """The function that does it, with its numbers on the device of the images."""
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) * 255 for v in (self.mean, self.std))

        def preprocess(images: Tensor) -> Tensor:
            # a channel after the other while each has its own numbers, which takes long runs of them; then channels
            # last, the layout in which convolutions are fastest, on processors and on GPUs
            images = self._resized(images.to(dtype=torch.float32, copy=True)).sub_(mean).div_(std)
            return images.to(memory_format=torch.channels_last, copy=True)

        return preprocess

    def _resized(self, images: Tensor) -> Tensor:
        if images.shape[2:] == (self.size, self.size):
            return images
        options = {} if self.interpolation == "nearest" else {"antialias": True, "align_corners": False}
        images = F.interpolate(images, size=(self.size, self.size), mode=self.interpolation, **options)
        return images.clamp_(0, 255)  # bicubic overshoots


class Seeing(nn.Module):
    """A part of a network behind the network's own preprocessing; its last argument is images in 0..255."""

    def __init__(self, part: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        super().__init__()
        self.part = part
        self.preprocess = preprocessing.on(device)

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.part(*arguments[:-1], self.preprocess(arguments[-1]))
