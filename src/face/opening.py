"""Networks and results that lie in files, from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from src import results
from src.networks import opening
from src.networks.checkpoints import Checkpoint
from src.networks.source_spec import Named


def open_network(
    spec: str | Path,
    *,
    model: str | None = None,
    dataset: str | None = None,
    size: int | None = None,
    on_message: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """The network that a spec names, as on the command line: a weight file, `timm:NAME@FILE`, `FILE.py:FUNCTION@FILE`.

    Its `network` is the module, on the CPU and in eval mode; `preprocessing` what it does to images, `labels` what it
    decides between, where that is known. model: an architecture, where a plain state dict does not say it. dataset,
    size: whose classes, channels and pixels an untrained one is for. What is named here may run Python files and be
    downloaded, as on the command line. Raises UserError or FileNotFoundError, with one line.
    """
    how: dict[str, Any] = {"dataset": dataset, "size": size, "on_message": on_message}
    return opening.open_network(Named(str(spec)), model=model and Named(model), **how)


def load_results(path: str | Path) -> Any:
    """What the scripts wrote: of a file all that it holds, a dict; of a folder its stitches, a row each.

    The rows are those of `results.table`, with accuracies from 0 to 1, and the path of each file. Nothing of a file
    runs, wherever it is from. Raises FileNotFoundError, or UserError for a file that is no result.
    """
    path = Path(path)
    return results.table(path) if path.is_dir() else results.read(path)
