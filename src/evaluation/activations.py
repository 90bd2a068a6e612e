"""The activations of layers of two networks, kept: what intervals, differences and calibration are made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.core.config import MEMORY
from src.core.errors import UserError
from src.cutting.channel_axis import Output, find_outputs, layouts_of
from src.cutting.freeze import freeze
from src.cutting.parts import heads
from src.dataset import Split
from src.evaluation.passes import feed
from src.metrics.certainty.uncertainty import Rows, Sample

Networks = tuple[nn.Module, nn.Module]
Layers = tuple[Sequence[str], Sequence[str]]
Layouts = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Activations:
    """Of both networks the rows of each layer, on the processor and in float32, and what they answer."""

    sides: tuple[list[Rows], list[Rows]]
    answers: tuple[Tensor, Tensor] | None = None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The numbers of the layers of each pair, row by row."""
        return [(i, j) for i in range(len(self.sides[0])) for j in range(len(self.sides[1]))]

    def sample(self, i: int, j: int) -> Sample:
        return Sample.of(self.sides[0][i], self.sides[1][j])


def require_room(
    networks: Networks,
    layers: Layers,
    sample: Tensor,
    images: int,
    *,
    options: str,
    memory: float = MEMORY,
    layouts: Layouts = (None, None),
) -> list[dict[str, Output]]:
    """What the layers give; UserError where the activations of so many images take more than `memory` bytes.

    sample: two blank images. options: which of the command line keep them, for the message. layouts: those asked for.
    """
    outputs_of = [find_outputs(*given) for given in zip(networks, layers, (sample, sample), layouts, strict=True)]
    sizes = [
        math.prod(outputs[layer].canonical)
        for outputs, names in zip(outputs_of, layers, strict=True)
        for layer in names
    ]
    needed = 4 * images * sum(sizes)
    if needed > memory:
        raise UserError(
            f"{options} keep all activations, {needed / 1e9:.1f} GB here; choose fewer or smaller layers, or allow it "
            f"with --memory {math.ceil(needed / 1e9)}"
        )
    return outputs_of


def keep_activations(
    networks: Networks,
    layers: Layers,
    sample: Tensor,
    split: Split,
    *,
    options: str,
    batch_size: int | None = None,
    memory: float = MEMORY,
    layouts: Layouts = (None, None),
    with_answers: bool = False,
) -> Activations:
    """Keep the activations of these layers, and both networks' answers, in one pass over all images of a split.

    An empty layer is the whole network. Raises UserError as `require_room` does.
    """
    outputs_of = require_room(networks, layers, sample, len(split), options=options, memory=memory, layouts=layouts)
    answer = [""] if with_answers else []
    parts = [
        freeze(heads(network, [*names, *answer], layouts_of(outputs))).to(split.device)
        for network, names, outputs in zip(networks, layers, outputs_of, strict=True)
    ]
    kept: list[list[list[Tensor]]] = [[[] for _ in (*names, *answer)] for names in layers]

    def keep(*outputs: Sequence[Tensor]) -> None:
        for side, names, tensors in zip(kept, layers, outputs, strict=True):
            for number, (batches, tensor) in enumerate(zip(side, tensors, strict=True)):
                batches.append((tensor.flatten(1) if number < len(names) else tensor).float().cpu())

    feed(parts, split, keep, batch_size=batch_size, title="keeping activations")
    sides, answers = [], []
    with torch.inference_mode(False):
        for batches, names, outputs in zip(kept, layers, outputs_of, strict=True):
            whole = [torch.cat(each).clone() for each in batches]
            sides.append([Rows(x, outputs[layer].canonical) for x, layer in zip(whole, names, strict=False)])
            answers += whole[len(names) :]
    return Activations((sides[0], sides[1]), (answers[0], answers[1]) if with_answers else None)
