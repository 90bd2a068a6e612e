"""How sure the comparison of one pair of layers is: their activations, kept, and what follows from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from src.core.config import MEMORY
from src.core.errors import UserError
from src.core.task import MULTI_LABEL, Task
from src.cutting.channel_axis import Output, find_outputs, layouts_of
from src.cutting.freeze import freeze
from src.cutting.parts import heads
from src.dataset import Split
from src.evaluation.passes import feed
from src.metrics.certainty.uncertainty import Sample, Uncertainty, intervals, nulls, threshold
from src.metrics.functional import FUNCTIONAL, Functional
from src.metrics.registry import METRICS


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


def require_room(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[str, str],
    sample: Tensor,
    images: int,
    *,
    memory: float = MEMORY,
    layouts: tuple[str | None, str | None] = (None, None),
) -> list[dict[str, Output]]:
    """What the two layers give; UserError where the activations of so many images take more than `memory` bytes."""
    outputs_of = [
        find_outputs(network, [layer], sample, asked)
        for network, layer, asked in zip(networks, layers, layouts, strict=True)
    ]
    shapes = [outputs[layer].canonical for outputs, layer in zip(outputs_of, layers, strict=True)]
    needed = 4 * images * sum(map(math.prod, shapes))
    if needed > memory:
        raise UserError(
            f"--intervals, --permutations and --versus keep all activations, {needed / 1e9:.1f} GB here; choose "
            f"smaller layers, or allow it with --memory {math.ceil(needed / 1e9)}"
        )
    return outputs_of


def certainty_of(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[str, str],
    sample: Tensor,
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    with_intervals: bool = True,
    permutations: int = 0,
    batch_size: int = 64,
    memory: float = MEMORY,
    layouts: tuple[str | None, str | None] = (None, None),
) -> Certainty:
    """Intervals and null distributions of the named metrics of two layers, from one pass over a split.

    networks, layers: of both sides; an empty layer is the whole network. sample: two blank images. names: metrics that
    have a value. view: how activations become rows, None for each metric's own. permutations: random pairings of the
    images, 0 for none. layouts: those asked for, of each side. All activations are kept, in float32; raises UserError
    where these take more than `memory` bytes.
    """
    found = require_room(networks, layers, sample, len(split), memory=memory, layouts=layouts)
    whole, answers = _gathered(networks, layers, found, split, batch_size)
    of_layers, certainty = [name for name in names if name in METRICS], Certainty()
    if with_intervals:
        certainty.add("intervals", intervals(of_layers, view, whole))
    if permutations:
        certainty.add("null", nulls(of_layers, view, whole, permutations=permutations))
    outputs = answers[0], answers[1], split.labels.cpu(), split.spec.task
    for measure in (FUNCTIONAL[name] for name in names if name in FUNCTIONAL):
        _add_functional(certainty, measure, outputs, with_intervals=with_intervals, permutations=permutations)
    return certainty


def sample_of(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[str, str],
    sample: Tensor,
    split: Split,
    *,
    batch_size: int = 64,
    memory: float = MEMORY,
    layouts: tuple[str | None, str | None] = (None, None),
) -> Sample:
    """The activations of one layer of each network on all images of a split; arguments as of `certainty_of`."""
    found = require_room(networks, layers, sample, len(split), memory=memory, layouts=layouts)
    return _gathered(networks, layers, found, split, batch_size)[0]


def _gathered(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[str, str],
    outputs_of: list[dict[str, Output]],
    split: Split,
    batch_size: int,
) -> tuple[Sample, list[Tensor]]:
    """The activations of both layers, and what both networks answer, of all images of a split."""
    shapes = [outputs[layer].canonical for outputs, layer in zip(outputs_of, layers, strict=True)]
    parts = [
        freeze(heads(network, [layer, ""], layouts_of(outputs))).to(split.device)
        for network, layer, outputs in zip(networks, layers, outputs_of, strict=True)
    ]
    kept: list[list[Tensor]] = [[], []]
    logits: list[list[Tensor]] = [[], []]

    def keep(*outputs: tuple[Tensor, Tensor]) -> None:
        for side, (activation, answer) in enumerate(outputs):
            kept[side].append(activation.flatten(1).float().cpu())
            logits[side].append(answer.float().cpu())

    feed(parts, split, keep, batch_size=batch_size, title="activations for intervals")
    with torch.inference_mode(False):
        x, y = (torch.cat(side).clone() for side in kept)
        return Sample(x, y, shapes[0], shapes[1]), [torch.cat(side).clone() for side in logits]


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
        is_counted = measure.counted and task is not MULTI_LABEL
        certainty.how[f"intervals of {measure.name}"] = "counted images" if is_counted else "spread over images"
    if permutations and measure.paired:
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(first), generator=generator) for _ in range(permutations)]
        drawn = [float(measure.of(first, second[order], labels, task)) for order in orders]
        observed = float(measure.of(first, second, labels, task))
        passed = threshold(observed, drawn, higher_is_better=measure.higher_is_better)
        certainty.null[measure.name] = sum(drawn) / len(drawn), passed
        certainty.how[f"null of {measure.name}"] = f"{permutations} permutations of {len(first)} images"
