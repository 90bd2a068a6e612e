"""What a stitch is to be held against: the same stitch, trained alike, without what it is said to show."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.core.progress import bar
from src.cutting.parts import heads
from src.dataset import PairedImagesSplit, Split
from src.dataset.preprocessing import for_half
from src.stitching.cut_networks import CutNetworks
from src.stitching.geometry import Geometry
from src.stitching.stitch_spec import ControlSpec, StitchSpec

UNTRAINED = 3  # networks of the front's architecture
BATCH = 128  # images over which BatchNorms of untrained networks take their statistics
PARTNER = "partner"  # the front network, looking at another image


@dataclass(frozen=True, slots=True)
class Control:
    """A line of CONTROLS: what it is, and the stitches sewn for a spec; `exact` as in `is_one`. The probe sews none."""

    about: str
    sewn: Callable[[StitchSpec, bool], list[ControlSpec]] = lambda spec, exact: []


def is_one(spec: StitchSpec, *, exact: bool = True) -> bool:
    """Whether a network stitched to itself with this spec starts as the identity, so that it loses nothing.

    exact: whether a fit has more rows than features. With fewer it is the identity on the fitted images alone.
    """
    free = spec.mask == "identity" and spec.low_rank is None
    return free and (spec.init == "eye" or (exact and spec.init in ("ps_inv", "orthogonal")))


def _constant(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    # nothing to regularise: a constant has no CKA
    return [ControlSpec.of(spec, "front", constant=True, cka_reg=0.0)]


def _untrained(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [ControlSpec.of(spec, name) for name in _names_of_untrained()]


def _shuffled(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [ControlSpec.of(spec, PARTNER)]


def _self(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [] if is_one(spec, exact=exact) else [ControlSpec.of(spec, "end", front_layer=spec.end_layer)]


def _self_random(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [ControlSpec.of(spec, "end", front_layer=spec.end_layer, init="random")]


CONTROLS = {
    "constant": Control("the best constant activation: a bias alone", _constant),
    "untrained": Control(f"untrained networks of the front's architecture, mean of {UNTRAINED}", _untrained),
    "shuffled": Control("the front sees another image than the end", _shuffled),
    "self": Control("the end network stitched to itself: the ceiling", _self),
    "self_random": Control("the same from a random start: the ceiling of the optimiser", _self_random),
    "probe": Control("logistic regression on the front's average activation"),
}
ALL = "all"


def choose_controls(text: str) -> list[str]:
    """The controls that a comma list, or "all", names, in the order of the table; ValueError for an unknown one."""
    named = [part.strip() for part in text.split(",")]
    if named == [ALL]:
        return list(CONTROLS)
    for name in named:
        if name not in CONTROLS:
            raise ValueError(f"unknown control {name!r}; choose all, or from {', '.join(CONTROLS)}")
    return [name for name in CONTROLS if name in named]


def sewn_for(spec: StitchSpec, names: Sequence[str], *, exact: bool = True) -> dict[str, list[ControlSpec]]:
    """The stitches that are sewn for each control of a spec; `exact` as in `is_one`.

    Where the self-stitch is not one by construction it has the spec's own start, and a second one from a random start
    is made only where that is another.
    """
    sewn = {name: CONTROLS[name].sewn(spec, exact) for name in names}
    if sewn.get("self") and sewn.get("self") == sewn.get("self_random"):
        del sewn["self_random"]
    return sewn


def control_specs(
    geometry: Geometry, spec: StitchSpec, names: Sequence[str], images: int
) -> dict[str, list[ControlSpec]]:
    """The same, where a fit has the rows of so many images of this geometry."""
    rows = images * (1 if geometry.is_flat else math.prod(geometry.end_shape[1:]))
    return sewn_for(spec, names, exact=rows > geometry.outputs)


@dataclass(frozen=True, slots=True)
class ControlSetup:
    """Networks and images as the stitches of one seed and their controls need them."""

    cuts: CutNetworks
    train: Split
    val: Split


def prepare_controls(
    cuts: CutNetworks,
    specs: Sequence[StitchSpec],
    names: Sequence[str],
    train: Split,
    val: Split,
    *,
    fresh: Callable[[int], nn.Module] | None,
) -> ControlSetup:
    """Put the networks of the named controls of some specs, all of one seed, beside the two.

    `fresh(seed)` makes an untrained network of the front's architecture, which takes the same images. Raises ValueError
    where such networks are asked for and there is no way to make them.
    """
    (seed,) = {spec.seed for spec in specs}
    networks, sample = dict(cuts.networks), cuts.sample
    if "untrained" in names:
        if fresh is None:
            raise ValueError("no untrained network of the front's architecture can be made; leave out this control")
        layers = list(dict.fromkeys(spec.front_layer for spec in specs))
        made = {name: fresh(derived_seed(seed, name)).to(cuts.device) for name in _names_of_untrained()}
        recalibrate_batchnorm(list(made.values()), layers, train)
        networks |= made
    if "shuffled" in names:
        networks = {role: for_half(network, 0) for role, network in networks.items()}
        networks[PARTNER] = for_half(cuts.networks["front"], 1)
        sample = torch.cat([sample, sample], 1)
        train, val = (
            shuffled(split, derived_seed(seed, f"shuffled {split_name}"))
            for split, split_name in ((train, "train"), (val, "val"))
        )
    front, end = networks.pop("front"), networks.pop("end")
    return ControlSetup(CutNetworks(front, end, specs, sample, others=networks, layouts=cuts.asked), train, val)


def shuffled(split: Split, seed: int) -> PairedImagesSplit:
    """The split with another of its images beside each, by one fixed permutation of all."""
    return PairedImagesSplit(split, torch.randperm(len(split), generator=Generator().manual_seed(seed)))


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, not the spec's own, which decides the order of images already."""
    return int.from_bytes(hashlib.sha256(f"control {purpose} {seed}".encode()).digest()[:4], "big")


def _names_of_untrained() -> list[str]:
    return [f"untrained {number}" for number in range(UNTRAINED)]


@torch.no_grad()
def recalibrate_batchnorm(networks: Sequence[nn.Module], layers: Sequence[str], split: Split) -> None:
    """Give the BatchNorms before some layers the statistics of a split, from one pass of images that are not augmented.

    They are the averages of batches of BATCH images, each normalised by its own, as in training; in random order, for
    the files of a folder come class by class. Without them an untrained network's activations would grow or fade from
    layer to layer. Dropout and the like stay off.
    """
    parts = []
    for network in networks:
        part = heads(network, layers)  # shares the buffers
        norms = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average; the part has modules of its own
            norm.train()
        if norms:
            parts.append(part)
    if not parts:
        return
    size, order = min(BATCH, len(split)), Generator().manual_seed(0)
    with bar(len(split), "statistics of untrained networks", unit="image") as progress:
        for images, _ in split.batches(size, order=order, drop_last=True):
            for part in parts:
                part(images)
            progress.update(len(images))
