"""What stands beside each other in the result of a stitch: the two networks, and the maps between them.

A row of the table has one name. Published results call it otherwise, and not alike everywhere; this table says how.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A line of STAGES.

    about: what it is, in words. scores: its key in `model_results`. agreement: its key in `m2_sim`, and suffix: how the
    keys of its similarity end (`cka`, `l2`, `l2_relative`); both None for the end network, with which all others are
    compared. is_map: whether it is a map between the layers, with arrays in `trans_m`. colour, marker: in pictures.
    """

    about: str
    scores: str
    agreement: str | None
    suffix: str | None
    colour: str
    marker: str = "o"
    is_map: bool = True


# Okabe and Ito's palette, distinct for the common kinds of colour blindness, and two greys
STAGES = {
    "front": Stage("the first network, whole", "front", "m1", "", "#8C8C8C", is_map=False),
    "end": Stage("the second network, whole", "end", None, None, "#555555", is_map=False),
    "before": Stage("the stitched network with the stitch as it starts", "before", "before", "_before", "#E69F00", "D"),
    "after": Stage("the same with the trained stitch", "trans", "after", "_frank", "#0072B2"),
    "ps_inv": Stage("least squares, fitted to the validation images", "ps_inv", "ps_inv", "_ps_inv", "#009E73", "s"),
    "ls_train": Stage("least squares, fitted to the training images", "ls_train", "ls_train", "_ls_train", "#CC79A7"),
}
# all but the end network, which the others are compared with
COMPARED = {name: stage for name, stage in STAGES.items() if stage.suffix is not None}
MAPS = tuple(name for name, stage in STAGES.items() if stage.is_map)
