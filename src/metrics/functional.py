"""How far two networks with the same classes decide alike, from their logits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.core.intervals import Z95, of_shares, paired_difference, wilson
from src.core.task import MULTI_LABEL, Task

Interval = tuple[float, float]
Counted = Callable[[Tensor, Tensor, Tensor, Task], Interval]


@dataclass(frozen=True, slots=True)
class Functional:
    """A measure of two networks' logits (images, classes), the labels and the task; 0 where both are equal.

    It is the mean over images of `each`, (images,), or its absolute value where that is signed. paired: whether it
    depends on which image of the one goes with which of the other. counted: the 95% interval of its mean where each
    image has one decision, which are counted: near 0 and 1 their standard deviation says little. needs_labels: whether
    labels of the networks' classes decide its value.
    """

    name: str
    meaning: str
    each: Callable[[Tensor, Tensor, Tensor, Task], Tensor]
    range: tuple[float, float] = (0.0, 1.0)
    identical: float = 0.0
    higher_is_better: bool = False
    more_alike: Literal["higher", "lower"] = "lower"
    paired: bool = True
    counted: Counted | None = None
    needs_labels: bool = False

    def number(self, value: float) -> float:
        """The value, which is one number."""
        return float(value)

    def of(self, x: Tensor, y: Tensor, labels: Tensor, task: Task) -> float:
        """The measure itself."""
        return min(self.range[1], abs(float(self.each(x, y, labels, task).mean())))

    def counting(self, values: Tensor, task: Task) -> Counted | None:
        """What makes the interval of the mean of each image's value of counts; None: it is of their deviation."""
        return self.counted if task is not MULTI_LABEL or bool((values == values[0]).all()) else None

    def interval(self, x: Tensor, y: Tensor, labels: Tensor, task: Task) -> Interval:
        """The 95% interval over images, from counts or their standard deviation, whichever says more."""
        values = self.each(x, y, labels, task)
        if count := self.counting(values, task):
            low, high = count(x, y, labels, task)
        else:
            mean, half = float(values.mean()), Z95 * float(values.std()) / math.sqrt(len(values))
            low, high = mean - half, mean + half
        if self.paired:
            return max(self.range[0], low), min(self.range[1], high)
        near, far = sorted((abs(low), abs(high)))  # of a signed difference, its size
        return 0.0 if low <= 0 <= high else near, far


def jensen_shannon(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the Jensen-Shannon divergence of the probabilities, in nats: 0 (equal) to ln 2 (certain of others).

    Of each image, for several labels the mean of its yes/no decisions. Source: Lin 1991, "Divergence measures".
    """
    p, q = (task.probabilities(logits.double()) for logits in (x, y))
    if task is MULTI_LABEL:
        p, q = (torch.stack([side, 1 - side], -1) for side in (p, q))
    middle = (p + q) / 2
    divergence = sum(torch.xlogy(side, side) - torch.xlogy(side, middle) for side in (p, q))
    assert isinstance(divergence, Tensor)
    return divergence.sum(-1).view(len(x), -1).mean(1).clamp(0, 2 * math.log(2)) / 2


def disagreement(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return each image's share of decisions that differ. Source: Madani et al. 2004, "Co-validation"."""
    return (task.predictions(x) != task.predictions(y)).view(len(x), -1).double().mean(1)


def accuracy_difference(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return each image's share of right decisions of the one less that of the other."""
    one, other = _right(x, y, labels, task)
    return one - other


def _right(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Each image's share of right decisions of the one and of the other, (2, images)."""
    right = [task.correct(logits, labels.to(logits.device)).view(len(x), -1) for logits in (x, y)]
    return torch.stack(right).double().mean(2)


def _disagreeing(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> Interval:
    return wilson(float(disagreement(x, y, labels, task).mean()), len(x))


def _difference(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> Interval:
    if task is MULTI_LABEL:
        return of_shares(*_right(x, y, labels, task).cpu().numpy())
    a, b = _right(x, y, labels, task).bool()
    return paired_difference(*(int(which.sum()) for which in (a & b, a & ~b, ~a & b, ~a & ~b)))


FUNCTIONAL = {
    measure.name: measure
    for measure in (
        Functional("jsd", "Jensen-Shannon divergence of the outputs, nats", jensen_shannon, range=(0.0, math.log(2))),
        Functional("disagreement", "share of different decisions", disagreement, counted=_disagreeing),
        Functional(
            "abs_acc_diff",
            "absolute difference of the accuracies",
            accuracy_difference,
            paired=False,
            counted=_difference,
            needs_labels=True,
        ),
    )
}
