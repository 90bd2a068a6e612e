"""What a stitch is trained for: its loss on a batch."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from src.core.precision import mixed_precision
from src.core.task import Task
from src.metrics import linear_cka
from src.stitching.cut_networks import LOGITS, CutNetworks, Shared
from src.stitching.layer import Stitch
from src.stitching.stitch_spec import StitchSpec
from src.stitching.targets import AT_STITCH, TARGETS, Pairs, Taught


@dataclass(frozen=True, slots=True)
class StitchObjective:
    """loss(target) + l1 * mean |W| + cka_reg * CKA(the end network's own activation, the stitched activation).

    The target is that of one `stage` of the training. Called with what `CutNetworks.share` gives and (images, labels)
    of a batch, it returns the loss and which decisions match the labels; where these are not of the networks' classes
    (`labelled` is false), which match a teacher's. `variance` is that of the end's own activation where the target
    compares. With `amp` the networks and the stitch multiply in bfloat16; losses are float32 in any case.
    """

    cuts: CutNetworks
    spec: StitchSpec
    stitch: Stitch
    task: Task
    labelled: bool = True
    stage: int = 0
    variance: float = 1.0

    def __call__(self, shared: Shared, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        spec, target = self.spec, TARGETS[self.spec.stages[self.stage].target]
        with mixed_precision(images.device, enabled=spec.amp):
            stitched = self.cuts.stitched(spec, self.stitch, shared)
            pairs, logits = self._pairs_and_logits(shared, stitched, images)
        logits = logits.float()
        teachers = {role: shared[role][LOGITS].float() for role in target.teachers}
        loss = target.loss(Taught(self.task, logits, labels, teachers, pairs, self.variance, spec.temperature))
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

    def _pairs_and_logits(self, shared: Shared, stitched: Tensor, images: Tensor) -> tuple[Pairs, Tensor]:
        """The activations that the target compares, and the logits, all from one pass behind the stitch."""
        spec = self.spec
        target = spec.stages[self.stage].target
        at, layers = TARGETS[target].at, self.cuts.matched(spec, target)
        made = {spec.end_layer: stitched}
        if at in ("", AT_STITCH):
            # the logits are no part of what is matched at the stitch
            with torch.no_grad() if at else nullcontext():
                logits = self.cuts.forward_from(spec.end_layer, stitched, images, self.stitch)
        else:
            later = [layer for layer in layers if layer != spec.end_layer]
            *outputs, logits = self.cuts.forward_through(
                spec.end_layer, (*later, LOGITS), stitched, images, self.stitch
            )
            made |= dict(zip(later, outputs, strict=True))
        return [(made[layer].float(), shared["end"][layer].float()) for layer in layers], logits
