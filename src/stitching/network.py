"""Two networks cut open, and the network sewn from the front of one and the end of the other."""

from dataclasses import dataclass

from torch import Tensor, nn

from src.cutting.channel_axis import Output, find_outputs, layouts_of, require_fit
from src.cutting.freeze import freeze
from src.cutting.parts import head, tail
from src.stitching.geometry import Geometry
from src.stitching.layer import Stitch


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

    def stitched(self, stitch: Stitch) -> "StitchedNetwork":
        return StitchedNetwork(self.front_head, stitch, self.end_tail)


def pair_geometry(front: Output, end: Output, *, flatten: bool = False, resize: bool = False) -> Geometry:
    """How what one layer gives is mapped to what another gives; raises UserError where it cannot be."""
    shapes = front.canonical, end.canonical
    return Geometry(*shapes, flatten=flatten, resize=resize, front_layout=front.known, end_layout=end.known)


def cut_pair(
    front: nn.Module,
    end: nn.Module,
    front_layer: str,
    end_layer: str,
    sample: Tensor,
    *,
    flatten: bool = False,
    resize: bool = False,
    layouts: tuple[str | None, str | None] = (None, None),
) -> Pair:
    """Cut two networks, each at its layer, and freeze the parts; `sample` is a batch of images that tells the shapes.

    `layouts` are those asked for, of the front and of the end network. Raises UserError for unknown layers and for
    layers whose outputs cannot be stitched.
    """
    fronts, ends = (
        find_outputs(network, [layer], sample, asked)
        for network, layer, asked in zip((front, end), (front_layer, end_layer), layouts, strict=True)
    )
    require_fit(layouts[0], fronts)
    require_fit(layouts[1], ends)
    geometry = pair_geometry(fronts[front_layer], ends[end_layer], flatten=flatten, resize=resize)
    front_head = freeze(head(front, front_layer, layouts_of(fronts)))
    end_head = freeze(head(end, end_layer, layouts_of(ends)))
    return Pair(front_head, end_head, freeze(tail(end, end_layer, layouts=layouts_of(ends))), geometry)


class StitchedNetwork(nn.Module):
    """images -> front head -> stitch -> end tail -> logits; only the stitch learns.

    The donors stay in eval mode, also inside train(): their BatchNorm statistics belong to them.
    """

    def __init__(self, front_head: nn.Module, stitch: Stitch, end_tail: nn.Module) -> None:
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
