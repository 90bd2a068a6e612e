"""What a stitch is trained for: its loss on a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from src.core.config import mixed_precision
from src.core.task import Task
from src.metrics import linear_cka
from src.stitching.cut_networks import LOGITS, CutNetworks, Shared
from src.stitching.layer import Stitch
from src.stitching.stitch_spec import StitchSpec
from src.stitching.targets import TARGETS, target_loss


@dataclass(frozen=True, slots=True)
class StitchObjective:
    """loss(target) + l1 * mean |W| + cka_reg * CKA(the end network's own activation, the stitched activation).

    Called with what `CutNetworks.share` gives and (images, labels) of a batch, it returns the loss and which decisions
    match the labels; where these are not of the networks' classes (`labelled` is false), which match a teacher's. With
    `amp` the networks and the stitch multiply in bfloat16; losses are float32 in any case.
    """

    cuts: CutNetworks
    spec: StitchSpec
    stitch: Stitch
    task: Task
    labelled: bool = True

    def __call__(self, shared: Shared, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        spec = self.spec
        with mixed_precision(images.device, enabled=spec.amp):
            stitched = self.cuts.stitched(spec, self.stitch, shared)
            logits = self.cuts.forward_from(spec.end_layer, stitched, images)
        logits = logits.float()
        teachers = {role: shared[role][LOGITS].float() for role in TARGETS[spec.target_type].teachers}
        loss = target_loss(spec.target_type, self.task, logits, labels, teachers, temperature=spec.temperature)
        if spec.whiten and spec.weight_decay:  # an optimizer would pull at the coordinates, not at the map
            loss = loss + spec.weight_decay / 2 * self.stitch.size()
        if spec.l1:
            weights = self.stitch.matrices()
            flat = weights[0] if len(weights) == 1 else torch.cat([weight.flatten() for weight in weights])
            loss = loss + spec.l1 * flat.abs().mean()
        if spec.cka_reg:
            end = shared["end"][spec.end_layer].flatten(1)
            loss = loss + spec.cka_reg * linear_cka(end, stitched.flatten(1))
        if not self.labelled:
            labels = self.task.predictions(teachers.get("end", next(iter(teachers.values()))))
        return loss, self.task.correct(logits.detach(), labels)
