"""Decisions of many networks counted at once, (networks, images, classes): as few operators for many as for one."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from src.core.task import SINGLE_LABEL, Task

LARGEST = 1 << 27  # numbers of a batch that are counted at once; of more, network by network
HITS = ("rr", "rw", "wr", "ww")
Key = tuple[str, ...]


def fits(logits: Mapping[str, Tensor]) -> bool:
    """Whether the logits of all networks can lie side by side."""
    return len({values.shape for values in logits.values()}) == 1 and sum(map(torch.numel, logits.values())) <= LARGEST


class Together:
    """Show it logits by name, the same names each time; `sums` and `kept` then say what it has counted.

    target, couples, keep: as in `AgreementCounter`. labelled: the names of networks whose classes the labels are of.
    """

    def __init__(
        self,
        task: Task,
        names: Sequence[str],
        *,
        target: str | None,
        couples: Sequence[tuple[str, str]],
        labelled: Collection[str],
        keep: Collection[str],
        device: torch.device,
    ) -> None:
        self.task, self.names, self.target = task, list(names), target
        self.labelled = [name for name in names if name in labelled]
        self.couples = [couple for couple in couples if all(name in self.labelled for name in couple)]
        self.keep = [name for name in names if name in keep]
        self._keep = self._places(self.keep, device)
        self._firsts, self._seconds = (self._places([couple[i] for couple in self.couples], device) for i in range(2))
        self._sums: dict[str, Tensor] = {}
        self._kept: dict[str, list[Tensor]] = {"right": [], "same": []}

    def _places(self, names: Sequence[str], device: torch.device) -> Tensor:
        return torch.tensor([self.names.index(name) for name in names], dtype=torch.long).to(device)

    def update(self, logits: Mapping[str, Tensor], labels: Tensor) -> None:
        """Count a batch."""
        stacked = torch.stack([logits[name].float() for name in self.names]).to(labels.device).double()
        decided = self._each(stacked, self.task.predictions)
        images, task = len(labels), self.task
        if self.labelled:
            right = decided == labels
            self._add("right", right.flatten(1).sum(1))
            self._keep_shares("right", right)
            losses = torch.func.vmap(lambda values: task.loss(values, labels))(stacked)
            self._add("loss", images * losses)
            a, b = (right.index_select(0, places).flatten(1) for places in (self._firsts, self._seconds))
            for kind, which in zip(HITS, (a & b, a & ~b, ~a & b, ~a & ~b), strict=True):
                self._add(kind, which.sum(1))
        if self.target is None:
            return
        place = self.names.index(self.target)
        probabilities = task.probabilities(stacked[place])
        crossed = torch.func.vmap(lambda values: task.crossentropy(values, probabilities))(stacked)
        self._add("crossentropy", images * crossed)
        if task is SINGLE_LABEL:
            own = self._each(stacked, task.probabilities)
            norms = torch.maximum(own.square().sum(2), probabilities.square().sum(1))
            self._add("published", (100 * (own * probabilities).sum(2) / norms).sum(1))
        same = decided == decided[place]
        self._add("same", same.flatten(1).sum(1))
        self._keep_shares("same", same)

    @staticmethod
    def _each(stacked: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of logits (images, classes), of those of all networks."""
        return function(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])

    def _add(self, kind: str, values: Tensor) -> None:
        self._sums[kind] = self._sums[kind] + values if kind in self._sums else values

    def _keep_shares(self, kind: str, which: Tensor) -> None:
        if self.keep:
            chosen = which.index_select(0, self._keep)
            self._kept[kind].append(chosen.view(*chosen.shape[:2], -1).double().mean(2))

    def sums(self) -> dict[Key, Tensor]:
        """All sums, on the processor, by what they are of and the names of the networks."""
        found: dict[Key, Tensor] = {}
        for kind, values in self._sums.items():
            names: list[Key] = [(name,) for name in self.names]
            if kind in HITS:
                names = [*self.couples]
            chosen = zip(names, values.cpu().unbind(), strict=True)
            of_labels = kind in ("right", "loss")
            found |= {(kind, *key): value for key, value in chosen if not of_labels or key[0] in self.labelled}
        return found

    def kept(self) -> dict[tuple[str, str], Tensor]:
        """The share of decisions of each image, (images,), of the networks that are kept."""
        found = {}
        for kind, parts in self._kept.items():
            if parts:
                found |= {(kind, name): row for name, row in zip(self.keep, torch.cat(parts, 1).unbind(), strict=True)}
        return {key: row for key, row in found.items() if key[0] != "right" or key[1] in self.labelled}
