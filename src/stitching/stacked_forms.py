"""How stitches of a family are computed side by side: as matrices, and what these read of a front's output."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.stitching.families import HiddenStitch, KernelStitch
from src.stitching.geometry import Geometry
from src.stitching.layer import LowRankStitch, MaskedStitch, Stitch, StitchLayer

Parameters = Mapping[str, Tensor]  # of all stitches, (stitches, ...) by name
Chain = list[tuple[Tensor, Tensor]]  # matrices (stitches, out, in) and offsets (stitches, out), with a ReLU between


@dataclass(frozen=True, slots=True)
class Form:
    """A line of FORMS: the stitches of a class.

    chain(parameters, buffers): their affine maps, one behind the other. rows(front, stitch): what the first of these
    reads of a front's output, (positions, in). width(stitch): how many numbers of a position they hold at most, beside
    what they give. size(stitch): what those agree in that are computed together, so that none is filled up.
    """

    chain: Callable[[Parameters, Parameters], Chain]
    rows: Callable[[Tensor, Any], Tensor] = lambda front, stitch: stitch.geometry.front_rows(front)
    width: Callable[[Any], int] = lambda stitch: 0
    size: Callable[[Any], Hashable] = lambda stitch: stitch.is_whitened


def _affine(parameters: Parameters, buffers: Parameters) -> Chain:
    core = parameters["left"] @ parameters["right"] if "left" in parameters else parameters["weight"]
    if "mask" in buffers:
        core = core * buffers["mask"]
    if "d" not in buffers:
        return [(core, parameters["bias"])]
    w = buffers["d"][:, :, None] * (core @ buffers["s"])  # in coordinates in which activations are white
    return [(w, parameters["bias"] - (w @ buffers["m"][:, :, None]).squeeze(2))]


def _patches(front: Tensor, stitch: KernelStitch) -> Tensor:
    """What a kernel sees at each position, zero beyond the edges: (images * positions, in * k * k)."""
    side = stitch.weight.shape[2]
    return F.unfold(stitch.geometry.interpolate(front), side, padding=side // 2).mT.flatten(0, 1)


# each with matrices of two axes for what `Stitch.matrices` and `Stitch.size` are of
FORMS: dict[type[Stitch], Form] = {
    **dict.fromkeys((StitchLayer, MaskedStitch, LowRankStitch), Form(_affine)),
    KernelStitch: Form(
        lambda parameters, buffers: [(parameters["weight"].flatten(2), parameters["bias"])],
        _patches,
        lambda stitch: stitch.weight[0].numel(),
        lambda stitch: stitch.weight.shape[2],
    ),
    HiddenStitch: Form(
        lambda parameters, buffers: [(parameters[f"w{number}"], parameters[f"b{number}"]) for number in (1, 2)],
        width=lambda stitch: len(stitch.b1),
        size=lambda stitch: len(stitch.b1),
    ),
}


def made_of(chain: Chain, x: Tensor) -> Tensor:
    """What stitches make of rows (stitches, rows, in), (stitches, rows, out)."""
    for place, (w, b) in enumerate(chain):
        x = torch.baddbmm(b[:, None], F.relu(x) if place else x, w.mT)
    return x


def squares(chain: Chain) -> Tensor:
    """The sum of squares of each stitch, (stitches,)."""
    return torch.stack([w.square().sum((1, 2)) + b.square().sum(1) for w, b in chain]).sum(0)


def mean_weight(chain: Chain) -> Tensor:
    """The mean of the absolute weights of each stitch, (stitches,)."""
    if len(chain) == 1:
        return chain[0][0].abs().mean((1, 2))
    return torch.cat([w.flatten(1) for w, _ in chain], 1).abs().mean(1)


def as_output(made: Tensor, geometry: Geometry) -> Tensor:
    """Rows (stitches, rows, out) as what the end network's layer gives of images, (stitches * images, *end_shape)."""
    if geometry.is_flat or len(geometry.end_shape) == 1:
        return made.reshape(-1, *geometry.end_shape)
    return made.reshape(-1, *geometry.end_shape[1:], geometry.outputs).permute(0, 3, 1, 2)
