"""What the stitched network is trained for: the true labels, what its two donors say, or the end's own activations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.options import NUMBERS
from src.core.task import Task

AT_STITCH, AT_FINAL, AT_LATER = "stitch", "final", "later"  # where activations are compared
Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Taught:
    """What a loss is made of, for one batch.

    logits: of the stitched network, (images, classes), and by role those of its teachers. pairs: the stitched network's
    activation and the end network's own for the same images, at each layer that the target asks for. variance: the mean
    variance of the end's own at the only one of them, on training images.
    """

    task: Task
    logits: Tensor
    labels: Tensor
    teachers: dict[str, Tensor] = field(default_factory=dict)
    pairs: Pairs = ()
    variance: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A line of TARGETS.

    loss(taught): a scalar. teachers: the networks whose logits it needs; where none teaches, the labels do. softened:
    whether a temperature divides logits. at: where the end network's own activations are needed and the stitched ones
    beside them: at the stitch, at the final features, or at all later layers; "" nowhere.
    """

    loss: Callable[[Taught], Tensor]
    teachers: tuple[str, ...] = ()
    softened: bool = False
    at: str = ""


def _soft(combine: Callable[..., Tensor], *teachers: str) -> Target:
    """Cross-entropy to one probability each class, which `combine` makes of the task and the teachers' logits."""

    def loss(taught: Taught) -> Tensor:
        softened = [taught.teachers[role] / taught.temperature for role in teachers]
        return taught.task.loss(taught.logits / taught.temperature, combine(taught.task, *softened))

    return Target(loss, teachers, softened=True)


def _over_variance(taught: Taught) -> Tensor:
    ((stitched, own),) = taught.pairs
    return (stitched - own).square().mean() / taught.variance


def _relative_norms(taught: Taught) -> Tensor:
    """The mean over layers of norm(z - t) / norm(t), Frobenius norms of the batch; of a dead layer norm(z - t)."""
    ratios = []
    for stitched, own in taught.pairs:
        norm = torch.linalg.vector_norm(own)
        ratios.append(torch.linalg.vector_norm(stitched - own) / torch.where(norm > 0, norm, torch.ones_like(norm)))
    return torch.stack(ratios).mean()


TARGETS = {
    "hard": Target(lambda taught: taught.task.loss(taught.logits, taught.labels)),
    "soft_1": _soft(lambda task, front: task.probabilities(front), "front"),
    "soft_2": _soft(lambda task, end: task.probabilities(end), "end"),
    # the mean of two cross-entropies is the cross-entropy to the mean: it is linear in its target
    "soft_12": _soft(
        lambda task, front, end: (task.probabilities(front) + task.probabilities(end)) / 2, "front", "end"
    ),
    "soft_1_plus_2": _soft(lambda task, front, end: task.probabilities((front + end) / 2), "front", "end"),
    "kl_2": Target(lambda taught: taught.task.divergence(taught.logits, taught.teachers["end"]), ("end",)),
    "match": Target(_over_variance, ("end",), at=AT_STITCH),
    "match_final": Target(_over_variance, ("end",), at=AT_FINAL),
    "match_later": Target(_relative_norms, ("end",), at=AT_LATER),
}
BETWEEN_STAGES, BETWEEN_VARIANTS = ",", "+"


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """One of the targets that a stitch is trained for, one after the other, and for how many epochs."""

    target: str
    epochs: int

    @property
    def is_soft(self) -> bool:
        return TARGETS[self.target].softened


def target_names(target_type: str) -> list[str]:
    """The targets of all stages; raises UserError for an unknown one."""
    names = [name.strip() for name in target_type.split(BETWEEN_STAGES)]
    for name in names:
        if name not in TARGETS:
            raise UserError(f"unknown target type {name!r}; choose from {', '.join(sorted(TARGETS))}")
    return names


def stages_of(target_type: str, epochs: int, stage_epochs: str = "") -> list[TrainingStage]:
    """The stages of a training; `stage_epochs` are the epochs of each, with commas, "" where there is but one.

    Raises UserError where there are not as many numbers as targets, or their sum is not `epochs`.
    """
    names = target_names(target_type)
    read = NUMBERS["natural"].read
    counts = [read(text) for text in stage_epochs.split(BETWEEN_STAGES)] if stage_epochs else [epochs]
    if len(counts) != len(names):
        said = stage_epochs or epochs
        raise UserError(
            f"--target-type {target_type} is trained in {len(names)} stages, and --epochs {said} says the length of "
            f"{len(counts)}; give that of each, such as -e {','.join(['2'] * len(names))}"
        )
    if sum(counts) != epochs or (len(counts) == 1 and stage_epochs):
        raise UserError(f"stages of {stage_epochs} epochs are not {epochs} epochs in all")
    return [TrainingStage(name, count) for name, count in zip(names, counts, strict=True)]


def staged(target_type: str, epochs: int | str) -> dict[str, int | str]:
    """The fields of a spec that say how long it is trained, where epochs may be those of each stage, with commas.

    A target of one stage takes their sum.
    """
    text = str(epochs)
    total = sum(int(part) for part in text.split(BETWEEN_STAGES))
    several = len(target_names(target_type)) > 1 and BETWEEN_STAGES in text
    return {"epochs": total, "stage_epochs": text if several else ""}


def teachers_of(target_types: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By the names of targets, of all stages, the networks that teach them."""
    return {name: TARGETS[name].teachers for target_type in target_types for name in target_names(target_type)}
