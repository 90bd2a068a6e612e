"""The driver: hands out what is missing, takes down what failed, and ends when nothing is left that could be done."""

import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from src.core.config import MEMORY
from src.evaluation.identical import DATA
from src.stitching import StitchSpec
from src.studies.deaths import Death, pause_after
from src.studies.estimate import in_words
from src.studies.jobs import Bundle
from src.studies.leases import PATIENCE, Leases
from src.studies.plan import StudyPlan
from src.studies.store import Failure, Store
from src.studies.work import Report, WorkerTask

PAUSE = 0.5  # seconds between looks at what others hold


@dataclass(frozen=True, slots=True)
class Options:
    """How a study is run.

    retries: attempts at a result beside the first, in all runs together. deaths: processes that may be ended from
    outside in this run while they are at a result, without its getting further. patience: seconds until a silent
    holder is given up. decoders: processes that decode images, of each worker; None: as many as its machine has it.
    """

    retries: int = 2
    deaths: int = 20
    patience: float = PATIENCE
    device: str = "auto"
    memory: float = MEMORY
    decoders: int | None = None


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
    _deaths: dict[str, int] = field(default_factory=dict)  # result -> deaths in runs before this one
    _ends: dict[str, "_Ends"] = field(default_factory=dict)  # bundle -> how its processes ended

    def run(self, bundles: list[Bundle] | None = None) -> dict[str, Failure]:
        """Do all bundles, or some of them; returns what failed for good."""
        waiting = deque(self.plan.bundles if bundles is None else bundles)
        leases = Leases(self.store.leases, runner=self.runner, patience=self.options.patience)
        progress = _Progress(self.plan, self.store, self.on_message)
        self._deaths = {name: failure.deaths for name, failure in self.store.failures().items()}
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
        done = self.store.done()
        settled, tasks = done | self._given_up(), []
        for _ in range(len(waiting)):
            bundle = waiting.popleft()
            rest = bundle.without(settled)
            if not rest.items:
                continue
            ready = rest.name not in self._ends or time.monotonic() >= self._ends[rest.name].ready
            if len(tasks) == room or not ready or not leases.is_free(rest.name):
                waiting.append(bundle)
                continue
            options = self.options
            tasks.append(
                WorkerTask(
                    self._with_twins(rest, done),
                    self.store.folder,
                    self.runner,
                    options.patience,
                    options.device,
                    options.memory,
                    options.decoders,
                )
            )
        self.engine.start(tasks)
        return bool(tasks)

    def _with_twins(self, rest: Bundle, done: Collection[str]) -> Bundle:
        """What is left of a bundle, and beside stitches of other inputs their twins of the data that are there already.

        These are made again, for what the one reaches minus what the other does is of both, image by image.
        """
        asked = {item.spec.twin for item in rest.items if isinstance(item.spec, StitchSpec)}
        asked -= {item.spec for item in rest.items}
        whole = [bundle for bundle in self.plan.bundles if asked and bundle.pair == rest.pair]
        twins = [item for bundle in whole for item in bundle.items if item.spec in asked and item.name in done]
        return replace(rest, items=(*twins, *rest.items))

    def _given_up(self) -> set[str]:
        most, failures = self.options, self.store.failures()
        failed = {name for name, failure in failures.items() if failure.count > most.retries}
        return failed | {
            name for name, failure in failures.items() if failure.deaths - self._deaths.get(name, 0) > most.deaths
        }

    def _take(self, report: Report, waiting: deque[Bundle]) -> None:
        """What failed is noted and comes again until its attempts are spent; many that fail at once come in halves.

        A process that was ended from outside, as when a cluster takes back its machine, says nothing of the results.
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
        if report.death and not report.death.of_work and rest.items:
            waiting.extend(self._after_death(report.death, rest))
            return
        trace = report.death.words if report.death else report.trace
        if trace and len(rest.items) > 1:
            last = trace.strip().splitlines()[-1]
            self.on_message(f"{len(rest.items)} results failed together and are tried in halves: {last}")
            waiting.extend(rest.halves())
            return
        if trace and rest.items:
            self.store.fail(rest.items[0].name, trace, about[rest.items[0].name])
        if rest.items:
            waiting.append(rest)

    def _after_death(self, death: Death, rest: Bundle) -> list[Bundle]:
        """What comes again of a bundle whose process was ended from outside, after a pause that grows.

        It is no failure of the work. As long as the bundle gets further nothing is counted; else halves of it have a
        better chance, and a result alone is noted, until its deaths are spent.
        """
        ends = self._ends.setdefault(rest.name, _Ends())
        further = ends.note(self._reached(rest)) or not death.counts
        ends.vain = 0 if further else ends.vain + 1
        pause = pause_after(ends.vain)
        ends.ready = time.monotonic() + pause
        again = f", again in {pause:.0f} s" if ends.vain else ""
        self.on_message(f"{death.words}; its work goes on{again}")
        if further:
            return [rest]
        item, *others = rest.items
        if others:
            return rest.halves()
        self.store.died(item.name, death, describe(rest, item.spec))
        return [rest]

    def _reached(self, rest: Bundle) -> tuple[int, ...]:
        """How far a bundle is: results that are missing, and when its states were written."""
        states = self.store.states(rest.name).rglob("*.pt")
        return len(rest.items), *sorted(file.stat().st_mtime_ns for file in states)


@dataclass(slots=True)
class _Ends:
    """How far a bundle was when its process died the last time, how often it died in vain since, when it may go on."""

    reached: tuple[int, ...] | None = None
    vain: int = 0
    ready: float = 0.0

    def note(self, reached: tuple[int, ...]) -> bool:
        """Whether the bundle got further since the last time; the first time it is taken to have."""
        before, self.reached = self.reached, reached
        return before != reached


def describe(bundle: Bundle, spec: Any) -> str:
    """A result in a line: which networks, layers and seed."""
    if bundle.is_comparison:
        on = f" on {spec.on}" * (spec.on != DATA)
        return f"{bundle.pair[0]} and {bundle.pair[1]}: {', '.join(spec.metrics)}{on}"
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
