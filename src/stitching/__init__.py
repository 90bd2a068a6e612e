"""Sewing two networks together."""

from src.stitching.cut_networks import LOGITS, CutNetworks, Outputs, Shared
from src.stitching.exclusions import check_options, check_sizes
from src.stitching.geometry import Geometry
from src.stitching.inits import INITS
from src.stitching.layer import ConstantStitch, Constraint, MaskedStitch, Stitch, StitchLayer, build_stitch, from_arrays
from src.stitching.masks import MASKS
from src.stitching.naming import spec_names
from src.stitching.network import Pair, StitchedNetwork, cut_pair
from src.stitching.objective import StitchObjective
from src.stitching.options import combinations
from src.stitching.start import initial_stitch, needs_moments
from src.stitching.stitch_spec import ControlSpec, Cut, StitchSpec, usual_rate
from src.stitching.targets import TARGETS

__all__ = [
    "INITS",
    "MASKS",
    "TARGETS",
    "LOGITS",
    "ConstantStitch",
    "Constraint",
    "ControlSpec",
    "Cut",
    "CutNetworks",
    "Geometry",
    "MaskedStitch",
    "Outputs",
    "Pair",
    "Shared",
    "Stitch",
    "StitchLayer",
    "StitchObjective",
    "StitchSpec",
    "StitchedNetwork",
    "build_stitch",
    "check_options",
    "check_sizes",
    "combinations",
    "cut_pair",
    "from_arrays",
    "initial_stitch",
    "needs_moments",
    "spec_names",
    "usual_rate",
]
