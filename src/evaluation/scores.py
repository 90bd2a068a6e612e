"""How well networks do their task and how far two of them agree, counted batch by batch; every mean is over images."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.precision import full_precision
from src.core.progress import bar
from src.core.task import MULTI_LABEL, SINGLE_LABEL, Task
from src.dataset import Split
from src.evaluation.together import HITS, Together, fits
from src.metrics.algebra.linalg import float64_device

KEPT = ("right", "same")  # what is kept image by image: right decisions, and those that are the target's
# images -> logits (images, classes) of each network by its name
Forward = Callable[[Tensor], Mapping[str, Tensor]]


class AgreementCounter:
    """Show it the logits (images, classes) of several networks by name, batch by batch, then ask.

    target: the name of the network with which the others are compared. couples: pairs of networks whose right and
    wrong decisions are counted together. labelled: whether the labels are of these networks' classes, but for those of
    the `unlabelled`; where they are not, everything that needs them is None, as is all of a network that was not shown.
    keep: names of networks whose decisions are kept image by image. at_once: whether all networks are counted by the
    same operators; None: on a GPU.
    """

    def __init__(
        self,
        task: Task,
        *,
        target: str | None = None,
        couples: Sequence[tuple[str, str]] = (),
        labelled: bool = True,
        unlabelled: Collection[str] = (),
        keep: Collection[str] = (),
        at_once: bool | None = None,
    ) -> None:
        self.task, self.target, self.couples, self.labelled = task, target, list(couples), labelled
        self._unlabelled = frozenset(unlabelled)
        self._kept: dict[tuple[str, str], list[Tensor]] = {(kind, name): [] for kind in KEPT for name in keep}
        self.images = self.decisions = self.classes = 0
        self.at_once = at_once
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._together: Together | None = None

    def update(self, logits: Mapping[str, Tensor], labels: Tensor) -> None:
        """Count a batch. Sums are float64, those of decisions are exact."""
        device = float64_device(labels.device)
        labels = labels.to(device)
        images = len(labels)
        self.images += images
        self.classes = next(iter(logits.values())).shape[1]
        self.decisions += images if self.task is SINGLE_LABEL else images * self.classes
        if (device.type == "cuda" if self.at_once is None else self.at_once) and fits(logits):
            self._together_of(list(logits), device).update(logits, labels)
            return
        exact = {name: values.float().to(device).double() for name, values in logits.items()}
        decided = {name: self.task.predictions(values) for name, values in exact.items()}
        if self.labelled:
            named = {name: values for name, values in exact.items() if name not in self._unlabelled}
            self._count_hits({name: decided[name] for name in named}, labels)
            for name, values in named.items():
                self._add(("loss", name), images * self.task.loss(values, labels))
        if self.target is None:
            return
        probabilities = self.task.probabilities(exact[self.target])
        one_label = self.task is SINGLE_LABEL
        for name, values in exact.items():
            self._add(("crossentropy", name), images * self.task.crossentropy(values, probabilities))
            if one_label:
                own = self.task.probabilities(values)
                norms = torch.maximum(own.square().sum(1), probabilities.square().sum(1))
                self._add(("published", name), (100 * (own * probabilities).sum(1) / norms).sum())
            same = decided[name] == decided[self.target]
            self._add(("same", name), same.sum())
            self._keep(("same", name), same)

    def _together_of(self, names: list[str], device: torch.device) -> Together:
        if self._together is None:
            self._together = Together(
                self.task,
                names,
                target=self.target,
                couples=self.couples,
                labelled=[name for name in names if name not in self._unlabelled] if self.labelled else (),
                keep={name for _, name in self._kept},
                device=device,
            )
        return self._together

    def _settle(self) -> None:
        """Take over what was counted for all networks at once, before anything is read."""
        if self._together is None:
            return
        for key, value in self._together.sums().items():
            self._add(key, value)
        for key, values in self._together.kept().items():
            self._kept[key].append(values)
        self._together = None

    def _count_hits(self, decided: Mapping[str, Tensor], labels: Tensor) -> None:
        right = {name: (values == labels) for name, values in decided.items()}
        for name, which in right.items():
            self._add(("right", name), which.sum())
            self._keep(("right", name), which)
        for first, second in self.couples:
            a, b = right[first], right[second]
            for kind, which in zip(HITS, (a & b, a & ~b, ~a & b, ~a & ~b), strict=True):
                self._add((kind, first, second), which.sum())

    def _add(self, key: tuple[str, ...], value: Tensor) -> None:
        value = value.detach()
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _keep(self, key: tuple[str, str], which: Tensor) -> None:
        if key in self._kept:
            self._kept[key].append(which.view(len(which), -1).double().mean(1))

    def shares(self, kind: str, name: str) -> np.ndarray | None:
        """For each image the share of a kept network's decisions that are right, or those of the target, (images,)."""
        self._settle()
        parts = self._kept[kind, name]
        return torch.cat([part.cpu() for part in parts]).numpy() if parts else None

    def scores(self, name: str) -> dict[str, Any]:
        """Loss (nats) and accuracy (0 to 1)."""
        self._settle()
        if ("loss", name) not in self._sums:
            return {"loss": None, "acc": None}
        return {
            "loss": self._sums["loss", name].item() / self.images,
            "acc": self._sums["right", name].item() / self.decisions,
        }

    def agreement(self, name: str) -> dict[str, Any]:
        """How far a network agrees with the target.

        `crossentropy` to the target's probabilities, averaged over images and classes (0 only where both are certain);
        `same_class_out`, the share of equal decisions, 0 to 1; `rel_acc`, accuracy divided by the target's;
        `published_agreement`, of one label an image, the mean over images of
        100 (p . q) / max(norm(p)^2, norm(q)^2), p and q the probabilities of the two (arXiv 2505.20142).
        """
        assert self.target is not None
        self._settle()
        if ("same", name) not in self._sums:
            return {"crossentropy": None, "same_class_out": None, "rel_acc": None, "published_agreement": None}
        own, best = self.scores(name)["acc"], self.scores(self.target)["acc"]
        return {
            "crossentropy": self._sums["crossentropy", name].item() / self.images,
            "same_class_out": self._sums["same", name].item() / self.decisions,
            "rel_acc": None if own is None else own / best if best else float("nan"),
            "published_agreement": self._sums["published", name].item() / self.images
            if ("published", name) in self._sums
            else None,
        }

    def loss_to_target(self, name: str) -> float:
        """Mean loss an image towards the target's probabilities, in nats, as training with soft targets has it."""
        self._settle()
        crossentropy = self._sums["crossentropy", name].item() / self.images
        return crossentropy * (1 if self.task is MULTI_LABEL else self.classes)

    def hits(self, first: str, second: str) -> dict[str, int] | None:
        """Decisions that both get right (rr), only the first (rw), only the second (wr), or neither (ww)."""
        self._settle()
        return {kind: int(self._sums[kind, first, second]) for kind in HITS} if self.labelled else None


@torch.inference_mode()
def tally(
    forward: Forward, split: Split, counts: AgreementCounter, *, batch_size: int, title: str = ""
) -> AgreementCounter:
    """Show one pass over a split to a tally, in full float32; the networks are to be in eval mode."""
    with full_precision(), bar(len(split), title, unit="image") as progress:
        for images, labels in split.batches(batch_size):
            counts.update(forward(images), labels)
            progress.update(len(images))
    return counts
