"""The stitch before training: an init, a mask, and what the matrix may be."""

from typing import Any

from torch import Generator, Tensor

from src.metrics.algebra.moments import Affine, PairedMoments, reduced_rank
from src.stitching.geometry import Geometry
from src.stitching.inits import init_of
from src.stitching.layer import Constraint, StitchLayer, build_stitch
from src.stitching.masks import MASKS
from src.stitching.whitening import whitening_of


def initial_stitch(
    geometry: Geometry,
    moments: PairedMoments | None,
    *,
    init: str = "random",
    mask: str = "identity",
    rank: int | None = None,
    orthogonal: bool = False,
    seed: int = 0,
    whiten: bool = False,
    data: Any = None,
) -> StitchLayer:
    """The stitch that these names and restrictions, of which one may be given, ask for.

    `moments` are those of the training images, not augmented; they are needed where `needs_moments` says so, and to
    `whiten` the coordinates in which the matrix is trained. `seed` decides what is drawn at random: a map between
    whitened activations, where these are the coordinates. `data` are folds or anchors, of an init that asks.
    """
    generator = Generator().manual_seed(seed)
    # a drawn init comes before a drawn mask: the order decides the numbers of both
    line = init_of(init)
    drawn = None if line.needs_moments else line.build(geometry, generator)
    allowed = None if mask == "identity" else MASKS[mask].build(geometry, generator, moments)
    constraint = Constraint(allowed, rank, orthogonal)
    affine = drawn or line.build(geometry, generator, moments, constraint, data)
    coordinates = None
    if whiten and not orthogonal:
        assert moments is not None
        coordinates = whitening_of(moments, by_channel=allowed is not None)
        if init == "random":
            w = _kept(coordinates.inverse(affine.w), allowed, rank)
            affine = Affine(w, coordinates.centre + coordinates.d * affine.b - w @ coordinates.m)
    return build_stitch(affine, geometry, constraint, coordinates)


def _kept(w: Tensor, allowed: Tensor | None, rank: int | None) -> Tensor:
    """What a restriction leaves of a matrix (out, in)."""
    if rank is not None:
        left, right = reduced_rank(w.double(), rank)
        return left @ right
    return w if allowed is None else w * allowed.to(w)


def needs_moments(init: str, mask: str) -> bool:
    """Whether an init or a mask asks for the moments of the training images."""
    return init_of(init).needs_moments or MASKS[mask].needs_moments
