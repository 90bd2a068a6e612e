"""The stitch: a map from the front layer's output to the end layer's, one affine map y = x W^T + b of channels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from src.core.errors import UserError
from src.metrics.algebra.moments import Affine, orthogonal_factor, reduced_rank
from src.stitching.end_norms import EndNorms
from src.stitching.geometry import Geometry
from src.stitching.whitening import Whitening

Arrays = dict[str, Any]
AFFINE = "affine"


class Stitch(nn.Module, ABC):
    """What is sewn between two layers: all that is asked of a family of stitches.

    `forward`, `arrays`, `snapshot` and `from_arrays` are a family's own. One whose maps are affine also says so by
    `affine`; its CKA, l2 and least squares then follow from moments, and need no pass of their own.
    """

    family: ClassVar[str]  # its line in FAMILIES, which results hold where it is not the affine one
    geometry: Geometry
    norms: EndNorms | None  # the end network's statistics, where they follow this stitch

    def __init__(self) -> None:
        super().__init__()
        self.norms = None

    def all_arrays(self) -> Arrays:
        """What a result file holds of it: the map, and the end network's statistics where it has its own."""
        return self.arrays() | (self.norms.arrays() if self.norms else {})

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map the front layer's output (n, *front_shape) to (n, *end_shape)."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """A copy of the map for result files: numpy arrays by name, with `family` where it is not the affine one."""

    @abstractmethod
    def snapshot(self) -> dict[str, Tensor]:
        """The map as parameters for the history of training."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Arrays, geometry: Geometry) -> "Stitch":
        """The map that `arrays` are of; raises UserError where they do not fit."""

    def affine(self) -> Affine | None:
        """W (out, in) and b (out,) of an affine map, alike at all positions; None where there are none."""
        return None

    def matrices(self) -> list[Tensor]:
        """The weights that regularisation shrinks: those of more than one axis."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 1]

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def size(self) -> Tensor:
        """The sum of squares of the map, which weight decay pulls at."""
        return torch.stack([parameter.square().sum() for parameter in self.parameters()]).sum()


class StitchLayer(Stitch):
    """An affine map of any matrix. Other affine stitches differ only in how their `core` comes about.

    With `coordinates` the core is the V of y = D V S (x - m) + b, else it is the matrix itself: the same maps, trained
    along another path.
    """

    family = AFFINE
    m: Tensor
    s: Tensor
    d: Tensor

    def __init__(self, affine: Affine, geometry: Geometry, coordinates: Whitening | None = None) -> None:
        super().__init__()
        expected = (geometry.outputs, geometry.inputs)
        if tuple(affine.w.shape) != expected or tuple(affine.b.shape) != expected[:1]:
            raise UserError(
                f"a stitch of these layers needs a matrix {expected} and {expected[0]} biases, "
                f"got {tuple(affine.w.shape)} and {tuple(affine.b.shape)}"
            )
        self.geometry = geometry
        w, b = affine.w.detach(), affine.b.detach()
        self.is_whitened = coordinates is not None
        if coordinates:
            b = b.to(coordinates.m) + w.to(coordinates.m) @ coordinates.m
            w = coordinates.transform(w)
            for name in ("m", "s", "d"):
                self.register_buffer(name, getattr(coordinates, name).float())
        self.bias = nn.Parameter(b.float().clone())
        self._set_core(w.float().clone())

    def _set_core(self, w: Tensor) -> None:
        self.weight = nn.Parameter(w)

    def core(self) -> Tensor:
        """What is trained in place of the matrix, (out, in)."""
        return self.weight

    def matrix(self) -> Tensor:
        """W, (out, in)."""
        return self.d[:, None] * (self.core() @ self.s) if self.is_whitened else self.core()

    def offset(self, w: Tensor) -> Tensor:
        """The b of y = x W^T + b, (out,), for this matrix."""
        return self.bias - w @ self.m if self.is_whitened else self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map the front layer's output (n, *front_shape) to (n, *end_shape)."""
        x, w = self.geometry.interpolate(x), self.matrix()
        b = self.offset(w)
        if self.geometry.is_flat:
            return F.linear(x.flatten(1), w, b).view(len(x), *self.geometry.end_shape)
        if x.dim() == 2 or not self.geometry.end_layout.is_plain:  # of rows: faster to train than a convolution
            return F.linear(x.movedim(1, -1), w, b).movedim(-1, 1)
        return F.conv2d(x, w[:, :, None, None], b)

    def affine(self) -> Affine:
        w = self.matrix()
        return Affine(w.detach(), self.offset(w).detach())

    def matrices(self) -> list[Tensor]:
        return [self.matrix()]

    def size(self) -> Tensor:
        w = self.matrix()
        return w.square().sum() + self.offset(w).square().sum()

    def arrays(self) -> Arrays:
        """`w`, (out, in, 1, 1) where it acts on channels, else (out, in); `b`."""
        w = self.matrix()
        return {"w": copied(self._shaped(w)), "b": copied(self.offset(w))}

    def snapshot(self) -> dict[str, Tensor]:
        """`weight`, shaped as in `arrays`, and `bias`."""
        w = self.matrix()
        return {"weight": self._shaped(w), "bias": self.offset(w)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, geometry: Geometry) -> "StitchLayer":
        if not all((array := np.asarray(arrays.get(key))).ndim and array.dtype.kind == "f" for key in ("w", "b")):
            raise UserError("it is no matrix and vector of floating-point numbers")
        w, b = (torch.as_tensor(np.asarray(arrays[key])) for key in ("w", "b"))
        return StitchLayer(Affine(w.reshape(len(w), -1), b), geometry)

    def _shaped(self, w: Tensor) -> Tensor:
        return w[:, :, None, None] if self.geometry.is_convolution else w


class MaskedStitch(StitchLayer):
    """A matrix that is zero wherever its mask (out, in), of zeros and ones, is."""

    mask: Tensor

    def __init__(self, affine: Affine, geometry: Geometry, mask: Tensor, coordinates: Whitening | None = None) -> None:
        # weights start at zero under the mask and get no gradient there, so no optimizer can move them
        super().__init__(Affine(affine.w * mask.to(affine.w), affine.b), geometry, coordinates)
        self.register_buffer("mask", mask.float())

    def core(self) -> Tensor:
        return self.weight * self.mask


class LowRankStitch(StitchLayer):
    """A product of two factors (out, r) and (r, in), the best approximation of the initial matrix to start with."""

    def __init__(self, affine: Affine, geometry: Geometry, rank: int, coordinates: Whitening | None = None) -> None:
        self.rank = rank
        if coordinates:  # the best approximation is that of the matrix, not that of its whitened form
            left, right = reduced_rank(affine.w.detach().double(), rank)
            affine = Affine(left @ right, affine.b)
        super().__init__(affine, geometry, coordinates)

    def _set_core(self, w: Tensor) -> None:
        left, right = reduced_rank(w.double(), self.rank)
        self.left, self.right = nn.Parameter(left.float()), nn.Parameter(right.float())

    def core(self) -> Tensor:
        return self.left @ self.right

    def factors(self) -> tuple[Tensor, Tensor]:
        """`left` (out, r) and `right` (r, in), whose product is the matrix."""
        if self.is_whitened:
            return self.d[:, None] * self.left, self.right @ self.s
        return self.left, self.right

    def arrays(self) -> Arrays:
        """As for a full matrix, and the factors `left` (out, r) and `right` (r, in)."""
        left, right = self.factors()
        return super().arrays() | {"left": copied(left), "right": copied(right)}

    def snapshot(self) -> dict[str, Tensor]:
        """The factors `left` and `right`, which are smaller than their product, and `bias`."""
        left, right = self.factors()
        return {"left": left, "right": right, "bias": self.offset(self.matrix())}


class OrthogonalStitch(StitchLayer):
    """A matrix with orthonormal rows or columns, whichever are fewer: the nearest to the initial one to start with."""

    def _set_core(self, w: Tensor) -> None:
        self.weight = nn.Parameter(orthogonal_factor(w.double()).float())
        parametrizations.orthogonal(self, "weight")


class ConstantStitch(StitchLayer):
    """No map at all: the same activation (1, *end_shape) whatever the images, a bias that learns."""

    def __init__(self, b: Tensor, geometry: Geometry) -> None:
        super().__init__(Affine(torch.zeros(geometry.outputs, geometry.inputs), b), geometry)
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor | None = None) -> Tensor:
        shape = self.geometry.end_shape
        if self.geometry.is_flat:
            return self.bias.view(1, *shape)
        return self.bias.view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the matrix of an affine stitch may be: zero wherever a mask (out, in) is, of a rank, or orthogonal.

    One at most; with all of them off it may be any.
    """

    mask: Tensor | None = None
    rank: int | None = None
    orthogonal: bool = False


FREE = Constraint()


@dataclass(frozen=True, slots=True)
class Kind:
    """A line of KINDS: an affine stitch under a constraint.

    holds(constraint): whether it is this kind. build(affine, geometry, constraint, coordinates): the stitch that starts
    from a map. options: fields of a spec that ask for it, as an example.
    """

    holds: Callable[[Constraint], bool]
    build: Callable[[Affine, Geometry, Constraint, Whitening | None], StitchLayer]
    options: Mapping[str, Any]


# the first that holds; an orthogonal one is trained in its own coordinates alone
KINDS = {
    "low rank": Kind(
        lambda constraint: constraint.rank is not None,
        lambda affine, geometry, constraint, whitening: LowRankStitch(
            affine, geometry, constraint.rank or 0, whitening
        ),
        {"low_rank": 2},
    ),
    "orthogonal": Kind(
        lambda constraint: constraint.orthogonal,
        lambda affine, geometry, constraint, whitening: OrthogonalStitch(affine, geometry),
        {"orthogonal": True},
    ),
    "masked": Kind(
        lambda constraint: constraint.mask is not None,
        lambda affine, geometry, constraint, whitening: MaskedStitch(
            affine, geometry, torch.as_tensor(constraint.mask), whitening
        ),
        {"mask": "semi-match"},
    ),
    "full": Kind(
        lambda constraint: True,
        lambda affine, geometry, constraint, whitening: StitchLayer(affine, geometry, whitening),
        {},
    ),
}
# the families of stitches by their names in results; `families` adds its own
FAMILIES: dict[str, type[Stitch]] = {AFFINE: StitchLayer}


def build_stitch(
    affine: Affine, geometry: Geometry, constraint: Constraint = FREE, coordinates: Whitening | None = None
) -> StitchLayer:
    """The affine stitch under a constraint that starts from a map; `coordinates` are those in which it is trained."""
    kind = next(kind for kind in KINDS.values() if kind.holds(constraint))
    return kind.build(affine, geometry, constraint, coordinates)


def from_arrays(arrays: Arrays, geometry: Geometry) -> Stitch:
    """The map of a result file, whatever kind of stitch wrote it; raises UserError where it does not fit."""
    family = str(arrays.get("family", AFFINE))
    if family not in FAMILIES:
        raise UserError(f"the family {family!r} of stitches is unknown here; known are {', '.join(FAMILIES)}")
    stitch = FAMILIES[family].from_arrays(arrays, geometry)
    stitch.norms = EndNorms.from_arrays(arrays)
    return stitch


def affine_arrays(affine: Affine, geometry: Geometry) -> Arrays:
    """An affine map between two layers in the form of `StitchLayer.arrays`, as exact as it is."""
    w, b = (part.cpu().numpy() for part in affine)
    return {"w": w[:, :, None, None] if geometry.is_convolution else w, "b": b}


def copied(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of its own."""
    return tensor.detach().cpu().numpy().copy()
