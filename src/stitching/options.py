"""Which options of a stitch exclude each other, and which the shapes of its layers forbid."""

from collections.abc import Mapping
from typing import Any

from src.stitching.geometry import Geometry
from src.stitching.inits import INITS

# option -> the value that leaves it out
OFF = {
    "mask": "identity",
    "low_rank": None,
    "orthogonal": False,
    "flatten": False,
    "resize": False,
    "l1": 0.0,
    "temperature": 1.0,
}
HARD, ONES = ("target_type", "hard"), ("init", "ones-zeros")

# pairs that no stitch can have, and why; an option, or an option with its value
EXCLUDED = (
    ("low_rank", "mask", "a product of factors cannot be zero where a mask says"),
    ("low_rank", "l1", "a sparse matrix and a product of thin factors are different restrictions"),
    ("low_rank", "orthogonal", "an orthogonal matrix has full rank"),
    ("orthogonal", "mask", "a masked matrix is not orthogonal"),
    ("orthogonal", ONES, "no orthogonal matrix is nearest to one of ones"),
    ("flatten", "resize", "flattened layers need no equal heights and widths"),
    ("temperature", HARD, "true labels have no temperature"),
)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for the first excluded pair among the options; what is left out counts as off."""
    for *pair, reason in EXCLUDED:
        if all(_is_on(option, options) for option in pair):
            first, second = (_spelled(option, options) for option in pair)
            raise ValueError(f"{first} excludes {second}: {reason}")


def check_sizes(options: Mapping[str, Any], geometry: Geometry) -> None:
    """Raise ValueError where an init or a rank does not suit the sizes of the two layers."""
    rank, limit = options.get("low_rank"), min(geometry.outputs, geometry.inputs)
    if rank is not None and rank > limit:
        raise ValueError(f"rank {rank} exceeds {limit}, the smaller side of the matrix; lower --low-rank")
    if INITS[options["init"]].needs_square and geometry.inputs != geometry.outputs:
        raise ValueError(
            f"--init {options['init']} needs equal sizes, but the front layer has {geometry.inputs} channels and the "
            f"end layer {geometry.outputs}; choose another --init"
        )


def _is_on(option: str | tuple[str, str], options: Mapping[str, Any]) -> bool:
    if isinstance(option, tuple):
        return options.get(option[0]) == option[1]
    return options.get(option, OFF[option]) != OFF[option]


def _spelled(option: str | tuple[str, str], options: Mapping[str, Any]) -> str:
    name, value = option if isinstance(option, tuple) else (option, options[option])
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"
