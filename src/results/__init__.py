"""Result files: safe reading, atomic writing, and where each number came from.

A result is a pickle of built-in containers, numpy arrays and pandas frames, so that it opens anywhere. Pickles can run
code when they are opened; `read` opens them without running anything (see `reader`).
"""

import pickle
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from src.files import atomic_write, make_folder
from src.results.reader import parse

FORMAT = 1


def read(path: Path | str) -> Any:
    """Open a result file of this suite, or of the published scripts, without running anything in it.

    Raises FileNotFoundError, or ValueError where the file is damaged or holds what no result holds.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no result file {path}")
    try:
        result = parse(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # a hostile or cut file can raise anything at all
        reason = str(error).partition("\n")[0] if isinstance(error, ValueError) else "it is damaged"
        # words of the file may be in it: no more of them than a line, and nothing that a terminal would obey
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason[:200])
        raise ValueError(f"cannot read {path} as a result: {reason}") from None
    written_as = result.get("format", FORMAT) if isinstance(result, dict) else FORMAT
    if not isinstance(written_as, int) or written_as != FORMAT:
        raise ValueError(f"{path} has another format than {FORMAT}, the one that this version reads")
    return result


def write(path: Path, result: dict[str, Any], *, overwrite: bool) -> None:
    """Write a result atomically; raises FileExistsError where it exists and `overwrite` is false."""
    with atomic_write(path, overwrite=overwrite) as file:
        pickle.dump(_portable(result | {"format": FORMAT}), file, protocol=4)


def _portable(value: Any) -> Any:
    """The same with frames whose texts are plain objects: pandas' own kinds of text vary with its version."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_portable(part) for part in value)
    if not isinstance(value, pd.DataFrame):
        return value
    texts = [name for name, kind in value.dtypes.items() if isinstance(kind, pd.StringDtype)]
    frame = value.astype(dict.fromkeys(texts, object))
    for axis in ("index", "columns"):
        labels = getattr(frame, axis)
        if isinstance(labels.dtype, pd.StringDtype):
            setattr(frame, axis, labels.astype(object))
    return frame


def run_folder(out_dir: Path, run_name: str | None) -> Path:
    """Make the folder of a run; without a name it gets the local date and time, and is shared with no other run.

    Raises ValueError for a name that leads out of the folder of all runs.
    """
    if run_name:
        if Path(run_name).is_absolute() or ".." in Path(run_name).parts:
            raise ValueError(f"--run-name {run_name} leads out of {out_dir}; choose another folder of all runs with -o")
        folder = out_dir / run_name
        make_folder(folder)
        return folder
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    make_folder(out_dir)
    for attempt in range(1, 1000):
        folder = out_dir / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{out_dir / stamp} and its successors exist already; give --run-name")


def provenance() -> dict[str, Any]:
    """Branch and commit of the code (None outside a checkout) and the command line that runs."""
    return {
        "git": {"branch": _git("rev-parse", "--abbrev-ref", "HEAD"), "commit": _git("rev-parse", "HEAD")},
        "runner_code": shlex.join(["python", *sys.argv]),
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


SETTINGS = (
    *("front_model", "end_model", "front_layer", "end_layer", "init", "mask", "low_rank", "orthogonal", "flatten"),
    *("resize", "target_type", "temperature", "l1", "cka_reg", "epochs", "lr", "batch_size", "weight_decay"),
    *("optimizer", "seed"),
)
# our name -> the published key, or its ending
STAGES = {"front": "front", "end": "end", "before": "before", "after": "trans", "ps_inv": "ps_inv"}
ENDINGS = {"front": "", "before": "_before", "after": "_frank", "ps_inv": "_ps_inv"}
AGREEING = {"front": "m1", "before": "before", "after": "after", "ps_inv": "ps_inv"}


def table(folder: Path | str) -> pd.DataFrame:
    """A row for each result of stitch_nets.py below a folder, in the order of their paths.

    Columns: run (the folder of the file), dataset, SETTINGS as in `params`, then for each stage (front, end, before,
    after, ps_inv) accuracy_<stage> (0 to 1), and for all but end, compared with the end network: agreement_<stage>
    (share of equal decisions), relative_accuracy_<stage>, cka_<stage> and l2_<stage>; and path. What a file lacks is
    missing in its row.
    Other results are passed over; files that cannot be read are listed in one warning. Raises FileNotFoundError where
    there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    rows, unreadable = [], []
    for path in sorted(folder.rglob("*.pkl")):
        try:
            result = read(path)
            if isinstance(result, dict) and {"params", "trans_m", "model_results"} <= result.keys():
                rows.append(_row(result, path))
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
        except (AttributeError, TypeError):
            unreadable.append(f"{path} is no result of stitch_nets.py, though it has its keys")
    if unreadable:
        warnings.warn(f"{len(unreadable)} files left out: " + "; ".join(unreadable), stacklevel=2)
    return pd.DataFrame(rows, columns=list(_row({}, Path())))


def _row(result: dict[str, Any], path: Path) -> dict[str, Any]:
    params, scores, similar = (result.get(key) or {} for key in ("params", "model_results", "m2_sim"))
    similar = {stage: similar.get(key) or {} for stage, key in AGREEING.items()}
    dataset = params.get("dataset") or (result.get("weights") or {}).get("front", {}).get("dataset")
    numbers = {
        **{f"accuracy_{stage}": (scores.get(key) or {}).get("acc") for stage, key in STAGES.items()},
        **{f"agreement_{stage}": found.get("same_class_out") for stage, found in similar.items()},
        **{f"relative_accuracy_{stage}": found.get("rel_acc") for stage, found in similar.items()},
        **{f"{name}_{stage}": result.get(f"{name}{key}") for name in ("cka", "l2") for stage, key in ENDINGS.items()},
    }
    return {
        "run": path.parent.name,
        "dataset": dataset,
        **{name: params.get(name) for name in SETTINGS},
        **{name: float("nan" if value is None else value) for name, value in numbers.items()},
        "path": str(path),
    }
