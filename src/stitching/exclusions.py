"""Which options of a stitch exclude each other, and which do not suit the sizes of two layers."""

from collections.abc import Mapping
from typing import Any

from src.core.errors import UserError
from src.stitching.geometry import Geometry
from src.stitching.inits import init_of
from src.stitching.targets import AT_LATER, BETWEEN_STAGES, TARGETS

ONES = ("init", "ones-zeros")
# what restricts the matrix of one affine map, or changes how it is trained
_AFFINE = ("low_rank", "mask", "orthogonal", "whiten")

# pairs that no stitch can have, and why; an option, or an option with its value
EXCLUDED = (
    ("low_rank", "mask", "a product of factors cannot be zero where a mask says"),
    ("low_rank", "l1", "a sparse matrix and a product of thin factors are different restrictions"),
    ("low_rank", "orthogonal", "an orthogonal matrix has full rank"),
    ("orthogonal", "mask", "a masked matrix is not orthogonal"),
    ("orthogonal", ONES, "no orthogonal matrix is nearest to one of ones"),
    ("flatten", "resize", "flattened layers need no equal heights and widths"),
    ("iri_steps", ("train_on", "data"), "the data are taken as they are; iri makes inputs in steps"),
    ("tf32", "amp", "training multiplies in one precision"),
    ("cosine", "whiten", "whitened coordinates are trained with a rate that falls along a cosine already"),
)
EXCLUDED += tuple(
    (family, option, "it is a restriction, or a way to train, of one affine map")
    for family in ("kernel", "hidden", "norm")
    for option in _AFFINE
)
EXCLUDED += (
    ("kernel", "hidden", "a stitch is of one family"),
    ("kernel", "norm", "a stitch is of one family"),
    ("hidden", "norm", "a stitch is of one family"),
    ("kernel", "flatten", "values of a flattened image have no neighbours"),
)
EXCLUDED += tuple(
    (option, ("init", init), "it is a map of its own, which a restriction would not leave")
    for option in ("low_rank", "mask", "orthogonal")
    for init in ("ridge", "soft-match", "relative")
)
# options that belong to some targets: which these are, and what they do there; and those that exclude several stages
OF_TARGETS = {
    "temperature": (lambda target: target.softened, "it divides the logits of soft targets"),
    "match_layers": (lambda target: target.at == AT_LATER, "match_later alone compares at several layers"),
}
OF_ONE_STAGE = {"early_stop": "the next stage begins after a fixed number of epochs"}


def check_options(options: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raise UserError for the first excluded pair among the options; `usual` are the values that leave them out."""
    for *pair, reason in EXCLUDED:
        if all(_is_on(option, options, usual) for option in pair):
            first, second = (_spelled(option, options) for option in pair)
            raise UserError(f"{first} excludes {second}: {reason}")
    _check_target(options, usual)


def _check_target(options: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    targets = [TARGETS[name] for name in options["target_type"].split(BETWEEN_STAGES)]
    spelled = _spelled(("target_type", options["target_type"]), options)
    for option, (belongs, what) in OF_TARGETS.items():
        if _is_on(option, options, usual) and not any(map(belongs, targets)):
            raise UserError(f"{_spelled(option, options)} excludes {spelled}: {what}")
    for option, reason in OF_ONE_STAGE.items():
        if _is_on(option, options, usual) and len(targets) > 1:
            raise UserError(f"{_spelled(option, options)} excludes {spelled}: {reason}")


SIZED = ("init", "low_rank", "kernel", "hidden")  # fields that must suit the sizes of two layers


def check_sizes(options: Mapping[str, Any], geometry: Geometry) -> None:
    """Raise UserError where an init or a rank does not suit the sizes of the two layers."""
    rank, limit = options.get("low_rank"), min(geometry.outputs, geometry.inputs)
    if rank is not None and rank > limit:
        raise UserError(f"rank {rank} exceeds {limit}, the smaller side of the matrix; lower --low-rank")
    kernel, hidden, init = options.get("kernel", 0), options.get("hidden", 0), options["init"]
    if kernel and (kernel % 2 == 0 or kernel < 3):
        raise UserError(f"--kernel {kernel} has no centre; give an odd number from 3 on")
    if kernel and not (geometry.is_convolution and geometry.end_layout.is_plain):
        raise UserError(f"--kernel {kernel} is of maps; these layers give tokens or features, which have no neighbours")
    if 0 < hidden < 2 * geometry.inputs and init != "random":
        raise UserError(
            f"--hidden {hidden} cannot start at --init {init}: an affine map of {geometry.inputs} inputs takes "
            f"{2 * geometry.inputs} units; give as many, or -i random"
        )
    if init_of(init).needs_square and geometry.inputs != geometry.outputs:
        raise UserError(
            f"--init {options['init']} needs equal sizes, but the front layer has {geometry.inputs} channels and the "
            f"end layer {geometry.outputs}; choose another --init"
        )


def _is_on(option: str | tuple[str, str], options: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    if isinstance(option, tuple):
        return str(options[option[0]]).partition(":")[0] == option[1]  # of an init that takes a number its name
    return options[option] != usual[option]


def _spelled(option: str | tuple[str, str], options: Mapping[str, Any]) -> str:
    name = option[0] if isinstance(option, tuple) else option
    value = options[name]
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"
