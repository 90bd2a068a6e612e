"""Images changed against a network, within a bound that people hardly see (Madry et al. 2018)."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Generator, Tensor

from src.core.errors import UserError
from src.core.precision import full_precision
from src.core.progress import bar
from src.core.task import Task
from src.dataset import Split
from src.evaluation.passes import batch_of

STEPS, PART = 10, 4  # of the attack: steps of the bound / PART each
EPSILON, WORDS = 8 / 255, "8/255"  # what a bare option means
OPTION = "--adversarial"
_BOUND = re.compile(r"\d+/\d+|0?\.\d+(e-\d+)?")
Network = Callable[[Tensor], Tensor]  # images as it sees them -> logits (images, classes), with gradients


def read_bound(text: str) -> float:
    """A bound such as 8/255 or 0.03, of pixels in 0..1; raises UserError for anything else."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if not 0 < value <= 1:
        raise UserError(f"{text!r} is no bound of pixels in 0..1, such as {WORDS}")
    return value


def with_bound(words: Sequence[str]) -> list[str]:
    """The words of a command line with a bound behind a bare option, which takes no other word that follows."""
    filled = []
    for number, word in enumerate(words):
        following = words[number + 1] if number + 1 < len(words) else ""
        bare = word == OPTION and not _BOUND.fullmatch(following)
        filled.append(f"{word}={WORDS}" if bare else word)
    return filled


def attacked(
    network: Network,
    images: Tensor,
    labels: Tensor,
    task: Task,
    low: Tensor,
    high: Tensor,
    *,
    bound: float,
    start: Tensor,
) -> Tensor:
    """Images (n, c, h, w) near the given ones at which a network's loss to their labels is high.

    From `start` (n, c, h, w) in -1..1, so much of the bound away, STEPS steps of bound / PART along the sign of the
    gradient, each brought back to within the bound and to pixels that there are. low, high: (1, c, 1, 1), black and
    white as the network sees them; the bound is of their difference.
    """
    reach = bound * (high - low)
    made = (images + start * reach).clamp(low, high)
    for _ in range(STEPS):
        made = made.detach().requires_grad_()
        with torch.enable_grad():
            loss = task.loss(network(made).float(), labels) * len(images)
            (gradient,) = torch.autograd.grad(loss, made)
        made = made.detach() + gradient.sign() * reach / PART
        made = torch.minimum(torch.maximum(made, images - reach), images + reach).clamp(low, high)
    return made.detach()


def robust_accuracy(network: Network, split: Split, *, bound: float, title: str = "") -> float:
    """The share of right decisions about images of a split that were changed against this very network, 0 to 1."""
    right, decisions, task = 0, 0, split.spec.task
    generator = Generator().manual_seed(0)
    low, high = split.pixel_range
    context: AbstractContextManager = full_precision()
    with context, torch.inference_mode(False), torch.no_grad(), bar(len(split), title, unit="image") as progress:
        for images, labels in split.batches(batch_of(split)):
            start = 2 * torch.rand(images.shape, generator=generator).to(images.device) - 1
            made = attacked(network, images, labels, task, low, high, bound=bound, start=start)
            correct = task.correct(network(made), labels)
            right, decisions = right + int(correct.sum()), decisions + correct.numel()
            progress.update(len(images))
    return right / decisions
