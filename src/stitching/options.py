"""The options of a stitch: what they are called, what they take, and which exclude each other."""

from collections.abc import Mapping
from typing import Any

from src.core.errors import UserError
from src.core.options import Option
from src.stitching.geometry import Geometry
from src.stitching.inits import INITS
from src.stitching.masks import MASKS
from src.stitching.targets import TARGETS
from src.training.recipe import ELEMENTWISE

_INITS, _MASKS = tuple(sorted(INITS)), tuple(sorted(MASKS))
_TARGETS = tuple(sorted(TARGETS))
_RATE = "learning rate, x0.1 at 1/3 and 2/3 of the epochs; with --whiten it falls to 0 along a cosine"
_RATES = "0.001, with --whiten 0.02"
_CKA = "weight in the loss of CKA with the end network's own"
_TARGET = "true labels (hard), or what the networks say"
OPTIONS = (
    Option("batch_size", ("-b", "--batch-size"), "images", "images a batch", "positive", "N"),
    Option("init", ("-i", "--init"), "stitch", "the map before training", "name", "INIT", _INITS, many=True),
    Option("mask", ("-m", "--mask"), "stitch", "which weights there are", "name", "MASK", _MASKS, many=True),
    Option(
        "low_rank",
        ("-r", "--low-rank"),
        "stitch",
        "a product of two factors of this rank",
        "rank",
        "RANK",
        many=True,
        default="full rank",
    ),
    Option("orthogonal", ("--orthogonal",), "stitch", "keep the matrix orthogonal"),
    Option("flatten", ("-f", "--flatten"), "stitch", "map all features, not channels alike at all positions"),
    Option("resize", ("--resize",), "stitch", "interpolate to the end layer's height and width, or grid of tokens"),
    Option(
        "epochs",
        ("-e", "--epochs"),
        "training",
        "passes over the training images; 0 leaves the init as it is",
        "natural",
        "N",
    ),
    Option("lr", ("-lr", "--lr"), "training", _RATE, "positive_float", "RATE", many=True, default=_RATES),
    Option("weight_decay", ("-wd", "--weight-decay"), "training", "pull towards 0", "natural_float", "X"),
    Option("l1", ("--l1",), "training", "weight of the mean |W| in the loss", "natural_float", "X"),
    Option("cka_reg", ("--cka-reg",), "training", _CKA, "finite_float", "X"),
    Option("temperature", ("--temperature",), "training", "divides the logits of soft targets", "positive_float", "T"),
    Option("whiten", ("--whiten",), "training", "train in coordinates in which the activations are white"),
    Option("seed", ("--seed",), "training", "of init, order of images, augmentation", "seed", "N", many=True),
    Option(
        "save_frequency",
        ("-s", "--save-frequency"),
        "training",
        "keep the map every N x EPOCHS iterations",
        "positive",
        "N",
    ),
    Option("optimizer", ("--optimizer",), "training", "how to descend", "name", None, ELEMENTWISE),
    Option("target_type", ("--target-type",), "training", _TARGET, "name", None, _TARGETS),
)
# what may differ between the stitches of one command, beside their layers
VARIED = tuple(option.field for option in OPTIONS if option.many)

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
    """Raise UserError for the first excluded pair among the options; what is left out counts as off."""
    for *pair, reason in EXCLUDED:
        if all(_is_on(option, options) for option in pair):
            first, second = (_spelled(option, options) for option in pair)
            raise UserError(f"{first} excludes {second}: {reason}")


def check_sizes(options: Mapping[str, Any], geometry: Geometry) -> None:
    """Raise UserError where an init or a rank does not suit the sizes of the two layers."""
    rank, limit = options.get("low_rank"), min(geometry.outputs, geometry.inputs)
    if rank is not None and rank > limit:
        raise UserError(f"rank {rank} exceeds {limit}, the smaller side of the matrix; lower --low-rank")
    if INITS[options["init"]].needs_square and geometry.inputs != geometry.outputs:
        raise UserError(
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
