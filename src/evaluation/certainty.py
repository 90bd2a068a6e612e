"""How sure the comparison of layers is: their activations, kept, and what follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from src.core.config import MEMORY
from src.core.progress import bar
from src.core.task import Task
from src.dataset import Split
from src.evaluation.activations import keep_activations
from src.metrics.certainty.uncertainty import Sample, Uncertainty, intervals, nulls, threshold
from src.metrics.engine.plan import Pair
from src.metrics.functional import FUNCTIONAL, Functional
from src.metrics.registry import METRICS

OPTIONS = "--intervals, --permutations and --versus"  # what keeps activations of all images


@dataclass(frozen=True, slots=True)
class Certainty:
    """By metric: 95% `intervals` over images, and `null`, mean and threshold where images do not correspond.

    `how` says of each, as `intervals of cka` or `null of cka`, how it came about; `unavailable` why there is none.
    """

    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    null: dict[str, tuple[float, float]] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, found: Uncertainty) -> None:
        getattr(self, kind).update(found.values)
        self.how.update({f"{kind} of {name}": text for name, text in found.how.items()})
        self.unavailable.update({f"{kind} of {name}": text for name, text in found.unavailable.items()})

    def joined(self, other: "Certainty") -> "Certainty":
        """What either knows."""
        return Certainty(*(getattr(self, each.name) | getattr(other, each.name) for each in fields(self)))


def certainty_of(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[Sequence[str], Sequence[str]],
    sample: Tensor,
    split: Split,
    names: Mapping[Pair, Sequence[str]],
    *,
    view: str | None = None,
    with_intervals: bool = True,
    permutations: int = 0,
    batch_size: int | None = None,
    memory: float = MEMORY,
    layouts: tuple[str | None, str | None] = (None, None),
) -> dict[Pair, Certainty]:
    """Intervals and null distributions of metrics of every pair of layers, from one pass over a split.

    networks, layers: of both sides; an empty layer is the whole network. sample: two blank images. names: of each pair,
    by the numbers of its layers, the metrics that have a value. view: how activations become rows, None for each
    metric's own. permutations: random pairings of the images, 0 for none. layouts: those asked for, of each side.
    All activations are kept, in float32; raises UserError where these take more than `memory` bytes.
    """
    room: dict[str, Any] = {"batch_size": batch_size, "memory": memory, "layouts": layouts}
    functional = {name for asked in names.values() for name in asked if name in FUNCTIONAL}
    kept = keep_activations(networks, layers, sample, split, options=OPTIONS, with_answers=bool(functional), **room)
    how = {"with_intervals": with_intervals, "permutations": permutations}
    of_decisions = Certainty()  # the same whatever the layers
    for measure in (FUNCTIONAL[name] for name in sorted(functional)):
        assert kept.answers
        _add_functional(of_decisions, measure, (*kept.answers, split.labels.cpu(), split.spec.task), **how)
    certainties = {}
    with bar(len(names), "intervals", unit="pair") as progress:
        for pair, asked in names.items():
            certainties[pair] = _certainty(asked, view, kept.sample(*pair), **how).joined(of_decisions)
            progress.update(1)
    return certainties


def _certainty(
    names: Sequence[str], view: str | None, sample: Sample, *, with_intervals: bool, permutations: int
) -> Certainty:
    of_layers, certainty = [name for name in names if name in METRICS], Certainty()
    if with_intervals:
        certainty.add("intervals", intervals(of_layers, view, sample))
    if permutations:
        certainty.add("null", nulls(of_layers, view, sample, permutations=permutations))
    return certainty


def _add_functional(
    certainty: Certainty,
    measure: Functional,
    outputs: tuple[Tensor, Tensor, Tensor, Task],
    *,
    with_intervals: bool,
    permutations: int,
) -> None:
    first, second, labels, task = outputs
    if with_intervals:
        certainty.intervals[measure.name] = measure.interval(*outputs)
        is_counted = measure.counting(measure.each(*outputs), task)
        certainty.how[f"intervals of {measure.name}"] = "counted images" if is_counted else "spread over images"
    if permutations and measure.paired:
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(first), generator=generator) for _ in range(permutations)]
        drawn = [float(measure.of(first, second[order], labels, task)) for order in orders]
        observed = float(measure.of(first, second, labels, task))
        passed = threshold(observed, drawn, higher_is_better=measure.higher_is_better)
        certainty.null[measure.name] = sum(drawn) / len(drawn), passed
        certainty.how[f"null of {measure.name}"] = f"{permutations} permutations of {len(first)} images"
