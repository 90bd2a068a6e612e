"""What a stitch is to be held against: the same stitch, trained alike, without what it is said to show."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.core.errors import UserError
from src.core.progress import bar
from src.core.task import SINGLE_LABEL, Task
from src.core.text import close_to
from src.cutting.parts import heads
from src.dataset import MARKS, MarkedSplit, PairedImagesSplit, Split
from src.dataset.preprocessing import for_half, without_last
from src.evaluation.probe import PooledFeatures, Probe
from src.stitching.cut_networks import CutNetworks, Made
from src.stitching.geometry import Geometry
from src.stitching.label_front import LabelFront
from src.stitching.stitch_spec import ControlSpec, StitchSpec

UNTRAINED = 3  # networks of the front's architecture
BATCH = 128  # images over which BatchNorms of untrained networks take their statistics
PARTNER = "partner"  # the front network, looking at another image
LABELS = "labels"  # no network, but the true class


@dataclass(frozen=True, slots=True)
class Control:
    """A line of CONTROLS: something that a stitch is held against.

    about: what is sewn, in words. bounds: what it bounds. colour: in pictures. sewn(spec, exact): the stitches that it
    takes, `exact` as in `is_one`; an empty list says that there is nothing to train, for `is_end` because the end
    network itself is what would come of it. fit(features, layer, split): instead of a stitch, a head on the pooled
    features of the front layer, which takes them to logits; it is fitted to labels. setup: puts networks and images
    beside those of the stitch, `late` where it wraps what others put there, the higher the later. role: "floor" and
    "ceiling" are what the score lies between. tells: whether it is told the true class of each image.
    """

    about: str
    bounds: str
    colour: str
    sewn: Callable[[StitchSpec, bool], list[ControlSpec]] | None = None
    fit: Callable[[PooledFeatures, str, Split], Probe] | None = None
    setup: Callable[["ControlSetup"], None] | None = None
    role: str = ""
    is_end: bool = False
    late: int = 0
    tells: bool = False

    def __post_init__(self) -> None:
        if (self.sewn is None) == (self.fit is None):
            raise UserError(f"a control is sewn or fitted, one of the two: {self.about}")


def is_one(spec: StitchSpec, *, exact: bool = True) -> bool:
    """Whether a network stitched to itself with this spec starts as the identity, so that it loses nothing.

    exact: whether a fit has more rows than features. With fewer it is the identity on the fitted images alone.
    """
    free = spec.mask == "identity" and spec.low_rank is None and not (spec.kernel or spec.hidden)
    free = free and not spec.train_end_norm
    return free and (spec.init == "eye" or (exact and spec.init in ("ps_inv", "orthogonal")))


def _constant(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    # nothing to regularise: a constant has no CKA
    return [ControlSpec.of(spec, "front", constant=True, cka_reg=0.0, kernel=0, hidden=0, norm=False)]


def _untrained(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [ControlSpec.of(spec, name) for name in _names_of_untrained()]


def _shuffled(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [ControlSpec.of(spec, PARTNER)]


def _self(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [] if is_one(spec, exact=exact) else [ControlSpec.of(spec, "end", front_layer=spec.end_layer)]


def _self_random(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [ControlSpec.of(spec, "end", front_layer=spec.end_layer, init="random")]


def _labels(spec: StitchSpec, exact: bool) -> list[ControlSpec]:
    return [ControlSpec.of(spec, LABELS)]


ALL = "all"


def possible_controls(names: Sequence[str], *, labelled: bool, task: Task) -> tuple[list[str], list[str]]:
    """The controls that there can be, and why others of all of them are left out, a line each.

    labelled: whether the labels are of the end network's classes. Raises UserError for one that was asked for by name
    and is told the labels, where these are of other classes or several an image.
    """
    kept, notes = [], []
    for name in names:
        if not CONTROLS[name].tells or (labelled and task is SINGLE_LABEL):
            kept.append(name)
            continue
        why = "has several labels an image" if labelled else "has labels of other classes than the end network's"
        text = f"the control {name} is a class an image, and this data set {why}"
        if set(names) != set(CONTROLS):
            raise UserError(f"{text}; leave it out of --controls")
        notes.append(f"note: {text}: left out")
    return kept, notes


def choose_controls(text: str) -> list[str]:
    """The controls that a comma list, or "all", names, in the order of the table; UserError for an unknown one."""
    named = [part.strip() for part in text.split(",")]
    if named == [ALL]:
        return list(CONTROLS)
    for name in named:
        if name not in CONTROLS:
            raise UserError(
                f"unknown control {name!r}{close_to(name, CONTROLS)}; choose all, or from {', '.join(CONTROLS)}"
            )
    return [name for name in CONTROLS if name in named]


def sewn_for(spec: StitchSpec, names: Sequence[str], *, exact: bool = True) -> dict[str, list[ControlSpec]]:
    """The stitches that are sewn for each control of a spec; `exact` as in `is_one`.

    A control whose stitches are those of one before it, as the self-stitch of a random init and the one from a random
    start, is left out.
    """
    sewn: dict[str, list[ControlSpec]] = {}
    for name in names:
        control = CONTROLS[name]
        stitches = control.sewn(spec, exact) if control.sewn else []
        if not stitches or stitches not in sewn.values():
            sewn[name] = stitches
    return sewn


def control_specs(
    geometry: Geometry, spec: StitchSpec, names: Sequence[str], images: int
) -> dict[str, list[ControlSpec]]:
    """The same, where a fit has the rows of so many images of this geometry."""
    rows = images * (1 if geometry.is_flat else math.prod(geometry.end_shape[1:]))
    return sewn_for(spec, names, exact=rows > geometry.outputs)


@dataclass(slots=True)
class ControlSetup:
    """Networks and images as the stitches of one seed and their controls need them; `setup` of controls change it.

    networks: "front", "end", and by the `source` of specs those beside them; made: what stands for others. sample: two
    images. fresh(seed): an untrained network of the front's architecture that takes the same images. layers: those of
    the front at which stitches start.
    """

    networks: dict[str, nn.Module]
    sample: Tensor
    train: Split
    val: Split
    seed: int
    layers: list[str]
    fresh: Callable[[int], nn.Module] | None
    usual: Split
    made: dict[str, Made] = field(default_factory=dict)


def _add_untrained(setup: ControlSetup) -> None:
    """Raises UserError where there is no way to make untrained networks."""
    if setup.fresh is None:
        raise UserError("no untrained network of the front's architecture can be made; leave out this control")
    made = {name: setup.fresh(derived_seed(setup.seed, name)) for name in _names_of_untrained()}
    made = {name: network.to(setup.sample.device) for name, network in made.items()}
    recalibrate_batchnorm(list(made.values()), setup.layers, setup.train)
    setup.networks |= made


def _pair_images(setup: ControlSetup) -> None:
    """Each image gets another beside it, which one network more, the front's partner, looks at."""
    front = setup.networks["front"]
    setup.networks = {role: for_half(network, 0) for role, network in setup.networks.items()}
    setup.networks[PARTNER] = for_half(front, 1)
    setup.sample = torch.cat([setup.sample, setup.sample], 1)
    setup.train = shuffled(setup.train, derived_seed(setup.seed, "shuffled train"))
    setup.val = shuffled(setup.val, derived_seed(setup.seed, "shuffled val"))
    setup.usual = shuffled(setup.usual, derived_seed(setup.seed, "shuffled usual"))


def _mark_images(setup: ControlSetup) -> None:
    """Each image says its label and its place in two channels more, which no network looks at."""
    setup.networks = {role: without_last(network, MARKS) for role, network in setup.networks.items()}
    setup.made[LABELS] = LabelFront(len(setup.train.spec.labels))
    setup.sample = torch.cat([setup.sample, torch.zeros_like(setup.sample[:, :1]).expand(-1, MARKS, -1, -1)], 1)
    setup.train, setup.val = MarkedSplit(setup.train), MarkedSplit(setup.val, len(setup.train))
    setup.usual = MarkedSplit(setup.usual)


CONTROLS = {
    "constant": Control(
        "no front: the best constant activation, a bias alone", "what end says without looking", "#8C8C8C", _constant
    ),
    "untrained": Control(
        f"the front's architecture with {UNTRAINED} other seeds, untrained, its BatchNorms settled on training images",
        "what training of the front adds",
        "#D55E00",
        _untrained,
        setup=_add_untrained,
        role="floor",
    ),
    "shuffled": Control(
        "the front sees another image than the one that counts, by one fixed permutation",
        "what leaks without correspondence",
        "#CC79A7",
        _shuffled,
        setup=_pair_images,
        late=1,
    ),
    LABELS: Control(
        "no front: the true class of each image, as a point of its own for each class, with noise",
        "what the label alone makes possible",
        "#332288",
        _labels,
        setup=_mark_images,
        late=2,
        tells=True,
    ),
    "self": Control(
        "end's own layer, sewn to itself",
        "the ceiling of this family of maps, and of the optimiser",
        "#555555",
        _self,
        role="ceiling",
        is_end=True,
    ),
    "self_random": Control("the same from a random start", "the ceiling of the optimiser", "#56B4E9", _self_random),
    "probe": Control(
        "logistic regression on the average of front's activation over positions",
        "what is linearly there",
        "#882255",
        fit=PooledFeatures.probe,
    ),
}
# the names of the two controls that the score lies between
FLOOR, CEILING = (
    next(name for name, control in CONTROLS.items() if control.role == role) for role in ("floor", "ceiling")
)


def prepare_controls(
    cuts: CutNetworks,
    specs: Sequence[StitchSpec],
    names: Sequence[str],
    splits: tuple[Split, Split, Split],
    *,
    fresh: Callable[[int], nn.Module] | None,
) -> tuple[CutNetworks, tuple[Split, Split, Split]]:
    """The networks and the splits with what the named controls of some specs, all of one seed, put beside them.

    The splits are the images for training, those for scoring, and those that tell what the end network is used to.
    `fresh` as in `ControlSetup`. Raises UserError where untrained networks are asked for and there is no way to make
    them.
    """
    (seed,) = {spec.seed for spec in specs}
    layers = list(dict.fromkeys(spec.front_layer for spec in specs))
    train, val, usual = splits
    setup = ControlSetup(dict(cuts.networks), cuts.sample, train, val, seed, layers, fresh, usual)
    # pairs of images last, but for marks: all networks that are there by then look at the first of each
    for control in sorted((CONTROLS[name] for name in CONTROLS if name in names), key=lambda control: control.late):
        if control.setup:
            control.setup(setup)
    front, end = setup.networks.pop("front"), setup.networks.pop("end")
    others = {**setup.networks, **setup.made}
    made = CutNetworks(front, end, specs, setup.sample, others=others, layouts=cuts.asked)
    return made, (setup.train, setup.val, setup.usual)


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
        norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
        norms = [norm for norm in norms if norm.running_mean is not None]
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
