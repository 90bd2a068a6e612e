"""Two networks cut open, and the network sewn from the front of one and the end of the other."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.cut import head, tail
from src.frozen import freeze
from src.stitching.geometry import Geometry
from src.stitching.layer import StitchLayer


@dataclass(frozen=True, slots=True)
class Pair:
    """Both networks cut at the layers of a stitch, frozen and in eval mode.

    `front_head` and `end_head` map images to the layer's output, `end_tail` maps (the end layer's output, images) to
    logits.
    """

    front_head: nn.Module
    end_head: nn.Module
    end_tail: nn.Module
    geometry: Geometry

    def stitched(self, stitch: StitchLayer) -> "StitchedNetwork":
        return StitchedNetwork(self.front_head, stitch, self.end_tail)


def cut_pair(
    front: nn.Module,
    end: nn.Module,
    front_layer: str,
    end_layer: str,
    sample: Tensor,
    *,
    flatten: bool = False,
    resize: bool = False,
) -> Pair:
    """Cut two networks, each at its layer, and freeze the parts; `sample` is a batch of images that tells the shapes.

    Raises ValueError for unknown layers and for layers whose outputs cannot be stitched.
    """
    front_head, end_head = freeze(head(front, front_layer)), freeze(head(end, end_layer))
    end_tail = freeze(tail(end, end_layer))
    with torch.no_grad():
        front_shape, end_shape = (tuple(part(sample).shape[1:]) for part in (front_head, end_head))
    geometry = Geometry(front_shape, end_shape, flatten=flatten, resize=resize)
    return Pair(front_head, end_head, end_tail, geometry)


class StitchedNetwork(nn.Module):
    """images -> front head -> stitch -> end tail -> logits; only the stitch learns.

    The donors stay in eval mode, also inside train(): their BatchNorm statistics belong to them.
    """

    def __init__(self, front_head: nn.Module, stitch: StitchLayer, end_tail: nn.Module) -> None:
        super().__init__()
        self.front_head = front_head
        self.stitch = stitch
        self.end_tail = end_tail
        self.train(self.training)

    def train(self, mode: bool = True) -> "StitchedNetwork":
        super().train(mode)
        self.front_head.eval()
        self.end_tail.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.end_tail(self.stitch(self.front_head(images)), images)
