"""CKA with the end network's activations: of those of the front network, and of what each stitch makes of them."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from src.core.progress import bar
from src.dataset import Split
from src.evaluation.passes import feed
from src.metrics import Grid
from src.metrics.algebra.linalg import as_float64
from src.metrics.engine.mapped import MappedSimilarity
from src.metrics.engine.plan import GridPlan, plan_grid
from src.stitching.cut_networks import CutNetworks, Shared
from src.stitching.geometry import Geometry
from src.stitching.layer import Stitch
from src.stitching.stitch_spec import Cut
from src.stitching.upsampling import Upsampling, is_upsampled

STORE_BYTES = 4_000_000_000  # activations that may be kept at once
FRONT = "front"  # under which name the front network's own activation is known, beside stitches
Asked = Mapping[Cut, Mapping[str, Stitch]]  # stitches by their names, for each pair of layers
Found = dict[tuple[Cut, str], float]


def can_share(geometry: Geometry, images: int) -> bool:
    """Whether one pass serves the CKA of all stitches: they map channels position by position, and activations fit."""
    if geometry.is_flat or geometry.is_resized or geometry.front_shape[1:] != geometry.end_shape[1:]:
        return False
    return 4 * images * _features(geometry) <= STORE_BYTES


def cka_group(geometry: Geometry, images: int) -> int | None:
    """Images in a group over which CKA is averaged, since all activations are too large to keep; None: exact."""
    group = max(2, STORE_BYTES // (4 * _features(geometry)))
    return group if group < images else None


def passes(cuts: CutNetworks, asked: Sequence[Cut], images: int) -> list[list[Cut]]:
    """Pairs of layers that can share, by which of them go through one pass: as many as `STORE_BYTES` hold."""
    made, room = [], 0
    for cut in asked:
        size = 4 * images * _features(cuts.geometry(cut))
        if not made or size > room:
            made.append([])
            room = STORE_BYTES
        made[-1].append(cut)
        room -= size
    return made


def share(cuts: CutNetworks, asked: Sequence[Cut], split: Split) -> dict[Cut, MappedSimilarity]:
    """One pass over a split for all stitches of pairs of layers that can share: moments, and all that CKA takes."""
    geometries = {cut: cuts.geometry(cut) for cut in asked}
    shared = {
        cut: MappedSimilarity(
            n_images=len(split), shape_x=shapes.front_shape, shape_y=shapes.end_shape, device=split.device
        )
        for cut, shapes in geometries.items()
    }

    def add(outputs: Shared) -> None:
        for cut, one in shared.items():
            one.update(outputs[cut.source][cut.front_layer], outputs["end"][cut.end_layer])

    fronts = list(dict.fromkeys((cut.source, cut.front_layer) for cut in asked))
    ends = list(dict.fromkeys(cut.end_layer for cut in asked))
    which = f"{len(asked)} pairs of layers" if len(asked) > 1 else f"{fronts[0][1]} and {ends[0]}"
    feed([partial(_outputs, cuts, fronts, ends)], split, add, title=f"activations on val, {which}")
    return shared


def shared_ckas(shared: MappedSimilarity, stitches: Mapping[str, Stitch]) -> dict[str, float]:
    """Biased linear CKA of each of the stitches and of `FRONT`, NaN where an activation is constant."""
    weights = {FRONT: torch.eye(shared.channels)}
    weights |= {name: affine.w for name, stitch in stitches.items() if (affine := stitch.affine())}
    return dict(zip(weights, shared.cka(list(weights.values())), strict=True))


def ckas(cuts: CutNetworks, asked: Asked, split: Split) -> Found:
    """The same for stitches of many pairs of layers that resize, flatten, or are too large to be kept whole.

    What goes into one layer of the end network shares its Gram matrices, and passes over the images, as far as
    `STORE_BYTES` go.
    """
    by_stitch: Found = {}
    groups = {cut: cka_group(cuts.geometry(cut), len(split)) for cut in asked}
    for group in dict.fromkeys(groups.values()):
        some = {cut: stitches for cut, stitches in asked.items() if groups[cut] == group}
        for task in _tasks(cuts, some, len(split), group):
            values = _compare(cuts, task, split, group)
            wanted = ((side, key) for side in task.sides for key in side.wanted if key[0].end_layer in task.ends)
            by_stitch |= {key: values[side.key, key[0].end_layer] for side, key in wanted}
    return by_stitch


@dataclass(frozen=True, slots=True)
class _Side:
    """A front network's activation, or one that has the inner products of what a stitch makes of it.

    wanted: for which pair of layers and under which name.
    """

    source: tuple[str, str]
    features: int
    make: Callable[[Tensor], Tensor]
    wanted: tuple[tuple[Cut, str], ...]

    @property
    def key(self) -> tuple:
        return self.source if self.wanted[0][1] == FRONT else self.wanted[0]


@dataclass(frozen=True, slots=True)
class _CkaPass:
    """Activations that are held against those of some layers of the end network in one pass."""

    sides: list[_Side]
    ends: dict[str, tuple[int, ...]]

    def plan(self, images: int, group: int | None) -> GridPlan:
        shapes_x, shapes_y = [(side.features,) for side in self.sides], list(self.ends.values())
        return plan_grid(["cka"], n_images=images, shapes_x=shapes_x, shapes_y=shapes_y, group=group)

    def bytes(self, images: int, group: int | None) -> int:
        return self.plan(images, group).bytes()


def _tasks(cuts: CutNetworks, asked: Asked, images: int, group: int | None) -> Iterator[_CkaPass]:
    """What is compared in one pass each."""
    own: dict[tuple[str, str], list[Cut]] = {}
    for cut in asked:
        own.setdefault((cut.source, cut.front_layer), []).append(cut)
    ends = {cut.end_layer: cuts.geometry(cut).end_shape for cut in asked}
    fronts = [
        _Side(source, math.prod(cuts.geometry(some[0]).front_shape), _as_it_is, tuple((cut, FRONT) for cut in some))
        for source, some in own.items()
    ]
    # A front layer's Gram matrix serves several end layers, but then theirs are made once more.
    pairs = {(cut.source, cut.front_layer, cut.end_layer) for cut in asked}
    together = len(pairs) > len(fronts) + len(ends)
    if together:
        yield from _filled(_CkaPass(fronts, ends), images, group)
    for end, shape in ends.items():
        mapped = [
            _stitched(cut, *item, images)
            for cut, stitches in asked.items()
            if cut.end_layer == end
            for item in stitches.items()
        ]
        here = [] if together else fronts
        yield from _filled(_CkaPass([*here, *mapped], {end: shape}), images, group)


def _filled(task: _CkaPass, images: int, group: int | None) -> Iterator[_CkaPass]:
    """The task in parts of at most `STORE_BYTES` each, but for single pairs that take more."""
    ends = list(task.ends)
    sides = [side for side in task.sides if any(cut.end_layer in ends for cut, _ in side.wanted)]
    task = _CkaPass(sides, task.ends)
    features = sum(side.features for side in sides), sum(map(math.prod, task.ends.values()))
    if not sides:
        return
    if task.bytes(images, group) <= STORE_BYTES or len(sides) == len(ends) == 1:
        yield task
    elif len(ends) > 1 and (len(sides) == 1 or features[1] > features[0]):
        for half in (ends[: len(ends) // 2], ends[len(ends) // 2 :]):
            yield from _filled(_CkaPass(sides, {end: task.ends[end] for end in half}), images, group)
    else:
        sizes = range(2, len(sides))
        few = 1 + bisect_right(sizes, STORE_BYTES, key=lambda n: _CkaPass(sides[:n], task.ends).bytes(images, group))
        yield from _filled(_CkaPass(sides[:few], task.ends), images, group)
        yield from _filled(_CkaPass(sides[few:], task.ends), images, group)


def _compare(cuts: CutNetworks, task: _CkaPass, split: Split, group: int | None) -> dict[tuple, float]:
    """CKA of each side with each of the end layers, by its key and the layer."""
    grid = Grid(task.plan(len(split), group), split.device)

    def add(outputs: Shared) -> None:
        xs = [side.make(outputs[side.source[0]][side.source[1]]) for side in task.sides]
        grid.update(xs, [outputs["end"][layer] for layer in task.ends])

    head = partial(_outputs, cuts, [side.source for side in task.sides], list(task.ends))
    feed([head], split, add, grouped=group is not None, title=f"cka with {', '.join(task.ends)}")
    with bar(grid.steps, "inner products", unit="block") as progress:
        cells = grid.cells(on_block=progress.update)
    return {
        (side.key, layer): cells[i, j].values.get("cka", math.nan)
        for i, side in enumerate(task.sides)
        for j, layer in enumerate(task.ends)
    }


def _stitched(cut: Cut, name: str, stitch: Stitch, images: int) -> _Side:
    """The inner products of images, without those of the bias, of what a stitch makes, in few numbers.

    W = Q R with orthonormal columns of Q keeps the products of R, where W has more rows than columns; likewise the
    interpolation to more positions. R is used where finding it costs less than it saves.
    """
    geometry, affine = stitch.geometry, stitch.affine()
    if affine is None:
        return _Side(
            (cut.source, cut.front_layer),
            math.prod(geometry.end_shape),
            lambda x: stitch(x).detach().flatten(1),
            ((cut, name),),
        )
    w = affine.w
    rows, columns = w.shape
    if rows > columns and 4 * rows * columns**2 < images**2 * (rows - columns):
        w = torch.linalg.qr(as_float64(w), mode="r").R.to(w.dtype).to(w.device)
    if geometry.is_flat:
        return _Side((cut.source, cut.front_layer), len(w), lambda x: x.flatten(1) @ w.T, ((cut, name),))
    small = is_upsampled(geometry)
    place = Upsampling(geometry, w.device).root if small else geometry.interpolate
    positions = math.prod((geometry.front_shape if small else geometry.end_shape)[1:])

    def make(x: Tensor) -> Tensor:
        return (w @ place(x).flatten(2)).flatten(1) if x.dim() > 2 else x @ w.T

    return _Side((cut.source, cut.front_layer), len(w) * positions, make, ((cut, name),))


def _as_it_is(x: Tensor) -> Tensor:
    return x.flatten(1)


def _outputs(cuts: CutNetworks, fronts: Sequence[tuple[str, str]], ends: Sequence[str], images: Tensor) -> Shared:
    more: dict[str, list[str]] = {"end": list(ends)}
    for source, layer in fronts:
        more.setdefault(source, []).append(layer)
    return cuts.front_activations([], images, more)


def _features(geometry: Geometry) -> int:
    return math.prod(geometry.front_shape) + math.prod(geometry.end_shape)
