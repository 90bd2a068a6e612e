"""Which numbers of two layers' outputs a stitch pairs: channels, features, or every position on its own."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from src.metrics import channels_last_rows

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the output of one layer is laid out for the affine map, and its result for another layer.

    `front_shape` and `end_shape` are (channels, height, width) or (features,), without the batch. By default the
    map acts on channels, alike at every position. `flatten`: on all numbers of an image, position by position.
    `resize`: on channels, after bilinear interpolation to the end layer's height and width.
    Raises ValueError, naming both shapes, where they cannot be paired that way.
    """

    front_shape: Shape
    end_shape: Shape
    flatten: bool = False
    resize: bool = False

    def __post_init__(self) -> None:
        shapes = f"the front layer gives {self.front_shape} and the end layer {self.end_shape}"
        if not {len(self.front_shape), len(self.end_shape)} <= {1, 3}:
            raise ValueError(f"{shapes}: only (channels, height, width) or (features,) can be stitched")
        if self.flatten:
            return
        if len(self.front_shape) != len(self.end_shape):
            raise ValueError(f"{shapes}: give --flatten to stitch them value by value")
        if self.front_shape[1:] != self.end_shape[1:] and not self.resize:
            raise ValueError(f"{shapes}: give --flatten or --resize to stitch different heights and widths")

    @property
    def is_flat(self) -> bool:
        """Whether images are flattened; layers of plain features (n, d) have nothing to flatten."""
        return self.flatten and (len(self.front_shape) == 3 or len(self.end_shape) == 3)

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
        """Bring the front layer's output (n, c, h, w) to the end layer's height and width, if `resize` asks for it."""
        if self.is_flat or x.dim() == 2 or x.shape[2:] == self.end_shape[1:]:
            return x
        return F.interpolate(x, size=self.end_shape[1:], mode="bilinear", align_corners=False)

    def front_rows(self, x: Tensor) -> Tensor:
        """The front layer's output as the rows that the map sees, (rows, inputs)."""
        return x.flatten(1) if self.is_flat else channels_last_rows(self.interpolate(x))

    def end_rows(self, y: Tensor) -> Tensor:
        """The end layer's output as rows, (rows, outputs)."""
        return y.flatten(1) if self.is_flat else channels_last_rows(y)


def _count(shape: Shape) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
