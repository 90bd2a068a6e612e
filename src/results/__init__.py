"""Result files: safe reading, atomic writing, and where each number came from.

A result is a pickle of built-in containers, numpy arrays and pandas frames. Pickles can run code when they are
opened; `read` opens them with an unpickler that knows only the handful of names that results are made of.
"""

import io
import pickle
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from src.files import atomic_write

FORMAT = 1

_BUILTINS = {"builtins": {"slice", "set", "frozenset", "complex", "bytearray"}, "collections": {"OrderedDict"}}
_NUMPY = {"_core.multiarray": {"_reconstruct", "scalar"}, "_core.numeric": {"_frombuffer"}, "": {"ndarray", "dtype"}}
_PANDAS = {
    "pandas": {"DataFrame", "Series", "Index", "RangeIndex", "StringDtype"},
    "pandas.arrays": {"StringArray"},
    "pandas.core.frame": {"DataFrame"},
    "pandas.core.series": {"Series"},
    "pandas.core.indexes.base": {"_new_Index", "Index"},
    "pandas.core.indexes.range": {"RangeIndex"},
    "pandas.core.indexes.numeric": {"Int64Index", "Float64Index"},
    "pandas.core.internals.managers": {"BlockManager", "SingleBlockManager"},
    "pandas.core.internals.blocks": {"new_block"},
    "pandas.core.arrays.string_": {"StringArray", "StringDtype"},
    "pandas._libs.internals": {"_unpickle_block"},
    "pandas._libs.arrays": {"__pyx_unpickle_NDArrayBacked"},
}
_TORCH = {"torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"}, "torch.storage": {"_load_from_bytes"}}
_ALLOWED = _BUILTINS | _PANDAS | _TORCH
for _root in ("numpy", "numpy.core", "numpy._core"):
    for _module, _names in _NUMPY.items():
        suffix = _module.removeprefix("_core.")
        _ALLOWED[f"{_root}.{suffix}" if suffix else _root] = _names


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no result contains")
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        return super().find_class(module, name)


def _load_storage(content: bytes) -> Any:
    """Stands in for torch's own function of this place, which would unpickle anything."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read(path: Path | str) -> Any:
    """Open a result file of this suite, or of the published scripts, without running anything in it.

    Raises FileNotFoundError, or ValueError where the file is damaged or holds what no result holds.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no result file {path}")
    content = path.read_bytes()
    try:
        return _SafeUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a hostile or cut file can make the unpickler raise anything at all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {path} as a result: {reason}") from None


def write(path: Path, result: dict[str, Any], *, overwrite: bool) -> None:
    """Write a result atomically; raises FileExistsError where it exists and `overwrite` is false."""
    with atomic_write(path, overwrite=overwrite) as file:
        pickle.dump({"format": FORMAT, **result}, file, protocol=4)


def run_folder(out_dir: Path, run_name: str | None) -> Path:
    """Make the folder of a run; without a name it gets the local date and time, and is shared with no other run."""
    if run_name:
        folder = out_dir / run_name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    out_dir.mkdir(parents=True, exist_ok=True)
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
