"""Whether a comparison's numbers can be trusted: ranks, dead channels, bias, and warnings in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from src.metrics.algebra.layer import Facts, facts_of_spread
from src.metrics.algebra.linalg import unit_spectrum
from src.metrics.algebra.moments import Sums
from src.metrics.registry import METRICS

Shape = tuple[int, ...]
# Features whose rank is looked at; that of more is bounded from below by that of a part.
RANK_FEATURES = 2048
ONE_IMAGE = 0.25  # share of a side's variance from which on one image carries its comparison


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What stands behind the numbers of one view; pairs are (front, end).

    rank is None where only differences were gathered; with rank_is_bound the true rank may be larger.
    cka_bias is biased minus debiased CKA, None where neither was asked for; cka_chance what biased CKA is on average
    where images do not correspond, None where it was not asked for. participation_ratio of either side is corrected for
    few images; None where CKA was not asked for or images are too few.
    """

    view: str
    images: int
    rows: int
    features: tuple[int, int]
    rank: tuple[int, int] | None
    rank_is_bound: bool
    dead_channels: tuple[int, int]
    cka_bias: float | None
    cka_chance: float | None = None
    participation_ratio: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


def facts_of_sums(sums: Sums, *, ranked: bool) -> Facts:
    """Read the facts from sums of products; the rank, if asked, of at most RANK_FEATURES features, evenly picked."""
    facts = facts_of_spread(sums.mean, sums.products.diagonal(), sums.n)
    if not ranked:
        return facts
    if "rank" not in sums.known:
        sums.known["rank"] = _rank(sums)
    return facts._replace(rank=sums.known["rank"])


def _rank(sums: Sums) -> tuple[int, bool]:
    """The rank, and whether the true one may be larger."""
    step = -(-len(sums.mean) // RANK_FEATURES)
    if step == 1:
        return len(sums.spectrum().values), False
    part = sums.products[::step, ::step]
    rank = len(unit_spectrum(part, sums.mean[::step], sums.n).values)
    return rank, rank == len(part)


def diagnose(
    view: str,
    images: int,
    shapes: tuple[Shape, Shape],
    facts: tuple[Facts, Facts],
    names: Sequence[str],
    group: int | None,
    bias: float | None,
    *,
    chance: float | None = None,
    participation: tuple[float, float] | None = None,
    largest: tuple[float, float] | None = None,
) -> Diagnostics:
    """Say what stands behind the named metrics of a view, given what is known of both sides and of CKA.

    bias, chance, participation: the fields of the record. largest: of each side the share of its variance that one
    image has, where images are known one by one.
    """
    nonconstant, ranks = [side.nonconstant for side in facts], [side.rank for side in facts]
    constant = [dead_channels(alive, shape[0]) for alive, shape in zip(nonconstant, shapes, strict=True)]
    positions = math.prod(shapes[0][1:]) if view == "channels" else 1
    health = Diagnostics(
        view,
        images,
        images * positions,
        (len(nonconstant[0]), len(nonconstant[1])),
        (ranks[0][0], ranks[1][0]) if ranks[0] and ranks[1] else None,
        any(rank is not None and rank[1] for rank in ranks),
        (constant[0], constant[1]),
        bias,
        chance,
        participation,
    )
    far = _one_image_warnings(names, largest)
    return replace(health, warnings=(*_warnings(health, facts, sorted(names), group, many=not far), *far))


def _one_image_warnings(names: Sequence[str], largest: tuple[float, float] | None) -> list[str]:
    """What is to be said where one image has much of the variance of a side, of which `largest` is the largest share.

    A far image pairs with itself: where it is far on both sides similarities approach 1, where on one side 0, whatever
    the other images do (Davari et al. 2023).
    """
    touched = sorted(name for name in names if METRICS[name].needs in ("gram", "moments"))
    if not touched or not largest or max(largest) < ONE_IMAGE:
        return []
    side = "front" if largest[0] >= largest[1] else "end"
    return [
        f"{', '.join(touched)}: one image has {max(largest):.0%} of the {side}'s variance, so this is mostly about it; "
        "look at that image, or leave it out"
    ]


def dead_channels(nonconstant: Tensor, channels: int) -> int:
    """Count the channels without a single live feature; features of one channel lie together."""
    return int((~nonconstant.reshape(channels, -1).any(1)).sum())


def _warnings(
    health: Diagnostics, facts: tuple[Facts, Facts], names: list[str], group: int | None, *, many: bool
) -> tuple[str, ...]:
    """Say in words what makes the named metrics of this view doubtful; `many`: not one image alone makes them so."""
    alive = [int(side.nonconstant.sum()) for side in facts]
    return tuple(
        [*_side_warnings(health, facts, alive), *_count_warnings(names, health.rows, *health.features)]
        + _cka_warnings(health, names, group, many=many)
        + _map_warnings(names, health, alive)
    )


def _side_warnings(health: Diagnostics, facts: tuple[Facts, Facts], alive: list[int]) -> list[str]:
    warnings = []
    for side, constant, nonconstant, features in zip(
        ("front", "end"), health.dead_channels, alive, health.features, strict=True
    ):
        if nonconstant == 0:
            warnings.append(f"the {side}'s activations are constant")
        elif 2 * nonconstant <= features:
            warnings.append(
                f"only {nonconstant} of the {side}'s {features} features vary ({constant} channels are dead)"
            )
    offset = max(side.offset for side in facts)
    if offset > 1e3:
        warnings.append(f"means are {offset:.0e} times the variation: float32 has lost that many digits")
    return warnings


def _count_warnings(names: list[str], rows: int, front: int, end: int) -> list[str]:
    warnings = []
    for name in names:
        who = METRICS[name].outnumbered
        features = {"both": front + end, "front": front}.get(who, 0)
        if who == "both" and rows < features + 1:
            warnings.append(f"{name}: {features + 1 - rows} or more correlations are 1 only because images are so few")
        elif rows < 10 * features:
            warnings.append(f"{name}: biased upwards, with only {rows / features:.1f} rows for each feature")
        elif name == "procrustes" and rows < front + end:
            warnings.append("procrustes: biased downwards, with fewer rows than features")
    return warnings


def _cka_warnings(health: Diagnostics, names: list[str], group: int | None, *, many: bool) -> list[str]:
    warnings = []
    if many and "cka" in names and health.cka_bias is not None and health.cka_bias > 0.02:
        warnings.append(
            f"cka: {health.cka_bias:.3f} above its debiased estimate, from too few images; use cka_debiased"
        )
    averaged = [name for name in names if group and METRICS[name].needs in ("gram", "features", "matrices")]
    if averaged and health.view == "images":
        warnings.append(
            f"{', '.join(averaged)}: mean over groups of about {group} images, not the value of all together"
        )
    return warnings


def _map_warnings(names: list[str], health: Diagnostics, alive: list[int]) -> list[str]:
    if "ps_inv" in names and health.rank is not None and not health.rank_is_bound and health.rank[0] < alive[0]:
        return [f"ps_inv: w is not unique, {alive[0]} features span {health.rank[0]} dimensions; the smallest is given"]
    return []
