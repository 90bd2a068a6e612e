"""Which numbers of two layers' outputs a stitch pairs: channels, features, or every position on its own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.errors import UserError
from src.cutting.layout import Layout, Shape
from src.metrics import channels_last_rows

PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the output of one layer is laid out for the affine map, and its result for another layer.

    `front_shape` and `end_shape` are (channels, height, width) or (features,), without the batch. By default the
    map acts on channels, alike at every position. `flatten`: on all numbers of an image, position by position.
    `resize`: on channels, after bilinear interpolation to the end layer's height and width. Tokens are (channels,
    tokens, 1); `resize` interpolates the grid in which they lie, and the class and register tokens before it go one to
    one: those that the front layer lacks are the mean of its patches, those that the end layer lacks are left out.
    The layouts are those of the layers' own outputs. Raises UserError, naming both shapes, where they cannot be paired
    that way.
    """

    front_shape: Shape
    end_shape: Shape
    flatten: bool = False
    resize: bool = False
    front_layout: Layout = PLAIN
    end_layout: Layout = PLAIN

    def __post_init__(self) -> None:
        shapes = f"the front layer gives {self._described('front')} and the end layer {self._described('end')}"
        if not {len(self.front_shape), len(self.end_shape)} <= {1, 3}:
            raise UserError(f"{shapes}: only (channels, height, width) or (features,) can be stitched")
        if self.flatten:
            return
        if len(self.front_shape) != len(self.end_shape):
            raise UserError(f"{shapes}: give --flatten to stitch them value by value")
        if self.front_shape[1:] != self.end_shape[1:] and not self.resize:
            raise UserError(f"{shapes}: give --flatten or --resize to stitch different heights and widths")
        if self.is_resized and any(layout.is_scattered for layout in (self.front_layout, self.end_layout)):
            raise UserError(f"{shapes}: tokens that lie in no square grid cannot be resized")

    def _described(self, side: str) -> str:
        shape, layout = getattr(self, f"{side}_shape"), getattr(self, f"{side}_layout")
        return f"{shape}" if layout.is_plain else f"{shape}, {layout}"

    @property
    def is_flat(self) -> bool:
        """Whether images are flattened; layers of plain features (n, d) have nothing to flatten."""
        return self.flatten and (len(self.front_shape) == 3 or len(self.end_shape) == 3)

    @property
    def is_resized(self) -> bool:
        """Whether the front layer's output is brought to other positions."""
        places = [(layout.grid, layout.prefix) for layout in (self.front_layout, self.end_layout)]
        differ = self.front_shape[1:] != self.end_shape[1:] or places[0] != places[1]
        return self.resize and not self.is_flat and len(self.end_shape) == 3 and differ

    @property
    def places(self) -> tuple:
        """What tells the end layer's positions apart from others."""
        return self.end_shape[1:], self.end_layout.grid, self.end_layout.prefix

    @property
    def layouts(self) -> dict[str, str]:
        """What a result says of the layouts of both sides."""
        both = {"front": (self.front_layout, self.front_shape), "end": (self.end_layout, self.end_shape)}
        return {side: str(layout) if len(shape) == 3 else "features" for side, (layout, shape) in both.items()}

    @property
    def inputs(self) -> int:
        """Columns of the matrix."""
        return _count(self.front_shape) if self.is_flat else self.front_shape[0]

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return _count(self.end_shape) if self.is_flat else self.end_shape[0]

    @property
    def is_convolution(self) -> bool:
        """Whether the matrix is stored as a 1 x 1 convolution, (out, in, 1, 1)."""
        return not self.is_flat and len(self.end_shape) == 3

    def interpolate(self, x: Tensor) -> Tensor:
        """Bring the front layer's output (n, c, h, w) to the end layer's positions, if `resize` asks for it."""
        if not self.is_resized:
            return x
        before, grid = _split(x, self.front_layout)
        size = self.end_layout.grid or self.end_shape[1:]
        placed = (
            grid if grid.shape[2:] == size else F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        )
        if self.end_layout.grid is None:
            return placed
        before = before[:, :, : self.end_layout.prefix]
        missing = self.end_layout.prefix - before.shape[2]
        mean = grid.mean((2, 3), keepdim=True).expand(-1, -1, missing, -1)
        return torch.cat([before, mean, placed.flatten(2).unsqueeze(3)], 2)

    def front_rows(self, x: Tensor) -> Tensor:
        """The front layer's output as the rows that the map sees, (rows, inputs)."""
        return x.flatten(1) if self.is_flat else channels_last_rows(self.interpolate(x))

    def end_rows(self, y: Tensor) -> Tensor:
        """The end layer's output as rows, (rows, outputs)."""
        return y.flatten(1) if self.is_flat else channels_last_rows(y)


def _split(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The tokens without a place, (n, c, prefix, 1), and those of the grid, or the maps themselves, (n, c, h, w)."""
    if layout.grid is None:
        return x[:, :, :0, :1], x
    return x[:, :, : layout.prefix], x[:, :, layout.prefix :, 0].unflatten(2, layout.grid)


def _count(shape: Shape) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
