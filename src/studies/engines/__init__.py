"""Where bundles run: one small interface, and a line for each engine."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from src.core.config import usable_cores
from src.studies.engines import local, ray, submitit
from src.studies.work import Report, WorkerTask


class Engine(Protocol):
    """Runs tasks; `slots` is how many at once. Every task that was started is reported once.

    shares_cores: whether those that run at once share the cores of this machine.
    """

    slots: int
    shares_cores: bool

    @property
    def busy(self) -> int:
        """How many tasks are started and not yet reported."""
        ...

    def start(self, tasks: Sequence[WorkerTask]) -> None: ...

    def wait(self, seconds: float) -> list[Report]:
        """What came in, after that many seconds at the latest."""
        ...

    def stop(self) -> None:
        """End whatever runs."""
        ...


ENGINES: dict[str, Callable[..., Any]] = {
    "local": local.Processes,
    "submitit": submitit.Jobs,
    "ray": ray.Cluster,
}


def choose_workers(asked: int | None, bundles: int, gpus: int) -> int:
    """Processes at once: as many as asked for, else one a GPU or, without one, a core; never more than bundles."""
    return max(1, min(asked or gpus or usable_cores(), bundles))
