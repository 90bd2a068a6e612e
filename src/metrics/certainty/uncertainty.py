"""How sure a metric of two layers is: intervals over images, and what it gives where images do not correspond.

An interval says where the metric would lie, were the images drawn anew. A plain bootstrap is no way there: an image
that is drawn twice meets itself, which makes any two representations alike.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import scipy
import torch
from torch import Generator, Tensor

from src.core.errors import UserError
from src.core.intervals import Z95
from src.metrics.algebra.gram import gram_sums_of_moments
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.moments import LONG, PairedMoments, Sums, gather
from src.metrics.certainty.jackknife import gram_vectors
from src.metrics.engine.plan import MOMENT_BYTES, Shape, moment_entries, plan_cell
from src.metrics.neighbours import K
from src.metrics.registry import METRICS, Metric

BLOCKS = 20  # of images, each left out in turn
HALVINGS = 20  # of images at random, each into two samples of half the size
FEW = 2000  # images of a null distribution that is drawn
Interval = tuple[float, float]


@dataclass(slots=True)
class Rows:
    """The activations of a layer, x: (n, features), and the shape of one image's."""

    x: Tensor
    shape: Shape
    _inner: "Rows | None" = None

    def in_row_space(self) -> "Rows":
        """The images in the space that they span, for what no rotation changes: fewer features than images."""
        if self._inner is None:
            inner = Layer.of(self.x).coordinates()
            self._inner = Rows(inner, inner.shape[1:])
        return self._inner


@dataclass(frozen=True, slots=True)
class Sample:
    """The activations of two layers on the same images, x: (n, features) and y likewise, and the shapes of one's."""

    x: Tensor
    y: Tensor
    shape_x: Shape
    shape_y: Shape
    _sides: tuple[Rows, Rows] | None = None

    @classmethod
    def of(cls, first: Rows, second: Rows) -> "Sample":
        """Of two layers, each of which other samples may share."""
        return cls(first.x, second.x, first.shape, second.shape, (first, second))

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor | slice, partners: Tensor | slice | None = None) -> "Sample":
        """The images at some indices; with `partners` the second layer's are those of others."""
        return Sample(self.x[index], self.y[index if partners is None else partners], self.shape_x, self.shape_y)

    def in_row_space(self) -> "Sample":
        """Each side in the space that its images span."""
        sides = self._sides or (Rows(self.x, self.shape_x), Rows(self.y, self.shape_y))
        return Sample.of(sides[0].in_row_space(), sides[1].in_row_space())

    def rows(self, view: str) -> tuple[Tensor, Tensor]:
        if view == "images":
            return self.x, self.y
        sides = ((self.x, self.shape_x), (self.y, self.shape_y))
        x, y = (side.view(len(side), shape[0], -1).transpose(1, 2).reshape(-1, shape[0]) for side, shape in sides)
        return x, y


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Of each metric an interval, or a null (mean, threshold), how it came about, and why there is none."""

    values: dict[str, tuple[float, float]]
    how: dict[str, str]
    unavailable: dict[str, str]


def intervals(names: Sequence[str], view: str | None, sample: Sample) -> Uncertainty:
    """95% intervals of metrics over images.

    CKA by images: the delete-one jackknife, in closed form. Means over images' neighbours: how far the two halves of
    the images are apart. Every other: the jackknife of BLOCKS blocks of images.
    Intervals of biased metrics cover their own expectation at this number of images, not the value of infinitely many.
    """
    return _each(names, view, sample, _interval)


def nulls(names: Sequence[str], view: str | None, sample: Sample, *, permutations: int, seed: int = 0) -> Uncertainty:
    """Mean of metrics where the second layer's images are dealt out at random, and what 5% of these pass by chance.

    That is the 95% quantile, and the 5% quantile where lower is more alike, each as `threshold` has it. CKA's mean is
    in closed form, from all images; all else is from `permutations` draws, on at most FEW images.
    """
    generator = Generator().manual_seed(seed)
    few = torch.arange(len(sample))
    if len(sample) > FEW:
        few = torch.randperm(len(sample), generator=generator)[:FEW].sort()[0]
    orders = [torch.randperm(len(few), generator=generator) for _ in range(permutations)]

    def null(metric: Metric, taken: str, sample: Sample) -> tuple[tuple[float, float], str]:
        how, paired = f"{permutations} permutations of {len(few)} images", sample.take(few)
        observed = value_of(metric, taken, paired)
        if metric.permuted and taken == "images":
            draw = metric.permuted([Layer.of(paired.x)], [Layer.of(paired.y)])
            drawn = [float(draw(order)) for order in orders]
        else:
            every = torch.arange(len(few))
            drawn = [value_of(metric, taken, paired.take(every, order)) for order in orders]
        passed = threshold(observed, drawn, higher_is_better=metric.higher_is_better)
        if metric.needs == "gram" and taken == "images":
            mean, _ = gram_vectors(sample.x, sample.y).null(debiased=metric.name == "cka_debiased")
            return (mean, passed), f"mean in closed form, quantile of {how}"
        return (sum(drawn) / len(drawn), passed), how

    return _each(names, view, sample, null)


def threshold(observed: float, drawn: Sequence[float], *, higher_is_better: bool = True, level: float = 0.05) -> float:
    """What an observed value must pass, to be called more than chance at a level, given those of random pairings.

    With the observed value among them all K + 1 are exchangeable where images do not correspond, so that at most a
    share `level` of them lies beyond the order statistic number ceil((1 - level) (K + 1)). A quantile interpolated from
    the K draws alone is passed more often than that. Where lower is more alike it is counted from the other end.
    """
    values = sorted([observed, *drawn], reverse=not higher_is_better)
    return values[min(len(values), math.ceil((1 - level) * len(values))) - 1]


def _each(
    names: Sequence[str], view: str | None, sample: Sample, find: Callable[[Metric, str, Sample], tuple[Interval, str]]
) -> Uncertainty:
    uncertainty, in_space = Uncertainty({}, {}, {}), None
    plan = plan_cell(names, view, len(sample), sample.shape_x, sample.shape_y, None)
    for name, taken in plan.views.items():
        if name in plan.unavailable:
            continue  # it has no value either
        try:
            if plan.source[name] == "row_space":
                in_space = in_space or sample.in_row_space()
            one = in_space if in_space and plan.source[name] == "row_space" else sample
            uncertainty.values[name], uncertainty.how[name] = find(METRICS[name], taken, one)
        except UserError as error:
            uncertainty.unavailable[name] = str(error)
    return uncertainty


def _interval(metric: Metric, view: str, sample: Sample) -> tuple[Interval, str]:
    if metric.each:
        value = float(metric.each(Layer.of(sample.x), Layer.of(sample.y)).mean())
        error = _error_by_halves(metric.each, sample)
        return _clipped(metric, value, Z95 * error), f"{HALVINGS} halvings of the images"
    left_out, how = _left_out(metric, view, sample)
    return _jackknife(metric, value_of(metric, view, sample), left_out), how


def _left_out(metric: Metric, view: str, sample: Sample) -> tuple[Tensor, str]:
    """The metric's number without each image, or without each of some blocks of images, and which of the two."""
    if metric.needs == "gram" and view == "images":
        vectors = gram_vectors(sample.x, sample.y)
        left_out = vectors.left_out(debiased=metric.name == "cka_debiased")
        for image in vectors.dominant():  # of a difference that leaves so little, rounding leaves nothing
            left_out[image] = value_of(metric, view, sample.take(torch.arange(len(sample)) != image))
        return left_out, "delete-one jackknife"
    if len(sample) < 4:
        raise UserError(f"{len(sample)} images are too few for an interval; at least 4 are needed")
    # at random, since files of a folder come class by class
    order = torch.randperm(len(sample), generator=Generator().manual_seed(0))
    blocks = order.tensor_split(min(BLOCKS, len(sample) // 2))
    left_out = torch.tensor(_without_each(metric, view, sample, blocks), dtype=torch.float64)
    return left_out, f"jackknife of {len(blocks)} blocks of images"


@dataclass(frozen=True, slots=True)
class Difference:
    """s(A, B) - s(A, C) of a metric on the same images: value, 95% interval, two-sided p, and how they came about."""

    value: float
    low: float
    high: float
    p: float
    how: str


def difference(name: str, view: str | None, first: Sample, second: Sample) -> Difference:
    """Whether a layer is more like a first than like a second, on the same images in the same order.

    Each image is left out of both at once (CKA by images), or each of BLOCKS blocks, so that what makes both values
    large or small at once cancels; means over images' neighbours are compared on the same halves. Raises UserError
    where the metric has no value, or images are too few.
    """
    metric, views = METRICS[name], set()
    for sample in (first, second):
        plan = plan_cell([name], view, len(sample), sample.shape_x, sample.shape_y, None)
        if name in plan.unavailable:
            raise UserError(plan.unavailable[name])
        views.add(plan.views[name])
    if len(views) > 1 or len(first) != len(second):
        raise UserError(f"{name}: both are to be compared by the same view and images; choose one with --view")
    (taken,) = views
    value = value_of(metric, taken, first) - value_of(metric, taken, second)
    if metric.each:
        error = _error_by_halves(metric.each, first, second)
        low, high, freedom, how = value - Z95 * error, value + Z95 * error, math.inf, f"{HALVINGS} halvings"
    else:
        (left, how), (without, _) = (_left_out(metric, taken, sample) for sample in (first, second))
        change, parts = left - without, len(left)
        error = math.sqrt((parts - 1) / parts * float((change - change.mean()).square().sum()))
        freedom = parts - 1
        half = float(scipy.stats.t.ppf(0.975, freedom)) * error
        low, high = value - half, value + half
    ratio = abs(value) / error if error else math.inf if value else 0.0
    p = 2 * float(scipy.stats.norm.sf(ratio) if freedom == math.inf else scipy.stats.t.sf(ratio, freedom))
    return Difference(value, low, high, p, f"paired, {how}")


def _error_by_halves(each: Callable[..., Tensor], sample: Sample, second: Sample | None = None) -> float:
    """The standard error of a mean over images' neighbours, which are images of the sample, too; or, with another
    sample of the same images, that of the difference of both means.

    Two halves are independent samples, and each image looks at half as many neighbours in them, so at the same share of
    the images: the mean squared difference of the two is twice the variance at half the size, four times that of all.
    The mean is not smooth, so that leaving out few images, or looking at the neighbours of this sample alone, misleads.
    """
    generator, squares = Generator().manual_seed(0), []
    for _ in range(HALVINGS):
        halves = torch.randperm(len(sample), generator=generator).chunk(2)
        means = []
        for half in halves:
            some = [one.take(half) for one in (sample, second) if one]
            values = [float(each(Layer.of(one.x), Layer.of(one.y), K // 2).mean()) for one in some]
            means.append(values[0] - sum(values[1:]))
        squares.append((means[0] - means[1]) ** 2)
    return math.sqrt(sum(squares) / len(squares)) / 2


def _jackknife(metric: Metric, value: float, left_out: Tensor) -> Interval:
    """The interval of a value, given those with each part left out (Tukey 1958)."""
    parts = len(left_out)
    error = math.sqrt((parts - 1) / parts * float((left_out - left_out.mean()).square().sum()))
    return _clipped(metric, value, float(scipy.stats.t.ppf(0.975, parts - 1)) * error)


def _clipped(metric: Metric, value: float, half: float) -> Interval:
    return max(metric.range[0], value - half), min(metric.range[1], value + half)


def value_of(metric: Metric, view: str, sample: Sample) -> float:
    """The metric's number of a sample, as a pass over the images would give it."""
    if _by_moments(metric, view):
        return _of_moments(metric, *_moments_of_blocks([sample.rows(view)], energies=metric.needs == "gram"))
    return metric.number(metric.of_rows(*sample.rows(view)))


def _by_moments(metric: Metric, view: str) -> bool:
    return metric.needs == "moments" or (metric.needs == "gram" and view == "channels")


def _without_each(metric: Metric, view: str, sample: Sample, blocks: Sequence[Tensor]) -> list[float]:
    """The metric's number with each block of images left out."""
    if not _by_moments(metric, view):
        kept = torch.ones(len(sample), dtype=torch.bool)
        values = []
        for block in blocks:
            kept[block] = False
            values.append(value_of(metric, view, sample.take(kept.nonzero().flatten())))
            kept[block] = True
        return values
    d = [math.prod(shape) if view == "images" else shape[0] for shape in (sample.shape_x, sample.shape_y)]
    if 8 * moment_entries(d[0], d[1]) * (len(blocks) + 2) > 4 * MOMENT_BYTES:
        raise UserError(f"{metric.name}: an interval of {d[0]} and {d[1]} features takes too much; use --view channels")
    parts = _moments_of_blocks([sample.take(block).rows(view) for block in blocks], energies=metric.needs == "gram")
    return [_of_moments(metric, combined(parts[:left] + parts[left + 1 :])) for left in range(len(parts))]


def _of_moments(metric: Metric, moments: PairedMoments) -> float:
    gathered: Any = [gram_sums_of_moments(moments)] if metric.needs == "gram" else moments
    return metric.number(metric.of_gathered(gathered))


def _moments_of_blocks(blocks: Sequence[tuple[Tensor, Tensor]], *, energies: bool) -> list[PairedMoments]:
    """The moments of each block of rows; energies of all are about one point, so that they add up."""
    points = [rows.mean(0, dtype=torch.float64) for rows in blocks[0]]
    parts = []
    for block in blocks:
        sums = [Sums(rows.shape[1], rows.device, energies=energies) for rows in block]
        for one, point in zip(sums, points, strict=True):
            one.shift = point
        parts.append(PairedMoments.of(*sums))
        gather(list(zip(sums, block, strict=True)), parts[-1:], rows=LONG)
    return parts


def combined(parts: Sequence[PairedMoments]) -> PairedMoments:
    """The moments of the rows of all parts together."""
    n = sum(part.n for part in parts)
    sides = []
    for of_part in (lambda part: part.x, lambda part: part.y):
        first = of_part(parts[0])
        whole = Sums(first.d, first.all_means.device, energies=len(first.all_means) > first.d)
        whole.n, whole.shift = n, first.shift
        for part in parts:
            whole.all_means += of_part(part).all_means * (part.n / n)
            whole.most = torch.maximum(whole.most, of_part(part).most)
        sides.append(whole)
    both = PairedMoments.of(*sides)
    x, y = sides
    for part in parts:
        dx, dy = part.x.all_means - x.all_means, part.y.all_means - y.all_means
        x.all_products.add_(part.x.all_products).addr_(dx, dx, alpha=part.n)
        y.all_products.add_(part.y.all_products).addr_(dy, dy, alpha=part.n)
        both.all_xy.add_(part.all_xy).addr_(dx, dy, alpha=part.n)
    return both
