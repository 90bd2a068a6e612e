"""The stitch before training: an init, a mask, and what the matrix may be."""

from torch import Generator

from src.metrics.moments import PairedMoments
from src.stitching.geometry import Geometry
from src.stitching.inits import INITS, Restriction
from src.stitching.layer import StitchLayer, build_stitch
from src.stitching.masks import MASKS


def initial_stitch(
    geometry: Geometry,
    moments: PairedMoments | None,
    *,
    init: str = "random",
    mask: str = "identity",
    rank: int | None = None,
    orthogonal: bool = False,
    seed: int = 0,
) -> StitchLayer:
    """The stitch that these names and restrictions, of which one may be given, ask for.

    `moments` are those of the training images, not augmented; they are needed where `needs_moments` says so. `seed`
    decides what is drawn at random.
    """
    generator = Generator().manual_seed(seed)
    # a drawn init comes before a drawn mask: the order decides the numbers of both
    drawn = None if INITS[init].needs_moments else INITS[init].build(geometry, generator)
    allowed = None if mask == "identity" else MASKS[mask].build(geometry, generator, moments)
    affine = drawn or INITS[init].build(geometry, generator, moments, Restriction(allowed, rank, orthogonal))
    return build_stitch(affine, geometry, mask=allowed, rank=rank, orthogonal=orthogonal)


def needs_moments(init: str, mask: str) -> bool:
    """Whether an init or a mask asks for the moments of the training images."""
    return INITS[init].needs_moments or MASKS[mask].needs_moments
