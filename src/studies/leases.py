"""Who is at which bundle, among processes that share nothing but a folder.

A lease is a small file whose counter its holder keeps increasing. Clocks of different machines are never compared: an
observer takes a lease for expired when the counter has stood still for a while by the observer's own clock. Two may
still do the same work, at the worst; the results' first-come writing makes that harmless.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.core.files import make_folder
from src.core.records import NATURAL, POSITIVE, TEXT, Kind, check, read_json

PATIENCE = 60.0  # seconds
BEATS = 5  # of the counter, within that time
MAX_LEASE = 100_000  # bytes
_PID = Kind("the number of a process", lambda value: POSITIVE.accepts(value) and value < 2**31)
_TABLE = {"runner": TEXT, "host": TEXT, "pid": _PID, "id": TEXT, "count": NATURAL}


@dataclass(frozen=True, slots=True)
class Lease:
    """What the file of a lease says; nothing of it where it is damaged, or was just made."""

    runner: str = ""
    host: str = ""
    pid: int | None = None
    id: str = ""
    count: int | None = None

    @classmethod
    def from_file(cls, path: Path) -> "Lease | None":
        """None where there is no such file."""
        try:
            record = read_json(path, MAX_LEASE)
            check(record, _TABLE)
        except FileNotFoundError:
            return None
        except (OSError, UserError):
            return cls()
        return cls(**{field.name: record[field.name] for field in fields(cls) if field.name in record})

    @property
    def is_dead(self) -> bool:
        """Whether its holder was a process of this machine that is there no more."""
        if self.pid is None or self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


class Leases:
    """Leases in a folder, as one process sees them. `runner` is in the name of all holders of one run."""

    def __init__(self, folder: Path, *, runner: str = "", patience: float = PATIENCE) -> None:
        self.folder, self.patience = folder, patience
        self.runner = runner or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._seen: dict[str, tuple[Any, float]] = {}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.lease"

    def is_free(self, name: str) -> bool:
        """Whether nobody holds a bundle; a lease that has expired is removed."""
        path = self.path(name)
        state = Lease.from_file(path)
        if state is None:
            self._seen.pop(name, None)
            return True
        now = time.monotonic()
        before, since = self._seen.get(name, (None, now))
        if before != state:
            self._seen[name] = state, now
            since = now
        if now - since < self.patience and not state.is_dead:
            return False
        self._remove(path, state)
        return Lease.from_file(path) is None

    def _remove(self, path: Path, state: Any) -> None:
        """Take away an expired lease; of several that try, one succeeds, and a fresh one that came between stays."""
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with suppress(OSError):
            path.rename(aside)
            if Lease.from_file(aside) != state:
                with suppress(OSError):
                    os.link(aside, path)
            aside.unlink()

    @contextmanager
    def held(self, name: str, *, alive: Callable[[], bool] = lambda: True) -> Iterator[bool]:
        """Hold a bundle within the block, its counter kept going by a thread; gives whether that could be had.

        `alive` is asked before each beat; a holder for whom it no longer holds ends at once.
        """
        make_folder(self.folder)
        path = self.path(name)
        # pid: so that on the same machine a killed holder needs no patience
        owner = {"runner": self.runner, "host": socket.gethostname(), "pid": os.getpid(), "id": secrets.token_hex(8)}
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(owner | {"count": 0}))
        except FileExistsError:
            yield False
            return
        stop = threading.Event()
        beating = threading.Thread(target=self._beat, args=(path, owner, stop, alive), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            stop.set()
            beating.join()
            if _is_of(path, owner):
                path.unlink(missing_ok=True)

    def _beat(self, path: Path, owner: dict[str, Any], stop: threading.Event, alive: Callable[[], bool]) -> None:
        count = 0
        while not stop.wait(self.patience / BEATS):
            if not alive():
                path.unlink(missing_ok=True)
                os._exit(1)
            if not _is_of(path, owner):
                return  # somebody thought us dead; what comes of both is the same
            count += 1
            beside = path.with_name(f".{path.name}.{owner['id']}")
            with suppress(OSError):
                beside.write_text(json.dumps(owner | {"count": count}), encoding="utf-8")
                beside.replace(path)

    def release_all(self) -> None:
        """Remove what ended processes of this run held."""
        with suppress(OSError):
            for path in self.folder.glob("*.lease"):
                state = Lease.from_file(path)
                if state and state.runner == self.runner:
                    path.unlink(missing_ok=True)


def _is_of(path: Path, owner: dict[str, Any]) -> bool:
    state = Lease.from_file(path)
    return state is not None and state.id == owner["id"]
