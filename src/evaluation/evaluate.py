"""How well a network does its task, and how similar what two heads give is."""

from collections.abc import Sequence

from torch import nn

from src.dataset import Split
from src.evaluation.passes import BATCH_SIZE, Head, feed
from src.evaluation.scores import AgreementCounter, tally
from src.metrics import Cell, Grid
from src.metrics.engine.plan import plan_grid, require_possible


def evaluate(network: nn.Module, split: Split, *, batch_size: int = BATCH_SIZE, title: str = "") -> dict[str, float]:
    """Loss (nats) and accuracy (0 to 1) of a network, in eval mode; its own mode is left as it was."""
    was_training = network.training
    network.eval()
    try:
        counts = AgreementCounter(split.spec.task)
        tally(lambda images: {"": network(images)}, split, counts, batch_size=batch_size, title=title)
    finally:
        network.train(was_training)
    return counts.scores("")


def compare(
    heads: tuple[Head, Head],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    split: Split,
    names: Sequence[str],
    *,
    view: str | None = None,
    group: int | None = None,
    memory: float | None = None,
    batch_size: int = BATCH_SIZE,
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
