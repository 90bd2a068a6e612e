"""No front at all: activations that say the class of an image, and nothing else about it."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from src.cutting.layout import Shape
from src.dataset.split import MARKS

NOISE = 0.1  # its standard deviation


class LabelFront:
    """One centre a class and channel, uniform in [0, 1] and alike at all positions, plus noise that is the image's own.

    Images are those of a `MarkedSplit`, whose last channels say label and place. What is drawn follows from the name of
    a layer and the place of an image alone.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._centres: dict[str, Tensor] = {}

    def outputs(self, shapes: Mapping[str, Shape], images: Tensor) -> dict[str, Tensor]:
        """Activations of layers of these shapes, (n, channels, ...), for marked images."""
        label, place = (marks.round().long() for marks in images[:, -MARKS:, 0, 0].T)
        return {layer: self._output(layer, shape, label, place) for layer, shape in shapes.items()}

    def _output(self, layer: str, shape: Shape, label: Tensor, place: Tensor) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(f"labels {layer}".encode()).digest()[:4], "big")
        if layer not in self._centres:
            self._centres[layer] = torch.rand(self.classes, shape[0], generator=Generator().manual_seed(seed))
        noise = [torch.randn(shape, generator=Generator().manual_seed((seed << 26) + one)) for one in place.tolist()]
        centres = self._centres[layer].to(label.device)[label]
        return centres.view(*centres.shape, *[1] * (len(shape) - 1)) + NOISE * torch.stack(noise).to(label.device)
