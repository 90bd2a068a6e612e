"""How far two networks with the same classes decide alike, from their logits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.task import MULTI_LABEL, Task


@dataclass(frozen=True, slots=True)
class Functional:
    """A measure of two networks' logits (images, classes), the labels and the task; 0 where both are equal."""

    name: str
    meaning: str
    of: Callable[[Tensor, Tensor, Tensor, Task], float]
    range: tuple[float, float] = (0.0, 1.0)
    identical: float = 0.0
    alike: Literal["higher", "lower"] = "lower"

    def number(self, value: float) -> float:
        """The value, which is one number."""
        return float(value)


def jensen_shannon(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> float:
    """Return the mean Jensen-Shannon divergence of the probabilities, in nats: 0 (equal) to ln 2 (certain of others).

    Of each image, for several labels of each of its yes/no decisions. Source: Lin 1991, "Divergence measures".
    """
    p, q = (task.probabilities(logits.double()) for logits in (x, y))
    if task is MULTI_LABEL:
        p, q = (torch.stack([side, 1 - side], -1) for side in (p, q))
    middle = (p + q) / 2
    divergence = sum(torch.xlogy(side, side) - torch.xlogy(side, middle) for side in (p, q))
    assert isinstance(divergence, Tensor)
    return min(math.log(2), max(0.0, float(divergence.sum(-1).mean()) / 2))


def disagreement(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> float:
    """Return the share of decisions that differ. Source: Madani et al. 2004, "Co-validation"."""
    return float((task.predictions(x) != task.predictions(y)).double().mean())


def accuracy_difference(x: Tensor, y: Tensor, labels: Tensor, task: Task) -> float:
    """Return the absolute difference of the two accuracies."""
    one, other = (task.correct(logits, labels.to(logits.device)).double().mean() for logits in (x, y))
    return abs(float(one - other))


FUNCTIONAL = {
    measure.name: measure
    for measure in (
        Functional("jsd", "Jensen-Shannon divergence of the outputs, nats", jensen_shannon, range=(0.0, math.log(2))),
        Functional("disagreement", "share of different decisions", disagreement),
        Functional("abs_acc_diff", "absolute difference of the accuracies", accuracy_difference),
    )
}
