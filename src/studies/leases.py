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
from pathlib import Path
from typing import Any

from src.core.files import make_folder

PATIENCE = 60.0  # seconds
BEATS = 5  # of the counter, within that time


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
        state = _read(path)
        if state is None:
            self._seen.pop(name, None)
            return True
        now = time.monotonic()
        before, since = self._seen.get(name, (None, now))
        if before != state:
            self._seen[name] = state, now
            since = now
        if now - since < self.patience and not _is_dead(state):
            return False
        self._remove(path, state)
        return _read(path) is None

    def _remove(self, path: Path, state: Any) -> None:
        """Take away an expired lease; of several that try, one succeeds, and a fresh one that came between stays."""
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with suppress(OSError):
            path.rename(aside)
            if _read(aside) != state:
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
                state = _read(path)
                if isinstance(state, dict) and state.get("runner") == self.runner:
                    path.unlink(missing_ok=True)


def _read(path: Path) -> Any:
    """What a lease says; None where there is none. One that was just made may say nothing yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _is_of(path: Path, owner: dict[str, Any]) -> bool:
    state = _read(path)
    return isinstance(state, dict) and state.get("id") == owner["id"]


def _is_dead(state: Any) -> bool:
    """Whether the holder was a process of this machine that is there no more."""
    if not isinstance(state, dict) or state.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(state["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False
