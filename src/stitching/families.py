"""Families of stitches that are more than one affine map of channels, or reach it by another way."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from src.core.errors import UserError
from src.metrics.algebra.linalg import as_float64, float64_device
from src.metrics.algebra.moments import Affine, PairedMoments
from src.stitching.geometry import Geometry
from src.stitching.layer import AFFINE, FAMILIES, Arrays, Stitch, StitchLayer, copied

EPSILON = 1e-5  # BatchNorm's


class KernelStitch(Stitch):
    """A convolution of k x k positions with zero padding, from a map (out, in, k, k) and (out,)."""

    family = "kernel"

    def __init__(self, w: Tensor, b: Tensor, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.weight, self.bias = nn.Parameter(w.detach().float().clone()), nn.Parameter(b.detach().float().clone())

    @classmethod
    def around(cls, affine: Affine, size: int, geometry: Geometry) -> "KernelStitch":
        """The one that is an affine map: it stands in the centre of the kernel."""
        w = affine.w.new_zeros(*affine.w.shape, size, size)
        w[:, :, size // 2, size // 2] = affine.w
        return cls(w, affine.b, geometry)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.geometry.interpolate(x), self.weight, self.bias, padding="same")

    def arrays(self) -> Arrays:
        """`w`, (out, in, k, k), and `b`."""
        return {"family": self.family, "w": copied(self.weight), "b": copied(self.bias)}

    def snapshot(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Arrays, geometry: Geometry) -> "KernelStitch":
        w, b = floats(arrays, w=4, b=1)
        if w.shape[:2] != (geometry.outputs, geometry.inputs) or w.shape[2] != w.shape[3] or b.shape != w.shape[:1]:
            raise UserError(f"a kernel {tuple(w.shape)} does not fit {geometry.inputs} and {geometry.outputs} channels")
        return cls(w, b, geometry)


class HiddenStitch(Stitch):
    """At each position an affine map to hidden units, a ReLU, and an affine map on: w2 relu(w1 x + b1) + b2."""

    family = "hidden"
    w1: nn.Parameter
    b1: nn.Parameter
    w2: nn.Parameter
    b2: nn.Parameter

    def __init__(self, parts: Mapping[str, Tensor], geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        for name in ("w1", "b1", "w2", "b2"):
            self.register_parameter(name, nn.Parameter(parts[name].detach().float().clone()))

    @classmethod
    def around(cls, affine: Affine, units: int, geometry: Geometry, generator: Generator) -> "HiddenStitch":
        """The one that is an affine map, as x = relu(x) - relu(-x), where there are as many units; else one at random.

        Further units see the input at random, and nothing is made of them yet.
        """
        inputs, outputs = geometry.inputs, geometry.outputs
        drawn = {"w1": (units, inputs, inputs), "b1": (units, 0, inputs), "w2": (outputs, units, units)}
        parts = {name: _uniform(rows, columns, fan, generator) for name, (rows, columns, fan) in drawn.items()}
        parts["b2"] = _uniform(outputs, 0, units, generator)
        if units >= 2 * inputs:
            w = affine.w.float()
            parts["w1"][: 2 * inputs] = torch.cat([torch.eye(inputs), -torch.eye(inputs)])
            parts["b1"][: 2 * inputs] = 0
            parts["w2"].zero_()[:, : 2 * inputs] = torch.cat([w, -w], 1)
            parts["b2"] = affine.b.float()
        return cls(parts, geometry)

    def forward(self, x: Tensor) -> Tensor:
        x = self.geometry.interpolate(x)
        rows = x.flatten(1) if self.geometry.is_flat else x.movedim(1, -1)
        made = F.linear(F.relu(F.linear(rows, self.w1, self.b1)), self.w2, self.b2)
        return made.view(len(x), *self.geometry.end_shape) if self.geometry.is_flat else made.movedim(-1, 1)

    def arrays(self) -> Arrays:
        """`w1` (units, in), `b1`, `w2` (out, units), `b2`."""
        return {"family": self.family, **{name: copied(value) for name, value in self.named_parameters()}}

    def snapshot(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    @classmethod
    def from_arrays(cls, arrays: Arrays, geometry: Geometry) -> "HiddenStitch":
        w1, b1, w2, b2 = floats(arrays, w1=2, b1=1, w2=2, b2=1)
        units = len(w1)
        shapes = [(units, geometry.inputs), (units,), (geometry.outputs, units), (geometry.outputs,)]
        if [tuple(part.shape) for part in (w1, b1, w2, b2)] != shapes:
            raise UserError(f"{units} hidden units do not fit {geometry.inputs} and {geometry.outputs} channels")
        return cls({"w1": w1, "b1": b1, "w2": w2, "b2": b2}, geometry)


class NormStitch(StitchLayer):
    """An affine map between two batch normalisations, which is one affine map once their statistics are fixed.

    In training they are those of the batch, else those of all training images, which follow from their moments: of the
    front activation as they are, behind the matrix through its covariance. What is written is the folded map.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, affine: Affine, geometry: Geometry, moments: PairedMoments) -> None:
        super().__init__(affine, geometry)
        self.register_buffer("mean", moments.mean_x.detach().clone())
        self.register_buffer("covariance", (moments.xx / moments.n).detach().clone())
        w, b = (part.detach().to(self.mean.device).double() for part in affine)
        spread = (self.covariance.diagonal() + EPSILON).sqrt()
        self.gain_before = nn.Parameter(spread.float())  # so that it starts as the affine map
        self.shift_before = nn.Parameter(self.mean.float())
        variance = ((w @ self.covariance) * w).sum(1)
        self.gain_after = nn.Parameter((variance + EPSILON).sqrt().float())
        self.bias = nn.Parameter((w @ self.mean + b).float())

    def _apply(self, fn: Any, recurse: bool = True) -> "NormStitch":
        """What `to` does; the statistics stay float64, on the CPU where the device has none."""
        held = {name: self._buffers.pop(name) for name in ("mean", "covariance")}
        super()._apply(fn, recurse)
        device = float64_device(self.bias.device)
        self._buffers |= {name: value.to(device) for name, value in held.items() if value is not None}
        return self

    def _folded(self) -> tuple[Tensor, Tensor]:
        """W and b with the statistics of all training images, in float64."""
        before, shift, w, after, bias = (
            as_float64(value)
            for value in (self.gain_before, self.shift_before, self.weight, self.gain_after, self.bias)
        )
        inner = w * (before / (self.covariance.diagonal() + EPSILON).sqrt())
        variance = ((inner @ self.covariance) * inner).sum(1)
        outer = (after / (variance + EPSILON).sqrt())[:, None] * inner
        return outer, bias - outer @ self.mean

    def matrix(self) -> Tensor:
        return self._folded()[0].float().to(self.bias.device)

    def offset(self, w: Tensor) -> Tensor:
        return self._folded()[1].float().to(self.bias.device)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        x = self.geometry.interpolate(x)
        rows = x.flatten(1) if self.geometry.is_flat else x.movedim(1, -1)
        flat = rows.flatten(0, -2)
        normed = F.batch_norm(flat, None, None, self.gain_before, self.shift_before, training=True, eps=EPSILON)
        made = F.linear(normed, self.weight)
        made = F.batch_norm(made, None, None, self.gain_after, self.bias, training=True, eps=EPSILON)
        if self.geometry.is_flat:
            return made.view(len(x), *self.geometry.end_shape)
        return made.view(*rows.shape[:-1], -1).movedim(-1, 1)


def _uniform(rows: int, columns: int, fan: int, generator: Generator) -> Tensor:
    """Numbers within +-1/sqrt(fan), as torch draws them for a linear layer; columns of 0: a vector."""
    shape = (rows, columns) if columns else (rows,)
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan)


def floats(arrays: Arrays, **axes: int) -> list[Tensor]:
    """Arrays by name, each of so many axes; raises UserError for others than floating-point numbers."""
    found = []
    for name, count in axes.items():
        array = np.asarray(arrays.get(name))
        if array.ndim != count or array.dtype.kind != "f":
            raise UserError(f"its {name} is no array of {count} axes of floating-point numbers")
        found.append(torch.as_tensor(array))
    return found


@dataclass(frozen=True, slots=True)
class Widening:
    """A line of WIDENINGS: how an affine start becomes a stitch of another family.

    field: of a spec, which asks for it. name(value): what it is called beside others. build(affine, geometry, value,
    moments, generator): the stitch that starts there. excludes: options that are of affine maps alone, and why.
    """

    field: str
    name: Callable[[Any], str]
    build: Callable[[Affine, Geometry, Any, PairedMoments | None, Generator], Stitch]
    needs_moments: bool = False
    maps_only: bool = False


def _normed(affine: Affine, geometry: Geometry, value: Any, moments: PairedMoments | None, _: Generator) -> Stitch:
    assert moments is not None
    return NormStitch(affine, geometry, moments)


WIDENINGS = {
    "norm": Widening("norm", lambda value: "norm", _normed, needs_moments=True),
    "kernel": Widening(
        "kernel",
        lambda value: f"kernel {value}",
        lambda affine, geometry, size, moments, generator: KernelStitch.around(affine, size, geometry),
        maps_only=True,
    ),
    "hidden": Widening(
        "hidden",
        lambda value: f"hidden {value}",
        lambda affine, geometry, units, moments, generator: HiddenStitch.around(affine, units, geometry, generator),
    ),
}
FAMILIES |= {kind.family: kind for kind in (KernelStitch, HiddenStitch)}


def widening_of(options: Any) -> Widening | None:
    """The family that a spec, or what has fields of one, asks for; None for the affine one."""
    return next((line for line in WIDENINGS.values() if getattr(options, line.field, 0)), None)


def family_name(options: Any) -> str:
    """What the family of a spec is called beside others."""
    line = widening_of(options)
    return line.name(getattr(options, line.field)) if line else AFFINE
