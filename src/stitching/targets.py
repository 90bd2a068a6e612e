"""What the stitched network is trained to say: the true labels, or what its two donors say."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from src.core.task import Task


@dataclass(frozen=True, slots=True)
class Target:
    """A line of TARGETS: the networks that teach, and how their softened logits become one probability each class."""

    teachers: tuple[str, ...]
    combine: Callable[..., Tensor] | None = None


TARGETS = {
    "hard": Target(()),
    "soft_1": Target(("front",), lambda task, front: task.probabilities(front)),
    "soft_2": Target(("end",), lambda task, end: task.probabilities(end)),
    # the mean of two cross-entropies is the cross-entropy to the mean: it is linear in its target
    "soft_12": Target(
        ("front", "end"), lambda task, front, end: (task.probabilities(front) + task.probabilities(end)) / 2
    ),
    "soft_1_plus_2": Target(("front", "end"), lambda task, front, end: task.probabilities((front + end) / 2)),
}


def teachers_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By the names of targets the networks that teach them."""
    return {name: TARGETS[name].teachers for name in names}


def target_loss(
    name: str, task: Task, logits: Tensor, labels: Tensor, teacher_logits: dict[str, Tensor], *, temperature: float
) -> Tensor:
    """Loss of logits (n, classes) towards the target; a scalar, in nats.

    Soft targets divide both the logits and the teachers' by the temperature (Hinton, Vinyals and Dean 2015).
    """
    target = TARGETS[name]
    if target.combine is None:
        return task.loss(logits, labels)
    softened = [teacher_logits[teacher] / temperature for teacher in target.teachers]
    return task.loss(logits / temperature, target.combine(task, *softened))
