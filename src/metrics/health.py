"""Whether a comparison's numbers can be trusted: ranks, dead channels, bias, and warnings in words."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.metrics.gram import BLOCK
from src.metrics.linalg import rank_floor, unit_spectrum
from src.metrics.moments import PairedMoments
from src.metrics.registry import METRICS
from src.metrics.store import FeatureStore

# Sides of the matrices whose rank is looked at; of larger ones a part, which bounds the rank from below.
RANK_FEATURES = 2048
RANK_IMAGES = 1024


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an accumulator knows of its two sides: live features, ranks, and mean over standard deviation."""

    live: tuple[Tensor, Tensor]
    rank: tuple[int, int] | None = None
    rank_is_bound: bool = False
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Health:
    """What stands behind the numbers of one view; pairs are (front, end).

    rank is None where only differences were gathered; with rank_is_bound the true rank may be larger.
    cka_bias is biased minus debiased CKA, None where neither was asked for.
    """

    view: str
    images: int
    rows: int
    features: tuple[int, int]
    rank: tuple[int, int] | None
    rank_is_bound: bool
    dead_channels: tuple[int, int]
    cka_bias: float | None
    warnings: tuple[str, ...] = ()


def evidence_of_moments(moments: PairedMoments) -> Evidence:
    """Read ranks (at most RANK_FEATURES features a side, evenly picked) and live features from moments."""
    sides = ((moments.xx, moments.mean_x), (moments.yy, moments.mean_y))
    ranks, bound = [], False
    for gram, mean in sides:
        step = -(-len(gram) // RANK_FEATURES)
        part = gram[::step, ::step]
        ranks.append(len(unit_spectrum(part, mean[::step], moments.n).values))
        bound = bound or (step > 1 and ranks[-1] == len(part))
    offset = max(_offset(mean, gram.diagonal(), moments.n) for gram, mean in sides)
    return Evidence(moments.live(), (ranks[0], ranks[1]), bound, offset)


def evidence_of_store(store: FeatureStore) -> Evidence:
    """Read ranks (of at most RANK_IMAGES images, evenly picked) and live features from stored features."""
    rows_x, rows_y = store.centred_rows()
    sides = ((rows_x, store.mean_x, store.squares_x), (rows_y, store.mean_y, store.squares_y))
    step = -(-store.n // RANK_IMAGES)
    ranks = [_rank(rows[::step]) for rows, _, _ in sides]
    bound = step > 1 and any(rank == len(rows_x[::step]) - 1 for rank in ranks)
    offset = max(_offset(mean, squares, store.n) for _, mean, squares in sides)
    return Evidence(store.live(), (ranks[0], ranks[1]), bound, offset)


def evidence_of_sides(stores: tuple[FeatureStore, FeatureStore]) -> Evidence:
    """Read live features, but no ranks, of the front side of one store and the end side of another."""
    front, end = stores
    offsets = _offset(front.mean_x, front.squares_x, front.n), _offset(end.mean_y, end.squares_y, end.n)
    return Evidence((front.live()[0], end.live()[1]), offset=max(offsets))


def _offset(mean: Tensor, squares: Tensor, n: int) -> float:
    variance = float(squares.sum()) / max(1, n)
    return float(mean.square().sum() / variance) ** 0.5 if variance > 0 else 0.0


def _rank(rows: Tensor) -> int:
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(BLOCK, dim=1):
        part = part.double() - part.double().mean(0)
        size = part.norm(dim=0)
        part = part / torch.where(size > 0, size, torch.ones_like(size))
        for start in range(0, len(gram), BLOCK // 2):  # down to the diagonal, which is all that eigvalsh reads
            stop = start + BLOCK // 2
            gram[start:stop, :stop].addmm_(part[start:stop], part[:stop].T)
    values = torch.linalg.eigvalsh(gram)
    return int((values > rank_floor(values)).sum())


def dead_channels(live: Tensor, channels: int) -> int:
    """Count the channels without a single live feature; features of one channel lie together."""
    return int((~live.reshape(channels, -1).any(1)).sum())


def doubts(health: Health, evidence: Evidence, names: Iterable[str], group: int | None) -> tuple[str, ...]:
    """Say in words what makes the named metrics of this view doubtful."""
    names, rows, (front, end) = sorted(names), health.rows, health.features
    alive = [int(live.sum()) for live in evidence.live]
    return tuple(
        [*_doubtful_sides(health, evidence, alive), *_doubtful_counts(names, rows, front, end)]
        + _doubtful_cka(health, names, group)
        + _doubtful_map(names, health, alive)
    )


def _doubtful_sides(health: Health, evidence: Evidence, alive: list[int]) -> list[str]:
    found = []
    for side, dead, live, features in zip(("front", "end"), health.dead_channels, alive, health.features, strict=True):
        if live == 0:
            found.append(f"the {side}'s activations are constant")
        elif 2 * live <= features:
            found.append(f"only {live} of the {side}'s {features} features vary ({dead} channels are dead)")
    if evidence.offset > 1e3:
        found.append(f"means are {evidence.offset:.0e} times the variation: float32 has lost that many digits")
    return found


def _doubtful_counts(names: list[str], rows: int, front: int, end: int) -> list[str]:
    found = []
    for name in names:
        who = METRICS[name].outnumbered
        features = {"both": front + end, "front": front}.get(who, 0)
        if who == "both" and rows < features + 1:
            found.append(f"{name}: {features + 1 - rows} or more correlations are 1 only because images are so few")
        elif rows < 10 * features:
            found.append(f"{name}: biased upwards, with only {rows / features:.1f} rows for each feature")
        elif name == "procrustes" and rows < front + end:
            found.append("procrustes: biased downwards, with fewer rows than features")
    return found


def _doubtful_cka(health: Health, names: list[str], group: int | None) -> list[str]:
    found = []
    if "cka" in names and health.cka_bias is not None and health.cka_bias > 0.02:
        found.append(f"cka: {health.cka_bias:.3f} above its debiased estimate, from too few images; use cka_debiased")
    averaged = [name for name in names if group and METRICS[name].needs in ("gram", "features")]
    if averaged and health.view == "images":
        found.append(f"{', '.join(averaged)}: mean over groups of about {group} images, not the value of all together")
    return found


def _doubtful_map(names: list[str], health: Health, alive: list[int]) -> list[str]:
    if "ps_inv" in names and health.rank is not None and not health.rank_is_bound and health.rank[0] < alive[0]:
        return [f"ps_inv: w is not unique, {alive[0]} features span {health.rank[0]} dimensions; the smallest is given"]
    return []
