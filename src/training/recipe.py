"""How something is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from src.core.errors import UserError
from src.training.muon import Muon

LARGEST = 1e38  # nearly the largest float32, in which optimizers take their factors


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters, lr, weight_decay: torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay),
    "sgd": lambda parameters, lr, weight_decay: torch.optim.SGD(
        parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True
    ),
    "muon": Muon,
}
# those to which each number is a parameter of its own: for stitches, whose shape is no part of what is asked
ELEMENTWISE = ("adam", "sgd")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: epochs, images a batch, optimizer, learning rate and weight decay.

    The rate falls to a tenth after a third of the epochs and to a hundredth after two, or to 0 along half a cosine.
    """

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    cosine: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise UserError(f"{self.epochs} epochs; give 0 or more with --epochs")
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}; give 1 or more with --batch-size")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"learning rate {self.lr}; give a positive number with --lr")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise UserError(f"weight decay {self.weight_decay}; give 0 or more with --weight-decay")
        for name, value, option in (("learning rate", self.lr, "--lr"), ("weight decay", self.weight_decay, "-wd")):
            if value > LARGEST:
                raise UserError(f"{name} {value} exceeds {LARGEST:.0e}; lower it with {option}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"unknown optimizer {self.optimizer!r}; choose from {', '.join(sorted(OPTIMIZERS))}")

    def rate(self, epoch: int, passed: float = 0.0) -> float:
        """Learning rate in an epoch, counted from 0, of which the share `passed` is over."""
        if self.cosine:
            return self.lr * (1 + math.cos(math.pi * (epoch + passed) / self.epochs)) / 2
        thirds_passed = (3 * epoch >= self.epochs) + (3 * epoch >= 2 * self.epochs)
        return self.lr * 0.1**thirds_passed
