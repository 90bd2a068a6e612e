"""Scores of stitches after each epoch; what no stitch changes is computed for the first, and kept where it fits.

Those of the last epoch are those of the trained map, which is scored with the others at the end.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from src.dataset import Split
from src.evaluation.passes import batch_of
from src.evaluation.scores import AgreementCounter, tally
from src.stitching.cut_networks import LOGITS, CutNetworks, Shared, layers_of
from src.stitching.layer import Stitch
from src.stitching.stacked_maps import map_chunks
from src.stitching.stitch_spec import StitchSpec

TAME = 1e6  # beyond it a number of a stitch is looked at before anything is made of it


def comes_later(spec: StitchSpec, layer: Stitch, epochs: int) -> bool:
    """Whether a stitch after so many epochs is scored at the end anyway: it is the one that stays.

    Not where a watch may go back to another, nor where numbers are not finite, or so large that sums of them may not
    be: those have to be found out first.
    """
    if epochs < spec.epochs or spec.early_stop:
        return False
    numbers = [value for value in layer.state_dict().values() if value.is_floating_point()]
    return all(bool((value.abs() <= TAME).all()) for value in numbers)  # false for what is no number


class Validation:
    """Call it with stitches by name, after each epoch: their loss and accuracy on the images of a split.

    labelled: whether the labels are of the end network's classes; if not, loss to and agreement with the end network.
    at_once: so many stitches are scored together. room: bytes that may be kept from one epoch to the next; 0 where
    there is none.
    """

    def __init__(self, cuts: CutNetworks, split: Split, *, labelled: bool, at_once: int, room: float) -> None:
        self.cuts, self.split, self.labelled, self.at_once, self.room = cuts, split, labelled, at_once, room
        self._kept: list[Shared] = []
        self._of: dict[str, list[str]] = {}

    def __call__(self, sewn: Mapping[str, tuple[StitchSpec, Stitch]]) -> dict[str, dict[str, float]]:
        """Loss and accuracy by name."""
        if not sewn:
            return {}
        for _, layer in sewn.values():
            layer.eval()
        size, specs = batch_of(self.split), [spec for spec, _ in sewn.values()]
        chunks, others = map_chunks(self.cuts, sewn, images=size, most=self.at_once)
        known, keeps = self._known(specs), self._fits(specs)
        coming = iter(self._kept) if known else None
        if not known:
            self._kept, self._of = [], layers_of(specs) if keeps else {}

        def forward(images: Tensor) -> dict[str, Tensor]:
            fronts = self._shared(specs, images) if coming is None else next(coming)
            if coming is None and keeps:
                self._kept.append(fronts)
            logits = {} if self.labelled else {"end": fronts["end"][LOGITS]}
            for chunk in chunks:
                logits |= chunk.logits(self.cuts, fronts, images)
            return logits | {name: self.cuts.logits(*one, fronts, images) for name, one in others.items()}

        target = None if self.labelled else "end"
        task = self.split.spec.task
        counts = AgreementCounter(task, target=target, labelled=self.labelled, at_once=self.at_once > 0)
        tally(forward, self.split, counts, batch_size=size)
        return {name: scores_of(counts, name) for name in sewn}

    def _shared(self, specs: list[StitchSpec], images: Tensor) -> Shared:
        return self.cuts.front_activations(specs, images, {} if self.labelled else {"end": [LOGITS]})

    def _known(self, specs: list[StitchSpec]) -> bool:
        """Whether what was kept serves these, of which there may be fewer than there were."""
        return bool(self._kept) and all(
            set(layers) <= set(self._of.get(source, ())) for source, layers in layers_of(specs).items()
        )

    def _fits(self, specs: list[StitchSpec]) -> bool:
        shapes = {(spec.source, spec.front_layer): self.cuts.geometry(spec.cut).front_shape for spec in specs}
        return 4 * len(self.split) * sum(map(math.prod, shapes.values())) <= self.room


def scores_of(counts: AgreementCounter, name: str) -> dict[str, float]:
    """Loss and accuracy; without labels of these classes the loss to the end network, and agreement with it."""
    if counts.labelled:
        return counts.scores(name)
    return {"loss": counts.loss_to_target(name), "acc": counts.agreement(name)["same_class_out"]}
