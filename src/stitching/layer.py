"""The stitch: one affine map y = x W^T + b from the front layer's channels to the end layer's."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from src.metrics.moments import Affine, orthogonal_factor, reduced_rank
from src.stitching.geometry import Geometry

Arrays = dict[str, Any]


class StitchLayer(nn.Module):
    """A full matrix. Other kinds of stitch differ only in how `matrix()`, always (out, in), comes about."""

    def __init__(self, affine: Affine, geometry: Geometry) -> None:
        super().__init__()
        expected = (geometry.outputs, geometry.inputs)
        if tuple(affine.w.shape) != expected or tuple(affine.b.shape) != expected[:1]:
            raise ValueError(
                f"a stitch of these layers needs a matrix {expected} and {expected[0]} biases, "
                f"got {tuple(affine.w.shape)} and {tuple(affine.b.shape)}"
            )
        self.geometry = geometry
        self.bias = nn.Parameter(affine.b.detach().float().clone())
        self._set_matrix(affine.w.detach().float().clone())

    def _set_matrix(self, w: Tensor) -> None:
        self.weight = nn.Parameter(w)

    def matrix(self) -> Tensor:
        """W, (out, in)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map the front layer's output (n, *front_shape) to (n, *end_shape)."""
        x, w = self.geometry.interpolate(x), self.matrix()
        if self.geometry.is_flat:
            return F.linear(x.flatten(1), w, self.bias).view(len(x), *self.geometry.end_shape)
        return F.linear(x, w, self.bias) if x.dim() == 2 else F.conv2d(x, w[:, :, None, None], self.bias)

    def arrays(self) -> Arrays:
        """A copy of the map for result files: `w`, (out, in, 1, 1) where it acts on channels, else (out, in); `b`."""
        return {"w": _copied(self._shaped_matrix()), "b": _copied(self.bias)}

    def snapshot(self) -> dict[str, Tensor]:
        """The map as parameters for the history of training: `weight`, shaped as in `arrays`, and `bias`."""
        return {"weight": self._shaped_matrix(), "bias": self.bias}

    def _shaped_matrix(self) -> Tensor:
        w = self.matrix()
        return w[:, :, None, None] if self.geometry.is_convolution else w


class MaskedStitch(StitchLayer):
    """A matrix that is zero wherever its mask (out, in), of zeros and ones, is."""

    mask: Tensor

    def __init__(self, affine: Affine, geometry: Geometry, mask: Tensor) -> None:
        # weights start at zero under the mask and get no gradient there, so no optimizer can move them
        super().__init__(Affine(affine.w * mask.to(affine.w), affine.b), geometry)
        self.register_buffer("mask", mask.float())

    def matrix(self) -> Tensor:
        return self.weight * self.mask


class LowRankStitch(StitchLayer):
    """A product of two factors (out, r) and (r, in), the best approximation of the initial matrix to start with."""

    def __init__(self, affine: Affine, geometry: Geometry, rank: int) -> None:
        self.rank = rank
        super().__init__(affine, geometry)

    def _set_matrix(self, w: Tensor) -> None:
        left, right = reduced_rank(w.double(), self.rank)
        self.left, self.right = nn.Parameter(left.float()), nn.Parameter(right.float())

    def matrix(self) -> Tensor:
        return self.left @ self.right

    def arrays(self) -> Arrays:
        """As for a full matrix, and the factors `left` (out, r) and `right` (r, in)."""
        return super().arrays() | {"left": _copied(self.left), "right": _copied(self.right)}

    def snapshot(self) -> dict[str, Tensor]:
        """The factors `left` and `right`, which are smaller than their product, and `bias`."""
        return {"left": self.left, "right": self.right, "bias": self.bias}


class OrthogonalStitch(StitchLayer):
    """A matrix with orthonormal rows or columns, whichever are fewer: the nearest to the initial one to start with."""

    def _set_matrix(self, w: Tensor) -> None:
        self.weight = nn.Parameter(orthogonal_factor(w.double()).float())
        parametrizations.orthogonal(self, "weight")


def build_stitch(
    affine: Affine,
    geometry: Geometry,
    *,
    mask: Tensor | None = None,
    rank: int | None = None,
    orthogonal: bool = False,
) -> StitchLayer:
    """The stitch of the asked kind that starts from an affine map; at most one restriction is given."""
    if rank is not None:
        return LowRankStitch(affine, geometry, rank)
    if orthogonal:
        return OrthogonalStitch(affine, geometry)
    return StitchLayer(affine, geometry) if mask is None else MaskedStitch(affine, geometry, mask)


def from_arrays(arrays: Arrays, geometry: Geometry) -> StitchLayer:
    """The map of a result file, whatever kind of stitch wrote it; raises ValueError where it does not fit."""
    w, b = (torch.as_tensor(np.asarray(arrays[key])) for key in ("w", "b"))
    return StitchLayer(Affine(w.reshape(len(w), -1), b), geometry)


def _copied(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
