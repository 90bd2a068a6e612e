"""Result files are read without running anything in them, and written whole or not at all."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from src.core.errors import UserError
from src.core.files import atomic_write, read_bytes
from src.core.text import in_line
from src.results.reader import parse
from src.results.schema import check_result

FORMAT = 1


def read(path: Path | str) -> Any:
    """Open a result file of this suite, or of the published scripts, without running anything in it.

    Raises FileNotFoundError, or UserError where the file is damaged or holds what no result holds.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no result file {path}")
    try:
        result = parse(read_bytes(path))
        check_result(result)
    except OSError:
        raise
    except Exception as error:  # a hostile or cut file can raise anything at all
        reason = in_line(str(error)) if isinstance(error, ValueError) else "it is damaged"
        raise UserError(f"cannot read {path} as a result: {reason}") from None
    written_as = result.get("format", FORMAT) if isinstance(result, dict) else FORMAT
    if not isinstance(written_as, int) or written_as != FORMAT:
        raise UserError(f"{path} has another format than {FORMAT}, the one that this version reads")
    return result


def write(path: Path, result: dict[str, Any], *, overwrite: bool) -> None:
    """Write a result atomically; raises FileExistsError where it exists and `overwrite` is false."""
    with atomic_write(path, overwrite=overwrite) as file:
        pickle.dump(_portable(result | {"format": FORMAT}), file, protocol=4)


def _portable(value: Any) -> Any:
    """The same with frames whose texts are plain objects: pandas' own kinds of text vary with its version.

    Equal texts become one object, as which pickle writes them, so that equal results are equal bytes.
    """
    if isinstance(value, dict):
        return {_portable(key): _portable(part) for key, part in value.items()}
    if type(value) is str:
        return sys.intern(value)
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
