"""Processes on this machine, or this process itself."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from src.studies.deaths import Death, death_of, held_by, reaped
from src.studies.work import Report, WorkerTask, perform


class Here:
    """This process, one task after the other."""

    slots, shares_cores = 1, False

    def __init__(self) -> None:
        self._tasks: list[WorkerTask] = []

    @property
    def busy(self) -> int:
        return len(self._tasks)

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        self._tasks += tasks

    def wait(self, seconds: float) -> list[Report]:
        if not self._tasks:
            time.sleep(seconds)
            return []
        return [perform(self._tasks.pop())]

    def stop(self) -> None:
        pass


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Connection
    task: WorkerTask | None = None


class Processes:
    """So many processes, started by spawn, each with its share of the threads; one that dies is replaced."""

    shares_cores = True

    def __init__(self, workers: int, **_: Any) -> None:
        self.slots = workers
        self.threads = max(1, torch.get_num_threads() // workers)
        self._workers: dict[int, _Worker] = {}

    @property
    def busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers.values())

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        tasks = list(tasks)
        for number in range(self.slots):
            if not tasks:
                return
            worker = self._workers.get(number)
            if worker is None or worker.task is None:
                self._give(number, tasks.pop(0))

    def _give(self, number: int, task: WorkerTask) -> None:
        if number not in self._workers:
            self._workers[number] = self._spawn(number)
        worker = self._workers[number]
        worker.task = task
        try:
            worker.pipe.send(task)
        except OSError:  # it died while it had nothing to do
            worker.process.join()
            self._workers[number] = self._spawn(number)
            self._give(number, task)

    def _spawn(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.threads, number, os.getpid()))
        # killed workers leave semaphores of tqdm behind, of which Python's own tracker would speak
        quiet = "ignore:resource_tracker"
        with _environment(OMP_NUM_THREADS=str(self.threads), PYTHONWARNINGS=quiet):
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def wait(self, seconds: float) -> list[Report]:
        at_work = {worker.pipe: number for number, worker in self._workers.items() if worker.task}
        if not at_work:
            time.sleep(seconds)
            return []
        reports = []
        for pipe in wait(list(at_work), seconds):
            number = at_work[pipe]  # pyright: ignore[reportArgumentType]
            worker = self._workers[number]
            assert worker.task
            try:
                reports.append(worker.pipe.recv())
            except (EOFError, OSError):
                del self._workers[number]
                reports.append(Report(worker.task, death=self._death_of(worker.process)))
                continue
            worker.task = None
        return reports

    def _death_of(self, process: Any) -> Death:
        """What ended a worker. Its peak is known to who reaps it, which is why that is not left to its `join`."""
        held = sum(held_by(worker.process.pid) for worker in self._workers.values()) + held_by(os.getpid())
        code, peak = reaped(process.pid) or (process.exitcode, 0.0)
        process._popen.returncode = code  # which it can no longer ask for
        process.join()
        return death_of(code, peak, held)

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.pipe.close()  # who waits for a task ends by that
            if worker.task:
                worker.process.kill()  # all that it writes is whole or absent
        for worker in self._workers.values():
            worker.process.join()
        self._workers = {}


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables that processes started within the block inherit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(pipe: Connection, threads: int, number: int, parent: int) -> None:
    """A worker's life: tasks in, reports out, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver ends us
    torch.set_num_threads(threads)
    gpus = torch.cuda.device_count()
    with contextlib.suppress(EOFError, OSError):
        while True:
            task: WorkerTask = pipe.recv()
            if task.device == "auto" and gpus > 1:
                task = replace(task, device=f"cuda:{number % gpus}")
            pipe.send(perform(task, alive=lambda: os.getppid() == parent))
