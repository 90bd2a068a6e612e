"""What the scripts share: loading a pair, one-line errors, the result file and what is printed of it."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from src import results
from src.core.config import choose_device
from src.core.errors import REPORT, UserError
from src.core.files import NotWritten, is_failing, sole_maker
from src.core.precision import full_precision, multiplies_bfloat16, require_tf32
from src.core.text import visible
from src.networks.feature_networks import FeaturePair
from src.networks.opening import open_pair as open_networks
from src.networks.presentation import NetworksOnDataset, put_on_dataset
from src.networks.source_spec import Named
from src.results import text as report
from src.results.plots import FORMATS
from src.results.saved_stitch import SavedStitch
from src.stitching.targets import teachers_of
from src.training.train_state import History

# What to do where the memory for a comparison is short.
GROUPS_HELP = "lower --batch-size, or average over groups of images with --group-at"
Shown = TypeVar("Shown", NetworksOnDataset, FeaturePair)
_REMEDY = "remedy"  # the attribute of an OSError that says what to do about it
GOES_ON = "goes_on"  # of an error: how to go on after it
USER_ERRORS = (UserError, OSError, FloatingPointError)


def open_pair(args: argparse.Namespace, *, targets: Collection[str] = ()) -> NetworksOnDataset:
    """The two networks that the arguments name, in front of the data set that they name or were trained on.

    Refused where they do not decide what stitches to these targets ask.
    """
    specs = Named(args.front_model), Named(args.end_model)
    models = args.model1 and Named(args.model1), args.model2 and Named(args.model2)
    pair = open_networks(specs, models=models, dataset=args.dataset, size=args.image_size, on_message=notice)
    on_data = put_on_dataset(pair, args.dataset, size=args.image_size)
    if targets:
        on_data.require_for(teachers_of(targets), batch_dependent=getattr(args, "batch_dependent", False))
    return show(on_data)


def show(on_data: Shown) -> Shown:
    """Tell the user what figures on these images rest on."""
    for line in on_data.notes:
        notice(f"note: {line}")
    return on_data


def run_script(
    parse: Callable[[list[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], Any],
    argv: list[str] | None,
    **lines: str | Callable[[argparse.Namespace], str],
) -> None:
    """What every script does: parse, run, and end in one line; `lines` of `one_line_errors` may depend on arguments."""
    args = parse(argv)
    said = {name: line if isinstance(line, str) else line(args) for name, line in lines.items()}
    with one_line_errors(traceback=args.traceback, **said), full_precision():
        run(args)


@contextlib.contextmanager
def one_line_errors(
    *,
    traceback: bool,
    interrupted: str = "interrupted",
    less_memory: str = "lower --batch-size",
    goes_on: str = "the same command begins anew",
) -> Iterator[None]:
    """End the script with one line on stderr and exit code 2 for what a user can mend; with `traceback`, with that.

    Any other exception is a mistake of ours: below its traceback stands what to do with it. `less_memory` says what to
    do where memory was short, `goes_on` where a disk failed and `going_on` knew no better. Ctrl-C ends with exit code
    130 and SIGTERM with 143, both with the line `interrupted`, or that of `resumable`, and after all that clears up
    behind an error.
    """
    try:
        with _terminable():
            yield
    except USER_ERRORS as error:
        if traceback:
            raise
        _fail(_describe(error) + _kept(error, goes_on), 2)
    except Exception as error:
        if traceback:
            raise
        if _is_shortage(error):
            _fail(f"out of memory; {less_memory}", 2)
        sys.excepthook = _report
        raise
    except KeyboardInterrupt as error:
        _fail(str(error) or interrupted, 130)
    except _Terminated as error:
        _fail(str(error) or interrupted, 143)


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What the interpreter calls for an exception that nobody caught."""
    sys.__excepthook__(kind, error, trace)
    notice(f"error: {REPORT}")


class _Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is Ctrl-C."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raise _Terminated where SIGTERM would end the process at once, with its locks and temporary files left behind."""
    home = os.getpid()

    def terminate(number: int, frame: object) -> None:
        if os.getpid() != home:  # a worker that inherited this
            os._exit(143)
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut short what clears up
        raise _Terminated

    is_main = threading.current_thread() is threading.main_thread()
    is_ours = is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    try:
        if is_ours:
            signal.signal(signal.SIGTERM, terminate)
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: on a processor torch raises a plain RuntimeError for it."""
    is_torch = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return is_torch or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return text + getattr(error, _REMEDY, "")
    return " ".join(str(error).split()) or type(error).__name__


def _kept(error: BaseException, goes_on: str) -> str:
    """Where a disk failed, what is lost, what is kept, and how to go on."""
    if not is_failing(error):
        return ""
    what = "this file is lost, those before it are whole" if isinstance(error, NotWritten) else "nothing is lost"
    return f"; {what}; {getattr(error, GOES_ON, goes_on)}"


@contextlib.contextmanager
def going_on(kept: Callable[[], object], how: str) -> Iterator[None]:
    """Say how to go on where a disk fails within the block, if something is kept by then."""
    try:
        yield
    except OSError as error:
        if kept() and not hasattr(error, GOES_ON):
            setattr(error, GOES_ON, how)
        raise


def _fail(message: str, code: int) -> None:
    print(f"error: {visible(message, keep='')}", file=sys.stderr)
    raise SystemExit(code) from None


def notice(message: str) -> None:
    """Tell the user something that is not a result."""
    print(visible(message), file=sys.stderr, flush=True)


def tell_once(told: set[str]) -> Callable[[str], None]:
    """`notice`, of what is not among the lines that were told before."""

    def on_message(line: str) -> None:
        if line not in told:
            told.add(line)
            notice(line)

    return on_message


def tell_weights(saved: SavedStitch, told: set[str]) -> None:
    """Where the networks of a stitch are from, on stderr, unless that was told before."""
    for role, weights in saved.weight_files.items():
        tell_once(told)(f"{role}: {weights}")


def device_for_training(args: argparse.Namespace) -> torch.device:
    """The device asked for; a line on stderr where `--amp` would be slower on it than training without.

    Raises UserError where it has no TF32 and `--tf32` asks for that.
    """
    device = choose_device(args.device)
    if args.tf32:
        if args.amp:
            raise UserError("--tf32 excludes --amp: training multiplies in one precision")
        require_tf32(device)
    if args.amp and not multiplies_bfloat16(device):
        notice("note: this processor does not multiply bfloat16 itself; training is faster without --amp")
    return device


def tell_resumed(done: int, epochs: int) -> None:
    """A line on stderr about where an interrupted training goes on."""
    notice(f"going on after epoch {done} of {epochs}")


def tell_epoch(history: History, epochs: int, *, always: bool = False, whose: str = "") -> None:
    """A line on stderr about the last epoch, for logs: it stands in where there is no terminal for a progress bar."""
    if always or not sys.stderr.isatty():
        figures = ", ".join(f"{name} {value:.4f}" for name, value in history.epochs[-1].items())
        notice(f"epoch {len(history.epochs)} of {epochs}{' of ' * bool(whose)}{whose}: {figures}")


@contextlib.contextmanager
def resumable(paths: Sequence[Path | None]) -> Iterator[None]:
    """Make the line of an interrupted run say how to go on with it: in the name of the folder of its results."""
    if paths[0] is None:
        yield
        return
    folder = paths[0].parent
    how = f"--resume --run-name {folder.name} goes on from the last whole epoch"
    try:
        with going_on(lambda: list(folder.glob("*.resume.pt")), how):
            yield
    except (KeyboardInterrupt, _Terminated) as error:
        raise type(error)(f"interrupted; {how}") from None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a result goes: nowhere with --no-save, and with a problem where it should but cannot."""

    path: Path | None
    problem: OSError | None = None


@contextlib.contextmanager
def result_path(
    args: argparse.Namespace, name: str, *, out_dir: Path | None = None, answers_anyway: bool = False
) -> Iterator[Place]:
    """Reserve results/<run>/<name>.pkl before any work; refuse an existing one unless --overwrite is given.

    Results on training images have "-train" in their names. With --plot the same holds for the picture beside it. A
    second run that would make the same file is refused too. A folder that is still empty at the end, since the work
    failed, is removed. With `answers_anyway` a place that cannot be written is no reason not to answer: `publish`
    says it afterwards.
    """
    split = getattr(args, "dataset_type", "val")
    name = name if split == "val" else f"{name}-{split}"
    with contextlib.ExitStack() as stack:
        try:
            place = Place(stack.enter_context(result_paths(args, [name], out_dir=out_dir))[0])
        except OSError as error:
            if error.errno is None or not answers_anyway:  # without a number it is ours: something is there already
                raise
            place = Place(None, error)
        yield place


@contextlib.contextmanager
def result_paths(
    args: argparse.Namespace,
    names: Sequence[str],
    *,
    picture: str | None = None,
    out_dir: Path | None = None,
    interrupted: Callable[[Path], Any] | None = None,
) -> Iterator[list[Path | None]]:
    """Reserve the files of several results as `result_path` does that of one; `picture` names one picture of all.

    `interrupted` says of a folder whether a run that is gone on with left it: what is there then is of the same run,
    which has made a part of its results, and is made again.
    """
    if getattr(args, "format", None) and not args.plot:
        raise UserError("--format is of the pictures that --plot draws")
    if args.no_save:
        for option in ("plot", "resume"):
            if getattr(args, option, False):
                raise UserError(f"--no-save excludes --{option}: that is kept beside the result")
        yield [None for _ in names]
        return
    with _naming_ways_out("--no-save" if out_dir else "-o for another folder, or --no-save"):
        folder = results.run_folder(out_dir or args.out_dir, args.run_name)
    paths = [folder / f"{name}.pkl" for name in names]
    named = [folder / f"{picture}.pkl"] if picture else paths
    drawn = [place for path in named for place in picture_paths(args, path)]
    targets = paths + (drawn if getattr(args, "plot", False) else [])
    try:
        with contextlib.ExitStack() as stack:
            for path in paths:
                stack.enter_context(sole_maker(path))
            for target in targets:
                if target.exists() and not args.overwrite and not (interrupted and interrupted(folder)):
                    raise FileExistsError(f"{target} exists already; give --overwrite or another --run-name")
            yield [*paths]
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _naming_ways_out(remedy: str) -> Iterator[None]:
    """Say beside an error of a place where nothing may be written which options choose another."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            setattr(error, _REMEDY, f"; give {remedy}")
        raise


def picture_paths(args: argparse.Namespace, result: Path) -> list[Path]:
    """The pictures of a result: a file for each --format."""
    return [result.with_suffix(f".{kind}") for kind in args.format or FORMATS[:1]] if hasattr(args, "format") else []


def publish(
    args: argparse.Namespace,
    place: Place,
    result: dict[str, Any],
    text: str,
    *,
    draw: Callable[[dict[str, Any], Path], None] | None = None,
) -> None:
    """Write a result with its arguments and provenance, print `text`, or all of it as JSON, and draw its picture.

    `draw` gets what was written and the picture's path; it is called for --plot only. What was written is there
    whatever becomes of the terminal, and the numbers of a long run are seen even where the disk is full.
    """
    record = {"params": parameters(args), **result, **made_by(args)}
    places: dict[str, str | None] = {"result": None}
    try:
        if place.path:
            results.write(place.path, record, overwrite=args.overwrite or getattr(args, "resume", False))
    finally:
        if not args.json:
            say(text)
    if place.path:
        places = {"result": str(place.path)}
        pictures = picture_paths(args, place.path) if getattr(args, "plot", False) and draw else []
        if args.overwrite:
            for kind in FORMATS:
                place.path.with_suffix(f".{kind}").unlink(missing_ok=True)  # it showed the result that is gone now
        for picture in pictures:
            assert draw
            draw(record, picture)
        if pictures:
            places["picture"] = ", ".join(map(str, pictures))
    if args.json:
        say(report.to_json(record | places))
    elif place.path:
        say("\n".join(f"{what}: {where}" for what, where in places.items()))
    if place.problem:
        raise place.problem


def made_by(args: argparse.Namespace) -> dict[str, Any]:
    """What a result says of how it came about: code, libraries, command, and the device where it is no processor."""
    return results.provenance(choose_device(args.device), tf32=getattr(args, "tf32", False))


def say(text: str) -> None:
    """Print on stdout, what its encoding lacks escaped; whoever reads it may have had enough (`| head -1`)."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(visible(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # also for what Python itself still flushes at the end
        os.close(nowhere)


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    """All arguments that say what is done, as built-in values."""
    asked = {key: value for key, value in vars(args).items() if key != "traceback"}
    return {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
