"""All stitches below a folder as one frame, a row each."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from src.files import atomic_write
from src.results.storage import read

CACHE = ".stitches.jsonl"  # rows that were read before, by path, size and time
SETTINGS = (
    *("front_model", "end_model", "front_layer", "end_layer", "init", "mask", "low_rank", "orthogonal", "flatten"),
    *("resize", "target_type", "temperature", "l1", "cka_reg", "epochs", "lr", "batch_size", "weight_decay"),
    *("optimizer", "seed", "whiten", "amp", "debug"),
)
# our name -> the key of a network's facts
NETWORK = {"architecture": "model", "trained_on": "dataset"} | {seed: seed for seed in ("init_seed", "gradient_seed")}
# our name -> the published key, or its ending
STAGES = {
    "front": "front",
    "end": "end",
    "before": "before",
    "after": "trans",
    "ps_inv": "ps_inv",
    "ls_train": "ls_train",
}
ENDINGS = {"front": "", "before": "_before", "after": "_frank", "ps_inv": "_ps_inv", "ls_train": "_ls_train"}
AGREEING = {"front": "m1"} | {stage: stage for stage in ("before", "after", "ps_inv", "ls_train")}


CONTROL_NAMES = ("constant", "untrained", "shuffled", "self", "self_random", "probe")
VERDICTS = ("penalty", "score")
BOUNDS = {"": "value", "_low": "low", "_high": "high"}


def table(folder: Path | str) -> pd.DataFrame:
    """A row for each result of stitch_nets.py below a folder, in the order of their paths.

    Columns: run (the folder of the file), dataset, evaluate_on (where it was scored on another), SETTINGS as in
    `params`, of each network front_<fact> and end_<fact> (architecture, trained_on, init_seed, gradient_seed), then for
    each stage (front, end, before, after, ps_inv, ls_train) accuracy_<stage> (0 to 1), and for all but end, compared
    with the end network: agreement_<stage> (0 to 1), relative_accuracy_<stage>, cka_<stage>, l2_<stage> and
    l2_relative_<stage>; accuracy_<control>, penalty and score with their 95% intervals _low and _high;
    ood_auroc_<stage>, at the stitched layer; accuracy_chance, of the best constant answer;
    rows_per_unknown_ps_inv, at most 1 where ps_inv fits whatever it is given; key; and path. What
    a file lacks is missing in its row.
    Other results are passed over; files that cannot be read are listed in one warning. Rows are kept in a file beside
    the results, where that can be written, so that they are read once only. Raises FileNotFoundError where there is
    no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    cache = _Cache(folder / CACHE)
    rows, unreadable = [], []
    for path in sorted(folder.rglob("*.pkl")):
        try:
            row = cache.row(path, path.relative_to(folder).as_posix())
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
            continue
        if row is not None:
            rows.append(row | {"run": path.parent.name, "path": str(path)})
    cache.write()
    if unreadable:
        warnings.warn(f"{len(unreadable)} files left out: " + "; ".join(unreadable), stacklevel=2)
    return pd.DataFrame(rows, columns=list(_row({}, Path())))


class _Cache:
    """Rows of files by name, with the size and the time of the file that they are of; None for other results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, tuple[list[int], dict[str, Any] | None]] = {}
        self.changed = False
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:
                name, stamp, row = json.loads(line)
                if isinstance(row, dict | None) and (row is None or row.keys() == _row({}, Path()).keys()):
                    self.known[name] = stamp, row
            except (ValueError, TypeError):
                continue  # a torn line

    def row(self, path: Path, name: str) -> dict[str, Any] | None:
        """The row of a file, read anew where the file is another than before; raises as `read` does."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        if name not in self.known or self.known[name][0] != stamp:
            self.known[name] = stamp, _read_row(path)
            self.changed = True
        return self.known[name][1]

    def write(self) -> None:
        """Keep the rows for the next time; a folder that cannot be written is read anew then."""
        if not self.changed:
            return
        lines = [json.dumps([name, *entry]) for name, entry in self.known.items()]
        try:
            with atomic_write(self.path) as file:
                file.write("".join(f"{line}\n" for line in lines).encode())
        except OSError:
            pass


def _read_row(path: Path) -> dict[str, Any] | None:
    result = read(path)
    if not (isinstance(result, dict) and {"params", "trans_m", "model_results"} <= result.keys()):
        return None
    try:
        return {name: _plain(value) for name, value in _row(result, path).items()}
    except (AttributeError, TypeError):
        raise ValueError(f"{path} is no result of stitch_nets.py, though it has its keys") from None


def _plain(value: Any) -> Any:
    """A value that JSON gives back as it was."""
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _at_the_stitch(result: dict[str, Any], stage: str) -> float | None:
    """How far a map's activations can be told from the end network's own, at the stitched layer."""
    layer = (result.get("params") or {}).get("end_layer") or "logits"
    return (((result.get("ood") or {}).get(stage) or {}).get(layer) or {}).get("auroc")


def _row(result: dict[str, Any], path: Path) -> dict[str, Any]:
    params, scores, similar = (result.get(key) or {} for key in ("params", "model_results", "m2_sim"))
    similar = {stage: similar.get(key) or {} for stage, key in AGREEING.items()}
    networks = {role: (result.get("weights") or {}).get(role) or {} for role in ("front", "end")}
    fit, controls = (result.get("fits") or {}).get("ps_inv") or {}, result.get("controls") or {}
    numbers = {
        **{f"accuracy_{stage}": (scores.get(key) or {}).get("acc") for stage, key in STAGES.items()},
        **{f"agreement_{stage}": found.get("same_class_out") for stage, found in similar.items()},
        **{f"relative_accuracy_{stage}": found.get("rel_acc") for stage, found in similar.items()},
        **{
            f"{name}_{stage}": result.get(f"{name}{key}")
            for name in ("cka", "l2", "l2_relative")
            for stage, key in ENDINGS.items()
        },
        **{f"accuracy_{name}": (controls.get(name) or {}).get("acc") for name in CONTROL_NAMES},
        **{
            f"{verdict}{end}": (result.get(verdict) or {}).get(key)
            for verdict in VERDICTS
            for end, key in BOUNDS.items()
        },
        **{f"ood_auroc_{stage}": _at_the_stitch(result, stage) for stage in AGREEING if stage != "front"},
        "accuracy_chance": result.get("constant_accuracy"),
        "rows_per_unknown_ps_inv": fit["rows"] / fit["unknowns"] if fit else None,
    }
    return {
        "run": path.parent.name,
        "dataset": params.get("dataset") or networks["front"].get("dataset"),
        "evaluate_on": params.get("evaluate_on"),
        **{name: params.get(name) for name in SETTINGS},
        **{f"{role}_{fact}": facts.get(key) for role, facts in networks.items() for fact, key in NETWORK.items()},
        **{name: math.nan if value is None else float(value) for name, value in numbers.items()},
        "key": result.get("key"),
        "path": str(path),
    }
