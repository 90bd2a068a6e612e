"""What some starts ask of the training images beyond paired moments: patches, folds and anchors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from src.core.errors import UserError
from src.dataset import Split
from src.evaluation.passes import feed
from src.metrics.algebra.moments import Affine, PairedMoments, least_squares
from src.stitching.cut_networks import CutNetworks, Shared
from src.stitching.inits import FOLDS, init_of
from src.stitching.moments import Moments
from src.stitching.stitch_spec import Cut, StitchSpec

Patches = tuple[Cut, int]
Anchors = tuple[Cut, int, int]


class Rows(NamedTuple):
    """Activations of both sides at all positions of some images, (rows, inputs) and (rows, outputs)."""

    front: Tensor
    end: Tensor


@dataclass(slots=True)
class StartData:
    """Everything that starts are fitted to, of the training images, not augmented.

    moments: by cut. patches: the moments of front patches with the end's activation, by cut and size. folds: moments of
    five parts of the images, by cut. anchors: activations of so many images by a seed.
    """

    moments: Moments
    patches: dict[Patches, PairedMoments] = field(default_factory=dict)
    folds: dict[Cut, list[PairedMoments]] = field(default_factory=dict)
    anchors: dict[Anchors, Rows] = field(default_factory=dict)

    def get(self, cut: Cut) -> PairedMoments | None:
        return self.moments.get(cut)


def wants_patches(spec: StitchSpec) -> bool:
    return spec.kernel > 0 and spec.init == "ps_inv" and not spec.constant


def check_patches(cuts: CutNetworks, specs: Sequence[StitchSpec], memory: float) -> list[str]:
    """Say, a line a size, what patches take; raises UserError where that is more than `memory` bytes."""
    lines = []
    for spec in specs:
        if not wants_patches(spec):
            continue
        geometry = cuts.geometry(spec.cut)
        inputs, outputs = geometry.inputs * spec.kernel**2, geometry.outputs
        needed = 8.0 * (inputs * inputs + inputs * outputs + outputs * outputs)
        if needed > memory:
            raise UserError(
                f"--kernel {spec.kernel} -i ps_inv at {spec.front_layer}: sums of patches of {inputs} numbers take "
                f"{needed / 1e9:.1f} GB; raise --memory above {memory / 1e9:g}, or choose another --init"
            )
        rows = geometry.end_shape[1] * geometry.end_shape[2]
        flop = 2.0 * rows * (inputs * inputs + inputs * outputs) / 1e9
        lines.append(
            f"least squares of {outputs} x {inputs} weights of a {spec.kernel} x {spec.kernel} kernel: "
            f"{needed / 1e9:.2f} GB of sums, {flop:.2f} Gflop an image"
        )
    return list(dict.fromkeys(lines))


def gather_start_data(cuts: CutNetworks, specs: Sequence[StitchSpec], split: Split, moments: Moments) -> StartData:
    """What the starts of some stitches need beside their moments, from a pass for each kind that is asked for."""
    data = StartData(moments)
    specs = [spec for spec in specs if not spec.constant]
    patched = list(dict.fromkeys((spec.cut, spec.kernel) for spec in specs if wants_patches(spec)))
    folded = list(dict.fromkeys(spec.cut for spec in specs if init_of(spec.init).needs_folds))
    if patched:
        _gather_patches(cuts, specs, patched, split, data)
    if folded:
        _gather_folds(cuts, specs, folded, split, data)
    for spec in specs:
        if init_of(spec.init).anchors:
            key = spec.cut, init_of(spec.init).anchors, spec.seed
            if key not in data.anchors:
                data.anchors[key] = _anchors(cuts, spec, split)
    return data


def _outputs(cuts: CutNetworks, specs: Sequence[StitchSpec]) -> Callable[[Tensor], Shared]:
    more = {"end": [spec.end_layer for spec in specs]}
    return lambda images: cuts.front_activations(specs, images, more)


def _gather_patches(
    cuts: CutNetworks, specs: Sequence[StitchSpec], keys: list[Patches], split: Split, data: StartData
) -> None:
    for cut, size in keys:
        geometry = cuts.geometry(cut)
        inputs = geometry.inputs * size**2
        data.patches[cut, size] = PairedMoments(inputs, geometry.outputs, split.device)

    def add(outputs: Shared) -> None:
        for (cut, size), moments in data.patches.items():
            front = cuts.geometry(cut).interpolate(outputs[cut.source][cut.front_layer])
            rows = F.unfold(front, size, padding=size // 2).transpose(1, 2).flatten(0, 1)
            end = outputs["end"][cut.end_layer].flatten(2).transpose(1, 2).flatten(0, 1)
            moments.update(rows, end)

    feed([_outputs(cuts, [spec for spec in specs if wants_patches(spec)])], split, add, title="moments of patches")


def fitted_kernel(moments: PairedMoments, size: int) -> Affine:
    """The least-squares kernel (out, in, k, k) and bias (out,) of patches with zero padding."""
    affine = least_squares(moments)
    return Affine(affine.w.view(len(affine.w), -1, size, size), affine.b)


def _gather_folds(
    cuts: CutNetworks, specs: Sequence[StitchSpec], keys: list[Cut], split: Split, data: StartData
) -> None:
    geometries = {cut: cuts.geometry(cut) for cut in keys}
    for cut, geometry in geometries.items():
        data.folds[cut] = [PairedMoments(geometry.inputs, geometry.outputs, split.device) for _ in range(FOLDS)]
    part = torch.randperm(len(split), generator=Generator().manual_seed(0)) % FOLDS
    done = 0

    def add(outputs: Shared) -> None:
        nonlocal done
        for cut, geometry in geometries.items():
            x, y = outputs[cut.source][cut.front_layer], outputs["end"][cut.end_layer]
            belongs = part[done : done + len(x)]
            for fold, moments in enumerate(data.folds[cut]):
                mine = (belongs == fold).nonzero()[:, 0].to(x.device, non_blocking=True)
                if len(mine):
                    moments.update(geometry.front_rows(x[mine]), geometry.end_rows(y[mine]))
        done += len(x)

    feed([_outputs(cuts, [spec for spec in specs if spec.cut in keys])], split, add, title="moments of five folds")


def _anchors(cuts: CutNetworks, spec: StitchSpec, split: Split) -> Rows:
    """The activations of K images, chosen by the seed."""
    count, geometry = init_of(spec.init).anchors, cuts.geometry(spec.cut)
    if count > len(split):
        raise UserError(f"--init {spec.init} asks for more anchors than the {len(split)} training images")
    chosen = torch.randperm(len(split), generator=Generator().manual_seed(spec.seed))[:count].sort().values
    parts: list[tuple[Tensor, Tensor]] = []

    def add(outputs: Shared) -> None:
        x, y = outputs[spec.source][spec.front_layer], outputs["end"][spec.end_layer]
        parts.append((geometry.front_rows(x).cpu().double(), geometry.end_rows(y).cpu().double()))

    feed([_outputs(cuts, [spec])], split.take(chosen), add, title="anchors")
    return Rows(*(torch.cat(side) for side in zip(*parts, strict=True)))
