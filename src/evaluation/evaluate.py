"""How well a network does its task, and how similar what two heads give is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.core.precision import full_precision
from src.dataset import Split
from src.evaluation.passes import Head, batch_of, feed
from src.evaluation.scores import AgreementCounter, tally
from src.metrics import Cell, Grid
from src.metrics.engine.plan import plan_grid, require_possible


def evaluate(
    network: nn.Module,
    split: Split,
    *,
    batch_size: int | None = None,
    title: str = "",
    part: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Loss (nats) and accuracy (0 to 1) of a network, in eval mode; its own mode is left as it was.

    With `part`, some of its classes by their numbers, also `part`: the same of decisions among these alone.
    """

    def outputs(images: Tensor) -> dict[str, Tensor]:
        logits = network(images)
        if part is None:
            return {"": logits}
        others = torch.ones(logits.shape[1], dtype=torch.bool).index_fill(0, torch.tensor(part), False)
        return {"": logits, "part": logits.masked_fill(others.to(logits.device), -torch.inf)}

    was_training = network.training
    network.eval()
    try:
        counts = AgreementCounter(split.spec.task)
        tally(outputs, split, counts, batch_size=batch_size or batch_of(split), title=title)
    finally:
        network.train(was_training)
    return counts.scores("") | ({} if part is None else {"part": counts.scores("part")})


@full_precision()
def compare(
    heads: tuple[Head, Head],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    group: int | None = None,
    memory: float | None = None,
    batch_size: int | None = None,
    alone: bool = True,
) -> Cell:
    """Compare what two heads give, by the named metrics, in one pass over a split.

    `shapes` are those of one image's outputs; `view` and `group` as in `plan_grid`. Raises UserError, before any
    work, where these allow none of the metrics, if they are all that is asked for (`alone`), and where the rows to be
    kept take more than `memory` bytes.
    """
    plan = plan_grid(
        names, view, n_images=len(split), shapes_x=shapes[:1], shapes_y=shapes[1:], group=group, memory=memory
    )
    require_possible(plan, memory, alone=alone)
    grid = Grid(plan, split.device)
    how = {"batch_size": batch_size, "grouped": group is not None}
    feed(heads, split, lambda x, y: grid.update([x], [y]), title="comparing", **how)
    return grid.cells()[0, 0]
