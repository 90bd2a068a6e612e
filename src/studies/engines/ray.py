"""Tasks on a cluster of ray: that of RAY_ADDRESS, or a new one on this machine."""

import importlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from src.core.errors import UserError
from src.studies.deaths import Death
from src.studies.images import Arrays, arrays_of, hand_over
from src.studies.jobs import Bundle
from src.studies.work import Report, WorkerTask, perform

HOME = Path(__file__).resolve().parents[3]


class Cluster:
    """Tasks as ray's remote calls, each with its share of the cores and, where there are some, a GPU.

    Images that are held in memory are read here and put into ray's store, from which all processes of a machine have
    them without a copy.
    """

    shares_cores = False

    def __init__(self, workers: int, **_: Any) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise UserError("ray is not installed: pip install ray") from None
        self.slots = workers
        threads = max(1, torch.get_num_threads() // workers)
        path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
        variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        there = os.environ.get("RAY_ADDRESS")
        size = {} if there else {"num_cpus": workers, "include_dashboard": False}
        self._ray.init(address=there, runtime_env={"env_vars": variables}, log_to_driver=False, **size)
        gpu = {"num_gpus": 1} if self._ray.cluster_resources().get("GPU") else {}
        self._perform = self._ray.remote(num_cpus=1, max_retries=0, **gpu)(_perform)
        self._tasks: dict[Any, WorkerTask] = {}
        self._images: dict[tuple[str, str], Any] = {}  # of a pair of networks: where they are in the store
        self._put: dict[frozenset, Any] = {}

    @property
    def busy(self) -> int:
        return len(self._tasks)

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        for task in tasks:
            self._tasks[self._perform.remote(task, self._stored(task.bundle))] = task

    def _stored(self, bundle: Bundle) -> Any:
        """A reference to a bundle's images; what is the same for several pairs of networks is in the store once."""
        if bundle.pair not in self._images:
            arrays: Arrays = {}
            with suppress(ValueError, OSError):  # the task will tell
                arrays = arrays_of(bundle)
            kind = frozenset(arrays)
            if kind not in self._put:
                self._put[kind] = self._ray.put(arrays)
            self._images[bundle.pair] = self._put[kind]
        return self._images[bundle.pair]

    def wait(self, seconds: float) -> list[Report]:
        if not self._tasks:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        return [self._report(reference) for reference in done]

    def _report(self, reference: Any) -> Report:
        task = self._tasks.pop(reference)
        try:
            return self._ray.get(reference)
        except Exception as error:  # of kinds of its own: a worker that died, a node that left
            words = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            return Report(task, death=Death(words, of_work="OutOfMemory" in type(error).__name__))

    def stop(self) -> None:
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks, self._images, self._put = {}, {}, {}
        self._ray.shutdown()


def _perform(task: WorkerTask, arrays: Arrays) -> Report:
    """In a process of the cluster; ray hands over what the reference stood for."""
    hand_over(arrays)
    return perform(task)
