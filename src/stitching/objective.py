"""What a stitch is trained for: its loss on a batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from src.config import mixed_precision
from src.metrics import linear_cka
from src.stitching.layer import StitchLayer
from src.stitching.network import Pair
from src.stitching.targets import TARGETS, target_loss
from src.task import Task


@dataclass(frozen=True, slots=True)
class StitchObjective:
    """loss(target) + l1 * mean |W| + cka_reg * CKA(the end network's own activation, the stitched activation).

    Called with (images, labels) of a batch, it returns the loss and which decisions match the labels. Whatever the
    target, a head runs once: the teachers go on from the activations that the stitch needs anyway. With `amp` the
    networks and the stitch multiply in bfloat16; losses are float32 in any case.
    """

    pair: Pair
    stitch: StitchLayer
    task: Task
    target: str = "hard"
    temperature: float = 1.0
    l1: float = 0.0
    cka_reg: float = 0.0
    amp: bool = False

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with mixed_precision(images.device, enabled=self.amp):
            with torch.no_grad():
                activations = self._activations(images)
                teachers = {name: logits.float() for name, logits in self._teach(activations, images).items()}
            stitched = self.stitch(activations["front"])
            logits = self.pair.end_tail(stitched, images)
        logits = logits.float()
        loss = target_loss(self.target, self.task, logits, labels, teachers, temperature=self.temperature)
        if self.l1:
            loss = loss + self.l1 * self.stitch.matrix().abs().mean()
        if self.cka_reg:
            loss = loss + self.cka_reg * linear_cka(activations["end"].flatten(1), stitched.flatten(1))
        return loss, self.task.correct(logits.detach(), labels)

    def _activations(self, images: Tensor) -> dict[str, Tensor]:
        activations = {"front": self.pair.front_head(images)}
        if self.cka_reg or "end" in TARGETS[self.target].teachers:
            activations["end"] = self.pair.end_head(images)
        return activations

    def _teach(self, activations: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        tails = {"front": self.pair.front_tail, "end": self.pair.end_tail}
        return {name: tails[name](activations[name], images) for name in TARGETS[self.target].teachers}
