"""All stitches below a folder as one frame, a row each."""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from src.core.errors import UserError
from src.core.records import NUMBER, SCALAR, Maybe, check
from src.results.storage import read
from src.stitching.controls import CONTROLS
from src.stitching.stages import COMPARED, MAPS, STAGES
from src.stitching.stitch_spec import LATER, StitchSpec

CACHE = ".stitches.jsonl"  # rows of files below its folder, by path, size and time
Row = dict[str, Any] | None  # None for other results than stitches
Which = tuple[str, int, int]  # a file: its path below the cache's folder, bytes, and time of the last change in ns
# what decides a stitch, and is told apart by columns: the networks, and every field of its spec
SETTINGS = ("front_model", "end_model", *(field.name for field in fields(StitchSpec)))
# our name -> the key of a network's facts
NETWORK = {"architecture": "model", "trained_on": "dataset"} | {
    fact: fact for fact in ("init_seed", "gradient_seed", "train_fraction", "shuffle_labels", "adversarial")
}
VERDICTS = ("penalty", "score")
BOUNDS = {"": "value", "_low": "low", "_high": "high"}


def table(folder: Path | str) -> pd.DataFrame:
    """A row for each result of stitch_nets.py below a folder, in the order of their paths.

    Columns: run (the folder of the file), dataset, evaluate_on (where it was scored on another), SETTINGS as in
    `params`, of each network front_<fact> and end_<fact> (architecture, trained_on, init_seed, gradient_seed,
    train_fraction, shuffle_labels, adversarial), then for each stage (front, end, before, after, ps_inv, ls_train)
    accuracy_<stage> and robust_accuracy_<stage> (0 to 1), and for all but end, compared with the end network:
    agreement_<stage> (0 to 1), relative_accuracy_<stage>, cka_<stage>, l2_<stage>, l2_relative_<stage> and
    published_agreement_<stage> (0 to 100); match_final_<stage> of each map, the error at the end's final features over
    their variance; of a stitch that was trained on inputs that the front cannot tell from the data iri_relative_error
    and iri_minus_data; accuracy_<control>, penalty and score with their 95% intervals _low and _high;
    ood_auroc_<stage>, at the stitched layer; accuracy_chance, of the best constant answer; rows_per_unknown_ps_inv, at
    most 1 where ps_inv fits whatever it is given; device, where it was no processor; key; and path. What a file lacks
    is missing in its row. Other results are passed over; files that cannot be read are listed in one warning. Rows are
    kept in files beside the results, where these can be written, by `keep_row` and here, so that results are read once
    at most. Raises FileNotFoundError where there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    cache = _Cache(folder)
    rows, unreadable = [], []
    for path in sorted(folder.rglob("*.pkl")):
        try:
            row = cache.row(path, path.relative_to(folder).as_posix())
        except (UserError, OSError) as error:
            unreadable.append(str(error))
            continue
        if row is not None:
            rows.append(row | {"run": path.parent.name, "path": str(path)})
    cache.write()
    if unreadable:
        warnings.warn(f"{len(unreadable)} files left out: " + "; ".join(unreadable), stacklevel=2)
    return pd.DataFrame(rows, columns=list(_row({}, Path())))


def keep_row(path: Path, result: dict[str, Any]) -> None:
    """Keep the row of a result that was just written, so that `table` has it without reading the file."""
    with suppress(OSError, UserError):
        _append(path.parent / CACHE, {_which(path, path.name): _row_of(result, path)})


class _Cache:
    """What the caches in a folder and below know."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CACHE
        self.known: dict[Which, Row] = {}
        self.fresh: dict[Which, Row] = {}
        columns = _columns()
        for path in folder.rglob(CACHE):
            place = path.parent.relative_to(folder)
            for name, (size, changed), row in _lines(path):
                if row is None or _is_row(row, columns):
                    self.known[(place / name).as_posix(), size, changed] = row

    def row(self, path: Path, name: str) -> dict[str, Any] | None:
        """The row of a file, read anew where the file is another than before; raises as `read` does."""
        which = _which(path, name)
        if which not in self.known:
            self.known[which] = self.fresh[which] = _row_of(read(path), path)
        return self.known[which]

    def write(self) -> None:
        """Keep what was read for the next time; a folder that cannot be written is read anew then."""
        with suppress(OSError):
            _append(self.path, self.fresh)


def _which(path: Path, name: str) -> Which:
    status = path.stat()
    return name, status.st_size, status.st_mtime_ns


def _lines(path: Path) -> Iterator[tuple[str, tuple[int, int], Row]]:
    """The lines of a cache: path, bytes and time, row. Torn ones are passed over."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                name, (size, changed), row = json.loads(line)
            except (ValueError, TypeError, RecursionError):  # json's, too
                continue
            known = isinstance(name, str) and isinstance(size, int) and isinstance(changed, int)
            if known and isinstance(row, dict | None):
                yield name, (size, changed), row


def _columns() -> dict[str, Any]:
    """What may stand in each column."""
    return {
        name: NUMBER if isinstance(value, float) and math.isnan(value) else Maybe(SCALAR)
        for name, value in _row({}, Path()).items()
    }


def _is_row(row: dict[str, Any], columns: dict[str, Any]) -> bool:
    with suppress(UserError):
        check(row, columns)
        return row.keys() == columns.keys()
    return False


def _append(path: Path, rows: Mapping[Which, Row]) -> None:
    """Add lines by one write at the end of the file: processes that do so at once do not tear each other's."""
    if not rows:
        return
    lines = [json.dumps([name, [size, changed], row]) for (name, size, changed), row in rows.items()]
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, "".join(f"{line}\n" for line in lines).encode())
    finally:
        os.close(file)


def _row_of(result: Any, path: Path) -> dict[str, Any] | None:
    if not (isinstance(result, dict) and {"params", "trans_m", "model_results"} <= result.keys()):
        return None
    try:
        return {name: _plain(value) for name, value in _row(result, path).items()}
    except (AttributeError, TypeError, KeyError):
        raise UserError(f"{path} is no result of stitch_nets.py, though it has its keys") from None


def _plain(value: Any) -> Any:
    """A value that JSON gives back as it was."""
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _at_the_stitch(result: dict[str, Any], stage: str) -> float | None:
    """How far a map's activations can be told from the end network's own, at the stitched layer."""
    layer = (result.get("params") or {}).get("end_layer") or "logits"
    return (((result.get("ood") or {}).get(stage) or {}).get(layer) or {}).get("auroc")


def _row(result: dict[str, Any], path: Path) -> dict[str, Any]:
    params, scores, similar = (result.get(key) or {} for key in ("params", "model_results", "m2_sim"))
    similar = {name: similar.get(stage.agreement) or {} for name, stage in COMPARED.items()}
    networks = {role: (result.get("weights") or {}).get(role) or {} for role in ("front", "end")}
    errors = result.get("match_errors") or {}
    fit, controls = (result.get("fits") or {}).get("ps_inv") or {}, result.get("controls") or {}
    numbers = {
        **{f"accuracy_{name}": (scores.get(stage.scores) or {}).get("acc") for name, stage in STAGES.items()},
        **{f"agreement_{stage}": found.get("same_class_out") for stage, found in similar.items()},
        **{f"relative_accuracy_{stage}": found.get("rel_acc") for stage, found in similar.items()},
        **{
            f"{measure}_{name}": result.get(f"{measure}{stage.suffix}")
            for measure in ("cka", "l2", "l2_relative")
            for name, stage in COMPARED.items()
        },
        **{f"published_agreement_{stage}": found.get("published_agreement") for stage, found in similar.items()},
        **{f"robust_accuracy_{name}": (result.get("robust") or {}).get(name) for name in STAGES},
        "iri_relative_error": ((result.get("identical") or {}).get("relative_error") or {}).get("mean"),
        **{
            f"iri_minus_data{end}": ((result.get("identical") or {}).get("minus_data") or {}).get(key)
            for end, key in BOUNDS.items()
        },
        **{f"match_final_{stage}": (errors.get(stage) or {}).get("match_final") for stage in MAPS},
        **{f"accuracy_{name}": (controls.get(name) or {}).get("acc") for name in CONTROLS},
        **{
            f"{verdict}{end}": (result.get(verdict) or {}).get(key)
            for verdict in VERDICTS
            for end, key in BOUNDS.items()
        },
        **{f"ood_auroc_{stage}": _at_the_stitch(result, stage) for stage in MAPS},
        "accuracy_chance": result.get("constant_accuracy"),
        "rows_per_unknown_ps_inv": fit["rows"] / fit["unknowns"] if fit else None,
    }
    return {
        "run": path.parent.name,
        "dataset": params.get("dataset") or networks["front"].get("dataset"),
        "evaluate_on": params.get("evaluate_on"),
        **{name: params.get(name, LATER.get(name)) for name in SETTINGS},
        **{f"{role}_{fact}": facts.get(key) for role, facts in networks.items() for fact, key in NETWORK.items()},
        **{name: math.nan if value is None else float(value) for name, value in numbers.items()},
        "device": (result.get("device") or {}).get("name"),
        "key": result.get("key"),
        "path": str(path),
    }
