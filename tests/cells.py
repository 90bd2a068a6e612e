"""Plain activations through the engine, as a pass over images would bring them."""

from collections.abc import Sequence

from torch import Tensor

from src.metrics import METRICS, Cell, Grid
from src.metrics.engine.plan import Pair, plan_grid, require_possible


def grid_of(
    names: Sequence[str], xs: Sequence[Tensor], ys: Sequence[Tensor], view: str | None = None, *, batch=50, **options
) -> Grid:
    """A grid that has seen these activations, in batches."""
    shapes = [[tuple(x.shape[1:]) for x in side] for side in (xs, ys)]
    memory, device = options.pop("memory", None), options.pop("device", "cpu")
    plan = plan_grid(names, view, n_images=len(xs[0]), shapes_x=shapes[0], shapes_y=shapes[1], **options)
    require_possible(plan, memory)
    grid = Grid(plan, device)
    for start in range(0, len(xs[0]), batch):
        grid.update([x[start : start + batch] for x in xs], [y[start : start + batch] for y in ys])
    return grid


def cells_of(names: Sequence[str], xs: Sequence[Tensor], ys: Sequence[Tensor], *args, **options) -> dict[Pair, Cell]:
    return grid_of(names, xs, ys, *args, **options).cells()


def cell_of(names: Sequence[str], x: Tensor, y: Tensor, *args, **options) -> Cell:
    """What a pair gives: the only cell of a 1 x 1 grid."""
    return cells_of(names, [x], [y], *args, **options)[0, 0]


def number_of(name: str, x: Tensor, y: Tensor, *args, **options) -> float:
    """The one number of a metric; ValueError, with its name, where it was refused."""
    cell = cell_of([name], x, y, *args, **options)
    if name in cell.unavailable:
        raise ValueError(f"{name}: {cell.unavailable[name]}")
    return METRICS[name].number(cell.values[name])
