"""What the scripts' parsers share: groups of options, their types, and help that fits 80 columns."""

import argparse
import contextlib
import math
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from src.core.config import MEMORY
from src.core.errors import UserError
from src.core.options import NUMBERS, Option, names_among, naturals
from src.core.text import close_to
from src.dataset import SPLITS, CacheOptions, canonical_dataset, known_datasets
from src.evaluation.adversarial import OPTION, WORDS, read_bound
from src.evaluation.passes import BATCH_SIZE, GPU_BATCH
from src.metrics import MEASURES
from src.metrics.own import is_own, name_own
from src.models import model_names
from src.networks.architectures import split_model
from src.networks.opening import HELP as NETWORK_HELP
from src.results.plots import FORMATS

WIDTH = 80


def parser(script: str, purpose: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, one a line, and whose errors are one line."""
    commands = [_folded(f"python {script}.py {line}") for line in examples.strip().splitlines()]
    return Parser(
        prog=f"{script}.py",
        description=textwrap.fill(purpose, WIDTH),
        epilog="examples:\n" + "\n".join(commands),
        formatter_class=_Formatter,
    )


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        if odd := re.fullmatch(r"(.*invalid choice: '(.*?)')( \(choose from (.*)\))", message, re.DOTALL):
            choices = [choice.strip(" '") for choice in odd[4].split(",")]
            message = f"{odd[1]}{close_to(odd[2], choices)}{odd[3]}"
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help of at most 80 columns in which every option with a value names its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(WIDTH, shutil.get_terminal_size().columns) - 1)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """The names of an option and then its value, once: older Pythons repeat the value after each name."""
        text = super()._format_action_invocation(action)
        if not action.option_strings or action.nargs == 0:
            return text
        value = text.split(action.option_strings[-1], 1)[1]
        return ", ".join(action.option_strings) + value

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unsaid = action.option_strings and action.nargs != 0 and "default:" not in text
        return f"{text} (default: %(default)s)".strip() if unsaid else text


def _folded(command: str) -> str:
    """A command that can be copied as it is, folded before 80 columns."""
    lines = ["  "]
    for word in shlex.split(command):
        if len(lines[-1]) + len(shlex.quote(word)) > WIDTH - 3:
            lines[-1] += "\\"
            lines.append("      ")
        lines[-1] += f"{shlex.quote(word)} "
    return "\n".join(line.rstrip() for line in lines)


def add_run_options(parser: argparse.ArgumentParser, *, out_dir: str = "results", plot: str = "") -> None:
    """Options of every script: where the result goes, what is printed, which device computes.

    `plot` says what --plot draws; without it there is no such option.
    """
    group = parser.add_argument_group("run and result")
    group.add_argument(
        "--run-name",
        metavar="NAME",
        help="subfolder for the result, which several may share (default: local date and time)",
    )
    group.add_argument("-o", "--out-dir", type=Path, default=Path(out_dir), metavar="DIR", help="folder of all runs")
    group.add_argument("--overwrite", action="store_true", help="replace an existing result")
    if plot:
        group.add_argument("--plot", action="store_true", help=f"draw {plot}, beside the result (needs matplotlib)")
        group.add_argument(
            "--format",
            type=formats,
            metavar="LIST",
            help=f"of pictures, with commas: {', '.join(FORMATS)} (default: {FORMATS[0]})",
        )
    group.add_argument("--no-save", action="store_true", help="print only: write no result")
    group.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--debug", action="store_true", help="a short run: a few batches an epoch")
    group.add_argument("--traceback", action="store_true", help="show where an error comes from, not its line alone")


def formats(text: str) -> list[str]:
    """argparse type: kinds of picture files, separated by commas."""
    chosen = list(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for one in chosen:
        if one not in FORMATS:
            raise argparse.ArgumentTypeError(f"invalid choice: {one!r} (choose from {', '.join(FORMATS)})")
    return chosen


def add_model_option(parser: argparse._ActionsContainer, *flags: str, whose: str = "") -> None:
    """An option that names an architecture where neither a weight file nor its path does."""
    parser.add_argument(
        *flags, type=model_name, metavar="MODEL", help=f"architecture{whose} (default: what the weight file says)"
    )


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Two weight files."""
    parser.add_argument("front_model", metavar="front_weights", help=f"the first network: {NETWORK_HELP}")
    parser.add_argument("end_model", metavar="end_weights", help="the second network, likewise")


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Options that name the architectures of two weight files where the files do not."""
    group = parser.add_argument_group("networks")
    add_model_option(group, "--model1", whose=" of the first")
    add_model_option(group, "--model2", whose=" of the second")


def add_stitch_arguments(parser: argparse.ArgumentParser, stitch_types: Sequence[str]) -> None:
    """A result file with the type of stitch in it, and options for weight files that have moved since."""
    parser.add_argument(
        "pickle_path", type=Path, metavar="result", help="result file of stitch_nets.py, or a folder of them"
    )
    parser.add_argument(
        "stitch_type",
        choices=stitch_types,
        metavar="stitch_type",
        help="before or after training, or least squares: ps_inv on validation images, ls_train on training images",
    )
    group = parser.add_argument_group("networks")
    for flag, which in (("--front-model", "first"), ("--end-model", "second")):
        group.add_argument(flag, metavar="SPEC", help=f"weights of the {which} network (default: what the result says)")


def add_method_argument(parser: argparse.ArgumentParser) -> None:
    """The measures to compute."""
    lower = ", ".join(name for name, metric in MEASURES.items() if not metric.higher_is_better)
    text = f"{', '.join(MEASURES)}; of {lower} lower means more alike, of all others higher"
    text += "; or your own, FILE.py:FUNCTION of two matrices, behind it ?better=lower where that is so"
    parser.add_argument("methods", nargs="+", type=method_name, metavar="method", help=text)


def method_name(text: str) -> str:
    """argparse type: a measure that is known, or one of the user's own, which runs later."""
    if is_own(text):
        return checked(name_own)(text)
    if text not in MEASURES:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(sorted(MEASURES))})")
    return text


def add_comparison_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How measures look at activations; returns the group."""
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--view",
        choices=("images", "channels"),
        help="a row is an image, or a position of channels (default: each method's usual)",
    )
    group.add_argument(
        "-g",
        "--group-at",
        "--group_at",
        type=group_size,
        metavar="N",
        help="average over groups of N images, where all at once are too many (default: inf, all at once)",
    )
    text = "activations held at once; what exceeds it takes groups of images, or, for many layers, more passes"
    add_memory_option(group, text)
    return group


def add_memory_option(group: argparse._ActionsContainer, text: str) -> None:
    group.add_argument("--memory", type=positive_float, default=MEMORY / 1e9, metavar="GB", help=text)


def add_split_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Which images are used, in batches of how many; returns the group."""
    group = parser.add_argument_group("images")
    group.add_argument("-t", "--dataset-type", choices=SPLITS, default="val", help="split to use")
    batch = f"images a batch (default: {BATCH_SIZE}, on a GPU {GPU_BATCH} of 32 x 32)"
    group.add_argument("-b", "--batch-size", type=positive, metavar="N", help=batch)
    add_reading_options(group)
    return group


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """How images are read."""
    add_size_option(parser)
    parser.add_argument(
        "--images",
        type=positive,
        metavar="N",
        help="take N images of each split, as many of each class and always the same, for a first try",
    )
    parser.add_argument(
        "--num-workers",
        type=natural,
        metavar="N",
        help="processes that decode image files (default: one a core, at most 8)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep decoded image files there, for later epochs and runs (default: in memory, for this run)",
    )
    parser.add_argument(
        "--cache-gb",
        type=positive_float,
        metavar="GB",
        help="what decoded images may take (default: 50 in --cache, 2 a split in memory)",
    )


def add_size_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="bring images to N x N pixels (default: the network's size for image files, else as they are)",
    )


def add_dataset_option(parser: argparse._ActionsContainer, *, default: str | None = None, shown: str = "") -> None:
    shown = default or shown or "the one the network was trained on"
    text = f"data set: {', '.join(known_datasets())} (default: {shown})"
    parser.add_argument("-d", "--dataset", type=dataset_name, default=default, metavar="DATASET", help=text)


def dataset_name(text: str) -> str:
    """argparse type: a data set that has a name, or the path of one; whether that exists is seen later."""
    try:
        return canonical_dataset(text)
    except UserError:
        known = ", ".join(known_datasets())
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {known})") from None


def reading(args: argparse.Namespace, on_message: Callable[[str], None]) -> dict[str, Any]:
    """What `load_split` is told of how images are read; `on_message` hears what a cache could not hold."""
    if args.cache and args.cache.exists() and not args.cache.is_dir():
        raise UserError(f"--cache {args.cache} is no folder")
    keep = CacheOptions(args.cache, args.cache_gb, on_message)
    return {"num_workers": args.num_workers, "keep": keep, "images": args.images}


def add_spec_options(
    parser: argparse.ArgumentParser, options: Sequence[Option], defaults: Any
) -> dict[str | None, argparse._ArgumentGroup]:
    """Options that a table describes, each in its group; `defaults` has their values. Returns the groups by title."""
    groups = {group.title: group for group in parser._action_groups}
    for option in options:
        group = groups.get(option.group) or parser.add_argument_group(option.group)
        groups[option.group] = group
        default = getattr(defaults, option.field)
        if option.kind == "flag":
            group.add_argument(*option.flags, action="store_true", help=option.help)
            continue
        text = f"{option.help}: {', '.join(option.choices)}" if option.choices else option.help
        shown = f" (default: {option.default})" if option.default else ""
        group.add_argument(
            *option.flags,
            type=_listed(option) if option.many else _one_of(option),
            default=None if option.default else default,
            metavar=option.metavar or option.field.upper(),
            help=f"{text}{f', or several: a{option.separator}b' * option.many}{shown}",
        )
    return groups


def _one_of(option: Option) -> Callable[[str], Any]:
    """argparse type: one value of an option."""

    if option.kind == "names":
        return checked(partial(names_among, option.choices))
    if option.check:
        return checked(lambda text: checked_text(option, text))

    def parse(text: str) -> Any:
        if option.kind != "name":
            return READERS[option.kind](text)
        if text not in option.choices:
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(option.choices)})")
        return text

    return parse


def checked_text(option: Option, text: str) -> str:
    """A text that an option accepts."""
    if option.check:
        option.check(text)
    return text


def _listed(option: Option) -> Callable[[str], list[Any]]:
    """argparse type: values of an option, set apart as it says."""
    one = _one_of(option)
    return lambda text: list(dict.fromkeys(one(part.strip()) for part in text.split(option.separator)))


def add_precision_options(parser: argparse._ActionsContainer) -> None:
    """Less than float32 in training."""
    parser.add_argument(
        "--amp",
        action="store_true",
        help="train with bfloat16 products: faster where the GPU or processor has them, results differ slightly",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="train with products of factors rounded to 10 bits (TF32), on GPUs of NVIDIA that have them",
    )


def add_adversarial_option(parser: argparse._ActionsContainer, text: str) -> None:
    """A bound of adversarial changes; `with_bound` fills in what a bare option means."""
    parser.add_argument(
        OPTION, type=checked(read_bound), default=0.0, metavar="EPS", help=f"{text}, of pixels in 0..1 (bare: {WORDS})"
    )


def models_help() -> str:
    """The names of all architectures, for the help of an argument that takes one."""
    return ", ".join(model_names())


def checked(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse type: what a function makes of a text, its UserError a line that names the option."""

    def parse(text: str) -> Any:
        try:
            return function(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def model_name(text: str) -> str:
    """argparse type: a model's name in its canonical spelling; that of a foreign one may end in ?size=64."""
    try:
        model, asked = split_model(text)
        return text if asked else model
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def group_size(text: str) -> int | None:
    """A whole number above 0, also with a point (256.0); None for inf, which is no group."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if value == math.inf:
            return None
        if value > 0 and value.is_integer():
            return int(value)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number above 0 nor inf")


positive, natural, seed, positive_float, natural_float = (
    checked(NUMBERS[kind].read) for kind in ("positive", "natural", "seed", "positive_float", "natural_float")
)


def rank(text: str) -> int | None:
    """argparse type: 1, 2, 3 ..., or `full`."""
    return None if text == "full" else positive(text)


# what each kind of an option makes of its text
READERS: dict[str, Callable[[str], Any]] = {
    **{kind: checked(number.read) for kind, number in NUMBERS.items()},
    "rank": rank,
    "naturals": checked(naturals),
    "text": str,
}
