"""What the scripts share: groups of options, one-line errors, the result file."""

import argparse
import contextlib
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from src import checkpoints, results
from src.checkpoints import Checkpoint
from src.dataset import DATASETS, SPLITS
from src.metrics import METRICS, Comparison, Health
from src.models import canonical_name

USER_ERRORS = (ValueError, OSError, FloatingPointError)


def parser(script: str, purpose: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, one a line, and whose errors are one line."""
    return _Parser(
        prog=f"{script}.py",
        description=purpose,
        epilog="examples:\n" + "\n".join(f"  python {script}.py {line}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")


def add_run_options(parser: argparse.ArgumentParser, *, out_dir: str = "results") -> None:
    """Options of every script: where the result goes, which device computes, what errors look like."""
    group = parser.add_argument_group("run")
    group.add_argument("--run-name", metavar="NAME", help="subfolder for the result (default: local date and time)")
    group.add_argument("-o", "--out-dir", type=Path, default=Path(out_dir), metavar="DIR", help=f"({out_dir}/)")
    group.add_argument("--overwrite", action="store_true", help="replace an existing result")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto)")
    group.add_argument("--debug", action="store_true", help="show tracebacks")


def add_model_option(parser: argparse.ArgumentParser, *flags: str) -> None:
    """An option that names an architecture where neither a weight file nor its path does."""
    parser.add_argument(*flags, type=model_name, metavar="MODEL", help="architecture, if the weight file has none")


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Two weight files, and options that name their architectures where the files do not."""
    parser.add_argument("front_model", type=Path, metavar="front_weights", help="weight file of the first network")
    parser.add_argument("end_model", type=Path, metavar="end_weights", help="weight file of the second network")
    add_model_option(parser, "--model1")
    add_model_option(parser, "--model2")


def add_stitch_arguments(parser: argparse.ArgumentParser, stitch_types: Sequence[str]) -> None:
    """A result file with the type of stitch in it, and options for weight files that have moved since."""
    parser.add_argument("pickle_path", type=Path, metavar="result", help="result file of stitch_nets.py")
    parser.add_argument(
        "stitch_type", choices=stitch_types, help="before or after training, or ps_inv: least squares on val"
    )
    parser.add_argument("--front-model", type=Path, metavar="PATH", help="weights of the first network, if moved")
    parser.add_argument("--end-model", type=Path, metavar="PATH", help="weights of the second network, if moved")


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """The measures to compute and how they look at activations."""
    parser.add_argument("methods", nargs="+", choices=sorted(METRICS), metavar="method", help=", ".join(METRICS))
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--view", choices=("images", "channels"), help="rows: images, or positions of channels (each method's usual)"
    )
    group.add_argument(
        "-g", "--group-at", type=positive, metavar="N", help="average over groups of N images (exact over all)"
    )


def comparison_report(comparison: Comparison) -> tuple[str, dict[str, Any]]:
    """Text for stdout, a line a measure and what stands behind it, and the same for the result file."""
    values, health = comparison.result(), comparison.health()
    lines = [f"{'method':14} {'view':9} {'value':>12}"]
    for name, value in values.items():
        lines.append(f"{name:14} {comparison.views[name]:9} {METRICS[name].number(value):12.6f}")
    for view in health.values():
        lines += _health_lines(view)
    records = {view: asdict(record) for view, record in health.items()}
    return "\n".join(lines), {"values": values, "views": dict(comparison.views), "health": records}


def _health_lines(health: Health) -> list[str]:
    facts = [f"{health.images} images", f"features {health.features[0]} and {health.features[1]}"]
    if health.rank:
        facts.append(f"rank {'at least ' * health.rank_is_bound}{health.rank[0]} and {health.rank[1]}")
    facts.append(f"dead channels {health.dead_channels[0]} and {health.dead_channels[1]}")
    if health.cka_bias is not None:
        facts.append(f"biased - debiased CKA {health.cka_bias:.4f}")
    return [
        textwrap.fill(f"{health.view}: {', '.join(facts)}", 80, subsequent_indent="  "),
        *(textwrap.fill(f"warning: {warning}", 80, subsequent_indent="  ") for warning in health.warnings),
    ]


def load_pair(args: argparse.Namespace) -> tuple[Checkpoint, Checkpoint]:
    """Load the two networks that the arguments name; raises ValueError where they are for different data sets."""
    front = checkpoints.load(args.front_model, model=args.model1, dataset=args.dataset)
    end = checkpoints.load(args.end_model, model=args.model2, dataset=args.dataset)
    if front.dataset != end.dataset:
        raise ValueError(
            f"the networks are for different data sets: {front.path} for {front.dataset}, {end.path} for {end.dataset}"
        )
    return front, end


def add_split_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("-t", "--dataset-type", choices=SPLITS, default="val", help="split to use (val)")
    group.add_argument("-b", "--batch-size", type=positive, default=256, metavar="N", help="images a batch (256)")


def add_worker_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--num-workers", type=natural, metavar="N", help="processes that decode image files (one a core, at most 8)"
    )


def add_dataset_option(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    shown = default or "the one the network was trained on"
    parser.add_argument("-d", "--dataset", choices=sorted(DATASETS), default=default, help=f"data set ({shown})")


def model_name(text: str) -> str:
    """argparse type: a model's name in its canonical spelling."""
    try:
        return canonical_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """argparse type: 1, 2, 3 ..."""
    return _bounded(text, int, "a whole number above 0", lambda value: value > 0)


def natural(text: str) -> int:
    """argparse type: 0, 1, 2 ..."""
    return _bounded(text, int, "a whole number, 0 or more", lambda value: value >= 0)


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    return _bounded(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def natural_float(text: str) -> float:
    """argparse type: a finite number, 0 or more."""
    return _bounded(text, float, "a number, 0 or more", lambda value: 0 <= value < float("inf"))


def finite_float(text: str) -> float:
    """argparse type: any finite number."""
    return _bounded(text, float, "a finite number", math.isfinite)


def _bounded(text: str, kind: Callable[[str], Any], wanted: str, accepts: Callable[[Any], bool]) -> Any:
    with contextlib.suppress(ValueError):
        value = kind(text)
        if accepts(value):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")


@contextlib.contextmanager
def one_line_errors(*, debug: bool) -> Iterator[None]:
    """End the script with one line on stderr and exit code 2 for what a user can mend; with `debug`, a traceback."""
    try:
        yield
    except USER_ERRORS as error:
        if debug:
            raise
        _fail(_describe(error), 2)
    except (MemoryError, torch.OutOfMemoryError):
        if debug:
            raise
        _fail("out of memory; lower --batch-size, or average over groups of images with --group-at", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def notice(message: str) -> None:
    """Tell the user something that is not a result."""
    print(message, file=sys.stderr)


@contextlib.contextmanager
def result_path(args: argparse.Namespace, name: str, *, out_dir: Path | None = None) -> Iterator[Path]:
    """Reserve results/<run>/<name>.pkl before any work; refuse an existing one unless --overwrite is given.

    A folder that is still empty at the end, since the work failed, is removed.
    """
    folder = results.run_folder(out_dir or args.out_dir, args.run_name)
    path = folder / f"{name}.pkl"
    try:
        if path.exists() and not args.overwrite:
            raise FileExistsError(f"{path} exists already; give --overwrite or another --run-name")
        yield path
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_result(args: argparse.Namespace, path: Path, result: dict[str, Any]) -> None:
    """Write a result with its arguments and provenance, and say where."""
    results.write(path, {"params": parameters(args), **result, **results.provenance()}, overwrite=args.overwrite)
    print(f"result: {path}")


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    """All arguments as built-in values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
