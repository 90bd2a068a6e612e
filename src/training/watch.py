"""When what learns has learnt enough: images that are held out of training, and what was best on them."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from src.core.records import ARRAY, FINITE, NATURAL, Each, Maybe, check

State = dict[str, Tensor]
KEPT = {"best": Maybe(FINITE), "epoch": NATURAL, "seen": NATURAL, "state": Each(ARRAY)}


@dataclass(slots=True)
class Watch:
    """The loss on held-out images after each epoch, and the state in which it was lowest.

    It is over after `patience` epochs without a lower one. The start counts as epoch 0; a loss that is not finite is
    none.
    """

    patience: int
    best: float | None = None
    epoch: int = 0
    seen: int = 0
    state_then: State = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.seen - self.epoch >= self.patience

    def look(self, trained: nn.Module, epoch: int, loss: float) -> None:
        """Take note of the loss after so many epochs."""
        self.seen = epoch
        if not self.state_then or (math.isfinite(loss) and (self.best is None or loss < self.best)):
            self.best = loss if math.isfinite(loss) else None
            self.epoch = epoch
            self.state_then = {name: value.detach().cpu().clone() for name, value in trained.state_dict().items()}

    @torch.no_grad()
    def restore(self, trained: nn.Module) -> None:
        """Go back to the best state."""
        trained.load_state_dict(self.state_then)

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "seen": self.seen, "state": self.state_then}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; raises UserError for anything else."""
        check(state, KEPT, required=KEPT)
        self.best, self.epoch, self.seen, self.state_then = (state[name] for name in KEPT)
