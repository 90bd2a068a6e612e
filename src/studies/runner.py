"""The driver: hands out what is missing, takes down what failed, and ends when nothing is left that could be done."""

import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from src.core.config import MEMORY
from src.studies.estimate import in_words
from src.studies.jobs import Bundle
from src.studies.leases import PATIENCE, Leases
from src.studies.plan import StudyPlan
from src.studies.store import Failure, Store
from src.studies.work import Report, WorkerTask

PAUSE = 0.5  # seconds between looks at what others hold


@dataclass(frozen=True, slots=True)
class Options:
    """How a study is run: attempts at a result beside the first, seconds until a silent holder is given up."""

    retries: int = 2
    patience: float = PATIENCE
    device: str = "auto"
    memory: float = MEMORY


@dataclass(slots=True)
class Driver:
    """One run over the bundles of a plan."""

    plan: StudyPlan
    store: Store
    engine: Any
    options: Options
    on_message: Callable[[str], None]
    runner: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    _told: set[str] = field(default_factory=set)
    _died: dict[str, list[int]] = field(default_factory=dict)  # bundle -> its states when its process died

    def run(self, bundles: list[Bundle] | None = None) -> dict[str, Failure]:
        """Do all bundles, or some of them; returns what failed for good."""
        waiting = deque(self.plan.bundles if bundles is None else bundles)
        leases = Leases(self.store.leases, runner=self.runner, patience=self.options.patience)
        progress = _Progress(self.plan, self.store, self.on_message)
        with _ending(self.engine, leases):
            while True:
                started = self._hand_out(waiting, leases)
                if not self.engine.busy and not waiting:
                    break
                reports = self.engine.wait(PAUSE if waiting and not started else 10 * PAUSE)
                for report in reports:
                    self._take(report, waiting)
                progress.show(bool(reports))
        names = set(self.plan.names)
        if names <= self.store.done():
            self.store.tidy()
        return {name: failure for name, failure in self.store.failures().items() if name in names}

    def _hand_out(self, waiting: deque[Bundle], leases: Leases) -> bool:
        """Start what is missing and free, as far as there is room; what others hold goes to the end of the line."""
        room = self.engine.slots - self.engine.busy
        if not waiting or room <= 0:
            return False
        settled = self.store.done() | self._given_up()
        tasks = []
        for _ in range(len(waiting)):
            bundle = waiting.popleft()
            rest = bundle.without(settled)
            if not rest.items:
                continue
            if len(tasks) == room or not leases.is_free(rest.name):
                waiting.append(bundle)
                continue
            options = self.options
            tasks.append(
                WorkerTask(rest, self.store.folder, self.runner, options.patience, options.device, options.memory)
            )
        self.engine.start(tasks)
        return bool(tasks)

    def _given_up(self) -> set[str]:
        return {name for name, failure in self.store.failures().items() if failure.count > self.options.retries}

    def _take(self, report: Report, waiting: deque[Bundle]) -> None:
        """What failed is noted and comes again until its attempts are spent; many that fail at once come in halves.

        A process that died, as when a cluster takes back its machine, says nothing of the results: its bundle goes on.
        """
        bundle = report.task.bundle
        for line in report.notes:
            if line not in self._told:
                self._told.add(line)
                self.on_message(line)
        about = {item.name: describe(bundle, item.spec) for item in bundle.items}
        for name, reason in report.diverged.items():
            self.store.fail(name, reason, about[name])
        rest = bundle.without(self.store.done())
        if report.died and len(rest.items) > 1 and self._got_further(bundle):
            waiting.append(rest)
            return
        if report.trace and len(rest.items) > 1:
            last = report.trace.strip().splitlines()[-1]
            self.on_message(f"{len(rest.items)} results failed together and are tried in halves: {last}")
            waiting.extend(rest.halves())
            return
        if report.trace and rest.items:
            self.store.fail(rest.items[0].name, report.trace, about[rest.items[0].name])
        if rest.items:
            waiting.append(rest)

    def _got_further(self, bundle: Bundle) -> bool:
        """Whether a bundle whose process died is to go on as it was: the first time, and where it has learnt since."""
        states = sorted(file.stat().st_mtime_ns for file in self.store.states(bundle.name).glob("*.pt"))
        before, self._died[bundle.name] = self._died.get(bundle.name), states
        return before != states


def describe(bundle: Bundle, spec: Any) -> str:
    """A result in a line: which networks, layers and seed."""
    if bundle.is_comparison:
        return f"{bundle.pair[0]} and {bundle.pair[1]}: {', '.join(spec.metrics)}"
    settings = f"init {spec.init}, mask {spec.mask}, rank {spec.low_rank or 'full'}, lr {spec.lr:g}, seed {spec.seed}"
    return f"{bundle.pair[0]} {spec.front_layer} -> {bundle.pair[1]} {spec.end_layer} ({settings})"


@contextmanager
def _ending(engine: Any, leases: Leases) -> Iterator[None]:
    """Whatever ends a run ends its processes, and gives back what they held; results stay."""
    try:
        yield
    finally:
        engine.stop()
        leases.release_all()


class _Progress:
    """A line on how far it is, when it changed."""

    def __init__(self, plan: StudyPlan, store: Store, on_message: Callable[[str], None]) -> None:
        self.names, self.store, self.on_message = plan.names, store, on_message
        self.start, self.first = time.monotonic(), self._count()
        self.last = self.first

    def _count(self) -> int:
        return len(self.store.done().intersection(self.names))

    def show(self, changed: bool) -> None:
        if not changed or (count := self._count()) == self.last:
            return
        self.last = count
        left, rate = len(self.names) - count, (time.monotonic() - self.start) / (count - self.first)
        self.on_message(
            f"{count} of {len(self.names)} results" + (f", about {in_words(left * rate)} left" if left else "")
        )


def shard(plan: StudyPlan, number: int, of: int) -> list[Bundle]:
    """Every `of`-th bundle from the `number`-th on, counted from 1."""
    return plan.bundles[number - 1 :: of]
