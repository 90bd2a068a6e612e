"""Before any data: which gatherer serves each metric of each pair of layers, what it costs, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from src.core.errors import UserError
from src.core.text import close_to
from src.metrics.algebra.gram import BLOCK
from src.metrics.algebra.layer import row_space_bytes
from src.metrics.canonical import require_images
from src.metrics.registry import METRICS, Metric

Shape = tuple[int, ...]
Pair = tuple[int, int]
# Sums of products of more features, or coordinates of more images, than this leave no room for anything else.
MOMENT_BYTES, ROW_SPACE_BYTES = 2e9, 7e9


@dataclass(frozen=True, slots=True)
class CellPlan:
    """How one pair of layers is compared. It depends on the shapes, the number of images and the groups alone, so that
    a metric has the same value in whatever company.

    views: name -> "images" or "channels". source: name -> "rows" (all activations), "row_space" (sums of products of
    their coordinates), "moments" (sums of products gathered batch by batch) or "difference".
    unavailable: name -> reason.
    """

    views: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def of(self, *sources: str) -> list[str]:
        """The metrics that these sources serve."""
        return [name for name, source in self.source.items() if source in sources]

    def moment_views(self) -> list[str]:
        """The views in which sums of products are gathered."""
        return sorted({self.views[name] for name in self.of("moments")})


def plan_cell(
    names: Sequence[str],
    view: str | None,
    n: int,
    shape_x: Shape,
    shape_y: Shape,
    group: int | None,
    memory: float | None = None,
) -> CellPlan:
    """Plan a pair of layers that give (c, h, w) or (c,) for an image. Raise UserError for an unknown metric."""
    plan = CellPlan()
    flat = math.prod(shape_x), math.prod(shape_y)
    for name in dict.fromkeys(names):
        metric = find_metric(name)
        taken = plan.views[name] = view_of(metric, view, shape_x, shape_y)
        try:
            check_metric(metric, taken, n, shape_x, shape_y, group)
            if metric.cost and memory is not None:
                _check_cost(metric, n, flat, group, memory)
        except UserError as error:
            plan.unavailable[name] = str(error)
            continue
        if metric.needs == "gram":
            stored = taken == "images" and (group is not None or by_images(n, *flat))
            plan.source[name] = "rows" if stored else "moments"
        elif by_row_space(metric, taken, n, *flat):
            plan.source[name] = "row_space"
        else:
            plan.source[name] = {"features": "rows", "matrices": "rows"}.get(metric.needs, metric.needs)
    return plan


def find_metric(name: str) -> Metric:
    if name not in METRICS:
        raise UserError(f"unknown metric {name}{close_to(name, METRICS)}; known are {', '.join(sorted(METRICS))}")
    return METRICS[name]


def by_images(n: int, dx: int, dy: int) -> bool:
    """Tell whether Gram matrices of images are cheaper than sums of products of features.

    Per image: float32 Gram rows (half of them) against float64 moments, float64 at half the speed.
    """
    return 4 * moment_entries(dx, dy) > n * (dx + dy)


def by_row_space(metric: Metric, view: str, n: int, dx: int, dy: int) -> bool:
    """Tell whether sums of products should be those of coordinates: n x n instead of features x features, and exact.

    That takes all n images at once, whatever the groups; their rows are fewer numbers than the sums would be. It keeps
    what any rotation keeps, but neither a map nor weak features beside strong ones, which the regressions weigh alike;
    so a metric says whether it may be fed them.
    """
    return metric.row_space and view == "images" and 3 * n * n < moment_entries(dx, dy)


def moment_entries(dx: int, dy: int) -> int:
    """Return how many numbers the sums of products of dx and dy features are."""
    return dx * dx + dx * dy + dy * dy


def view_of(metric: Metric, asked: str | None, shape_x: Shape, shape_y: Shape) -> str:
    """Return the view of a metric for activations of these shapes, given the one asked for, if any."""
    # Where an image has a single position, channels and images are the same rows.
    single = math.prod(shape_x[1:]) == math.prod(shape_y[1:]) == 1
    return "images" if single else metric.view(asked)


def check_metric(metric: Metric, view: str, n: int, shape_x: Shape, shape_y: Shape, group: int | None) -> None:
    """Raise UserError for a metric that these shapes, or so few images, do not allow."""
    if metric.same_shape and shape_x != shape_y:
        raise UserError(f"{metric.name} needs activations of one shape, got {shape_x} and {shape_y}")
    alike = shape_x[1:] == shape_y[1:]
    if view == "channels" and not alike:
        enough = not metric.outnumbered or n > math.prod(shape_x) + 1 and n > math.prod(shape_y) + 1
        remedy = "; use --view images" if "images" in metric.views and enough else ""
        raise UserError(f"{metric.name} by channels needs equal positions, got {shape_x} and {shape_y}{remedy}")
    dx, dy = features(view, shape_x), features(view, shape_y)
    rows = n * (1 if view == "images" else math.prod(shape_x[1:]))
    if metric.outnumbered:
        needed = max(dx, dy) if metric.outnumbered == "both" else dx
        require_images(rows, needed, metric.name, "use more images" + " or --view channels" * alike)
    if metric.needs != "moments":
        return
    in_space = by_row_space(metric, view, n, dx, dy)
    taken, limit = (row_space_bytes(n), ROW_SPACE_BYTES) if in_space else (8 * moment_entries(dx, dy), MOMENT_BYTES)
    if taken > limit:
        raise UserError(
            f"{metric.name} of {n} images with {dx} and {dy} features would take {taken / 1e9:.1f} GB of sums of "
            "products; use --view channels"
        )


def _check_cost(metric: Metric, n: int, flat: tuple[int, int], group: int | None, memory: float) -> None:
    assert metric.cost is not None
    images = max(group_sizes(n, group))
    needed = metric.cost(images, *flat)
    if needed > memory:
        fits = next(size for size in range(images, 0, -1 - images // 200) if metric.cost(size, *flat) <= memory)
        raise UserError(
            f"{metric.name} of {images} images would take {needed / 1e9:.1f} GB beside the activations; average over "
            f"groups, as with --group-at {max(2, fits * 2 // 3)}, or allow it with --memory {math.ceil(needed / 1e9)}"
        )


def features(view: str, shape: Shape) -> int:
    """Return how many features a row of this view has."""
    return math.prod(shape) if view == "images" else shape[0]


def group_sizes(n: int, group: int | None) -> list[int]:
    """Cut n images into consecutive groups; a rest of less than half a group joins the last one."""
    if group is None or group >= n:
        return [n]
    if group < 2:
        raise UserError(f"a group of {group} images cannot be compared; use --group-at 2 or more")
    full, rest = divmod(n, group)
    sizes = [group] * full
    if 2 * rest >= group:
        sizes.append(rest)
    else:
        sizes[-1] += rest
    return sizes


@dataclass(frozen=True, slots=True)
class GridPlan:
    """How every pair of many layers is compared. cells: {(i, j): plan} for layers i of the first network, j of the
    second, whose shapes are those of one image's activation."""

    n_images: int
    shapes: tuple[list[Shape], list[Shape]]
    group: int | None
    cells: dict[Pair, CellPlan]

    def stored(self) -> tuple[list[int], list[int]]:
        """The layers of both sides whose rows are kept, of a group after the other."""
        return self._layers_of("rows", *(() if self.group else ("row_space",)))

    def spanned(self) -> tuple[list[int], list[int]]:
        """The layers of both sides whose rows of all images are kept."""
        return self._layers_of("row_space")

    def _layers_of(self, *sources: str) -> tuple[list[int], list[int]]:
        pairs = [pair for pair, plan in self.cells.items() if plan.of(*sources)]
        return sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})

    def gram_pairs(self) -> list[Pair]:
        """The pairs that want sums over Gram matrices of rows."""
        return [
            pair for pair, plan in self.cells.items() if any(METRICS[name].needs == "gram" for name in plan.of("rows"))
        ]

    def moments(self) -> dict[tuple[str, Shape], list[Pair]]:
        """The pairs whose sums of products are gathered, by view and, for channels, by positions."""
        found: dict[tuple[str, Shape], list[Pair]] = {}
        for (i, j), plan in self.cells.items():
            for view in plan.moment_views():
                positions = self.shapes[0][i][1:] if view == "channels" else ()
                found.setdefault((view, positions), []).append((i, j))
        return found

    def sums(self) -> dict[tuple[str, int, int], bool]:
        """The layers with sums of products, (view, side, index), and whether any pair wants their rows' energies."""
        wanted: dict[tuple[str, int, int], bool] = {}
        for (view, _), pairs in self.moments().items():
            for pair in pairs:
                plan = self.cells[pair]
                gram = any(METRICS[name].needs == "gram" and plan.views[name] == view for name in plan.of("moments"))
                for side, k in enumerate(pair):
                    wanted[view, side, k] = wanted.get((view, side, k), False) or gram
        return wanted

    def bytes(self) -> int:
        """What is held at once; the activations of a batch come on top."""
        stored, images = self.stored(), max(group_sizes(self.n_images, self.group))
        kept = images * self._features(stored)
        kept += self.n_images * self._features(self.spanned()) if self.group else 0
        grams = sum(map(len, stored)) * min(images, BLOCK) ** 2
        entries = sum(features(view, self.shapes[side][k]) ** 2 for view, side, k in self.sums())
        for (view, _), pairs in self.moments().items():
            entries += sum(features(view, self.shapes[0][i]) * features(view, self.shapes[1][j]) for i, j in pairs)
        for (_, j), plan in self.cells.items():
            entries += 4 * math.prod(self.shapes[1][j]) if plan.of("difference") else 0
        in_space = any(plan.of("row_space") for plan in self.cells.values())
        return 4 * kept + 8 * (grams + entries) + in_space * row_space_bytes(self.n_images)

    def _features(self, layers: tuple[list[int], list[int]]) -> int:
        return sum(math.prod(shapes[k]) for shapes, side in zip(self.shapes, layers, strict=True) for k in side)


def plan_grid(
    names: Sequence[str],
    view: str | None = None,
    *,
    n_images: int,
    shapes_x: Sequence[Shape],
    shapes_y: Sequence[Shape],
    group: int | None = None,
    memory: float | None = None,
) -> GridPlan:
    """Plan the comparison of every pair of layers.

    names: keys of METRICS. view: "images", "channels" or None; it holds for the metrics that have a choice, None means
    each metric's usual one. n_images: how many will come in all. shapes_x, shapes_y: the shape of one image's
    activation, (c, h, w) or (c,), of each layer of the first and of the second network.

    group: metrics of images with images (cka, cka_debiased, cka_rbf, mutual_knn in the view "images") are computed
    for consecutive groups of that many images and averaged, weighted by images; a rest of less than half a group joins
    the last one, and one group of all is none. All others are exact over all images, so grouping does not touch them;
    those that no rotation changes are computed from inner products of images where images are fewer than features.

    memory: bytes that a metric may take beside the activations; None: any number.
    """
    if len(group_sizes(n_images, group)) == 1:
        group = None
    shapes = [tuple(x) for x in shapes_x], [tuple(y) for y in shapes_y]
    cells = {
        (i, j): plan_cell(names, view, n_images, x, y, group, memory)
        for i, x in enumerate(shapes[0])
        for j, y in enumerate(shapes[1])
    }
    return GridPlan(n_images, shapes, group, cells)


def require_possible(plan: GridPlan, memory: float | None = None, *, alone: bool = True) -> None:
    """Raise UserError, before any work, where no metric can compare any pair, if they are all that is asked for
    (`alone`), or for a pair, if it is the only one, whose rows take more bytes than `memory`."""
    cells = list(plan.cells.values())
    if alone and all(cell.unavailable.keys() == cell.views.keys() for cell in cells):
        raise UserError("; ".join(dict.fromkeys(cells[0].unavailable.values())))
    if memory is not None and len(cells) == 1:
        _require_room(plan, memory)


def _require_room(plan: GridPlan, memory: float) -> None:
    (cell,) = plan.cells.values()
    image_bytes = 4 * sum(math.prod(shape) for (shape,) in plan.shapes)
    names, in_space = cell.of("rows", "row_space"), cell.of("row_space")
    needed = image_bytes * (plan.n_images if in_space else max(group_sizes(plan.n_images, plan.group)))
    if not names or needed <= memory:
        return
    allow = f"allow it with --memory {math.ceil(needed / 1e9)}"
    if in_space:
        raise UserError(
            f"{', '.join(in_space)} would keep {needed / 1e9:.1f} GB of activations; {allow}, or use --view channels"
        )
    fits = max(3, int(memory / image_bytes))
    if max(group_sizes(plan.n_images, fits)) > fits:
        fits = fits * 2 // 3  # a rest of up to half a group joins the last one
    raise UserError(
        f"{', '.join(names)} would keep {needed / 1e9:.1f} GB of activations; average over groups of images, as with "
        f"--group-at {fits}, or {allow}"
    )
