"""How sure one may be of a stitch: intervals over images, the penalty, and the score between two controls."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from src.core.intervals import bootstrap, of_shares, paired_difference, percentiles, wilson
from src.evaluation.scores import HITS, AgreementCounter

Interval = tuple[float, float]
LEAST_SPAN = 0.05  # between the two controls of a score: below it, nothing can be told apart
KINDS = {"acc": "right", "same_class_out": "same"}


def intervals_of(counts: AgreementCounter, name: str) -> dict[str, Interval]:
    """95% intervals of a network's accuracy and agreement with the target, over images."""
    intervals = {}
    for measure, kind in KINDS.items():
        share = (counts.agreement(name) | counts.scores(name))[measure]
        if share is None:
            continue
        if counts.decisions == counts.images:
            intervals[measure] = wilson(share, counts.images)
        else:  # decisions about one image go together
            intervals[measure] = of_shares(_shares(counts, kind, name))
    return intervals


def penalty_of(counts: AgreementCounter, name: str) -> dict[str, float] | None:
    """Accuracy of the target minus that of a stitched network: what stitching costs, in shares (Bansal et al. 2021).

    The interval is that of a paired difference, for the images are the same; `value` may be below 0.
    """
    assert counts.target is not None
    hits = counts.hits(counts.target, name)
    if hits is None:
        return None
    value = (hits["rw"] - hits["wr"]) / counts.decisions
    if counts.decisions == counts.images:
        low, high = paired_difference(**hits)
    else:
        low, high = of_shares(_shares(counts, "right", counts.target), _shares(counts, "right", name))
    return {"value": value, "low": low, "high": high}


def paired_shares(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The mean of the first minus that of the second, shares of right decisions of the same images, and its interval.

    Newcombe's where each image has one decision, else a bootstrap over images.
    """
    value = float(one.mean() - other.mean())
    if np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
        a, b = one == 1, other == 1
        hits = dict(zip(HITS, (int(which.sum()) for which in (a & b, a & ~b, ~a & b, ~a & ~b)), strict=True))
        low, high = paired_difference(**hits)
    else:
        low, high = of_shares(one, other)
    return {"value": value, "low": low, "high": high}


def score_of(counts: AgreementCounter, name: str, floor: Sequence[str], ceiling: str) -> dict[str, Any] | None:
    """(stitched - floor) / (ceiling - floor), accuracies, `floor` the mean of several networks: 0 and 1 are controls.

    The interval is that of a bootstrap over images, each of which stays with all networks; it says nothing about other
    networks, or other seeds. There is no value (None, and a `reason`) where the lower end of the interval of
    ceiling - floor is below LEAST_SPAN.
    """
    if not counts.labelled:
        return None

    def parts(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low = means[:, 2:].mean(1)
        return means[:, 0] - low, means[:, 1] - low

    names = [name, ceiling, *floor]
    rows = np.stack([_shares(counts, "right", one) for one in names], 1)
    drawn = bootstrap(rows, lambda means: np.stack(parts(means), 1))
    span = percentiles(drawn[:, 1])
    above, whole = (float(part[0]) for part in parts(rows.mean(0, keepdims=True)))
    if span[0] < LEAST_SPAN:
        reason = f"the controls are {100 * whole:.1f} points apart ({100 * span[0]:.1f} to {100 * span[1]:.1f})"
        return {"value": None, "low": None, "high": None, "reason": reason}
    low, high = percentiles(drawn[:, 0] / drawn[:, 1])
    return {"value": above / whole, "low": low, "high": high}


def _shares(counts: AgreementCounter, kind: str, name: str) -> np.ndarray:
    found = counts.shares(kind, name)
    assert found is not None, f"{name} was to be kept"
    return found
