"""What the passes of a comparison have come to, kept beside its result until that is there."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.tensor_files import parse_tensors, write_tensors
from src.metrics.engine.grid import Grid
from src.metrics.engine.kept import encoded, found_of, gathered, gathered_bytes, restore

DEAR = 50  # times as long as a state takes to be written, work goes on before the next one
RATE = 2e8  # bytes that are written in a second, as long as nobody has seen it


@dataclass(frozen=True, slots=True)
class Keep:
    """Where states of passes are kept, what comparison they are of, and how many seconds apart at least.

    None is written that would cost more than a fiftieth of the time.
    """

    folder: Path
    identity: dict[str, Any]
    every: float = 0.0

    def of(self, number: int, **about: Any) -> "KeptPass":
        """The states of one pass, the `number`-th."""
        return KeptPass(self, self.folder / f"pass-{number}", self.identity | about)


class KeptPass:
    """The states of one pass, in two files: what was gathered of the images, and what was found in it.

    Values that were found are small, and stay valid whoever gathers again; what was gathered may be large.
    """

    def __init__(self, keep: Keep, stem: Path, identity: dict[str, Any]) -> None:
        self._every, self._identity = keep.every, identity
        self.gathered, self.found = (stem.with_name(f"{stem.name}-{what}.pt") for what in ("gathered", "found"))
        self._rate, self._due = RATE, time.monotonic() + keep.every
        self._since = time.monotonic()  # of the last state of what was gathered

    def begin(self, grid: Grid) -> None:
        """Give a fresh grid what is kept; damaged states, and those of another comparison, count as none."""
        if found := self._read(self.found, lambda record: found_of(record["found"])):
            grid.found = found
        if len(grid.known_cells) < len(grid.plan.cells):
            self._read(self.gathered, lambda record: restore(grid, record))

    def _read(self, path: Path, take: Callable[[dict[str, Any]], Any]) -> Any:
        try:
            record = parse_tensors(path.read_bytes())
            if record["identity"] == self._identity:
                return take(record)
        except FileNotFoundError:
            pass
        except Exception:  # of any kind, by what is wrong in it; nothing of it was taken
            path.unlink(missing_ok=True)
        return None

    def keep_gathered(self, grid: Grid) -> None:
        """After a batch: write what was gathered, if it is time, and cheap enough."""
        now = time.monotonic()
        if now < self._due or DEAR * gathered_bytes(grid) / self._rate > now - self._since:
            return
        size = gathered_bytes(grid)
        took = self._write(self.gathered, gathered(grid))
        self._rate = max(size, 1) / max(took, 1e-6)
        self._since = time.monotonic()

    def keep_found(self, grid: Grid, *, last: bool = False) -> None:
        """After something was found: write all that was, if it is time; `last`: nothing more will be."""
        if last:
            self.gathered.unlink(missing_ok=True)
        if last or time.monotonic() >= self._due:
            self._write(self.found, {"found": encoded(grid.found)})

    def _write(self, path: Path, record: dict[str, Any]) -> float:
        start = time.monotonic()
        write_tensors(path, record | {"identity": self._identity})
        took = time.monotonic() - start
        self._due = time.monotonic() + max(self._every, DEAR * took)
        return took
