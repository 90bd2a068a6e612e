"""What the scripts share: loading a pair, one-line errors, the result file and what is printed of it."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from src import checkpoints, report, results
from src.checkpoints import Checkpoint
from src.files import sole_maker
from src.metrics import METRICS, Cell, Health
from src.training import History

# What to do where the memory for a comparison is short.
GROUPS_HELP = "lower --batch-size, or average over groups of images with --group-at"
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def load_pair(args: argparse.Namespace) -> tuple[Checkpoint, Checkpoint]:
    """Load the two networks that the arguments name; raises ValueError where they are for different data sets."""
    front = checkpoints.load(args.front_model, model=args.model1, dataset=args.dataset)
    end = checkpoints.load(args.end_model, model=args.model2, dataset=args.dataset)
    if front.dataset != end.dataset:
        raise ValueError(
            f"the networks are for different data sets: {front.path} for {front.dataset}, {end.path} for {end.dataset}"
        )
    return front, end


def comparison_report(cell: Cell) -> tuple[str, dict[str, Any]]:
    """Text for stdout, a line a measure and what stands behind it, and the same for the result file.

    Raises ValueError where there is no value at all.
    """
    if not cell.values:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in cell.refused.items()))
    lines = [f"{'method':14} {'view':9} {'value':>12}  more alike"]
    for name, view in cell.views.items():
        value = f"{cell.number(name):12.6f}" if name in cell.values else f"{'-':>12}"
        lines.append(f"{name:14} {view:9} {value}  {METRICS[name].alike}")
    lines += [report.fill(f"{name}: no value: {reason}") for name, reason in cell.refused.items()]
    for view in cell.health.values():
        lines += _health_lines(view)
    records = {view: asdict(record) for view, record in cell.health.items()}
    parts = {"values": cell.values, "refused": cell.refused, "views": cell.views, "health": records}
    return "\n".join(lines), parts


def _health_lines(health: Health) -> list[str]:
    facts = [f"{health.images} images", f"features {health.features[0]} and {health.features[1]}"]
    if health.rank:
        facts.append(f"rank {'at least ' * health.rank_is_bound}{health.rank[0]} and {health.rank[1]}")
    facts.append(f"dead channels {health.dead_channels[0]} and {health.dead_channels[1]}")
    if health.cka_bias is not None:
        facts.append(f"biased - debiased CKA {health.cka_bias:.4f}")
    return [
        report.fill(f"{health.view}: {', '.join(facts)}"),
        *(report.fill(f"warning: {warning}") for warning in health.warnings),
    ]


@contextlib.contextmanager
def one_line_errors(
    *, debug: bool, interrupted: str = "interrupted", less_memory: str = "lower --batch-size"
) -> Iterator[None]:
    """End the script with one line on stderr and exit code 2 for what a user can mend; with `debug`, a traceback.

    `less_memory` says what to do where memory was short.
    """
    try:
        yield
    except USER_ERRORS as error:
        if debug:
            raise
        _fail(_describe(error), 2)
    except (MemoryError, RuntimeError) as error:
        if debug or not _is_shortage(error):
            raise
        _fail(f"out of memory; {less_memory}", 2)
    except KeyboardInterrupt:
        _fail(interrupted, 130)


def _is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: on a processor torch raises a plain RuntimeError for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def notice(message: str) -> None:
    """Tell the user something that is not a result."""
    print(message, file=sys.stderr, flush=True)


def tell_resumed(history: History, epochs: int) -> None:
    """A line on stderr about where an interrupted training goes on."""
    notice(f"going on after epoch {len(history.epochs)} of {epochs}")


def tell_epoch(history: History, epochs: int, *, always: bool = False) -> None:
    """A line on stderr about the last epoch, for logs: it stands in where there is no terminal for a progress bar."""
    if always or not sys.stderr.isatty():
        figures = ", ".join(f"{name} {value:.4f}" for name, value in history.epochs[-1].items())
        notice(f"epoch {len(history.epochs)} of {epochs}: {figures}")


@contextlib.contextmanager
def result_path(args: argparse.Namespace, name: str, *, out_dir: Path | None = None) -> Iterator[Path]:
    """Reserve results/<run>/<name>.pkl before any work; refuse an existing one unless --overwrite is given.

    Results on training images have "-train" in their names.
    With --plot the same holds for the picture beside it. A second run that would make the same file is refused too.
    A folder that is still empty at the end, since the work failed, is removed.
    """
    folder = results.run_folder(out_dir or args.out_dir, args.run_name)
    split = getattr(args, "dataset_type", "val")
    path = folder / (f"{name}.pkl" if split == "val" else f"{name}-{split}.pkl")
    try:
        with sole_maker(path):
            for target in (path, picture_path(args, path)):
                if target and target.exists() and not args.overwrite:
                    raise FileExistsError(f"{target} exists already; give --overwrite or another --run-name")
            yield path
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def picture_path(args: argparse.Namespace, path: Path) -> Path | None:
    """Where the picture of a result goes; None without --plot."""
    return path.with_suffix(".png") if getattr(args, "plot", False) else None


def publish(
    args: argparse.Namespace,
    path: Path,
    result: dict[str, Any],
    text: str,
    *,
    draw: Callable[[dict[str, Any], Path], None] | None = None,
) -> None:
    """Write a result with its arguments and provenance, draw its picture, and print: `text`, or all of it as JSON.

    `draw` gets what was written and the picture's path; it is called for --plot only. Text comes first of all, so
    that the numbers of a long run are seen even where the disk is full.
    """
    if not args.json:
        print(text, flush=True)
    record = {"params": parameters(args), **result, **results.provenance()}
    results.write(path, record, overwrite=args.overwrite)
    picture = picture_path(args, path)
    if picture and draw:
        draw(record, picture)
    elif args.overwrite:
        path.with_suffix(".png").unlink(missing_ok=True)  # it showed the result that is gone now
    places = {"result": str(path)} | ({"picture": str(picture)} if picture else {})
    if args.json:
        print(report.to_json(record | places))
    else:
        print("\n".join(f"{what}: {place}" for what, place in places.items()))


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    """All arguments as built-in values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
