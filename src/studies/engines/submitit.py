"""Slurm arrays through submitit, a job a bundle; without Slurm, its processes on this machine."""

import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.studies.work import Report, WorkerTask, perform

MAX_JOBS = 1000  # jobs of an array; Slurm usually takes 1001
HOME = Path(__file__).resolve().parents[3]


class Jobs:
    """Tasks as jobs, `options` as submitit's `update_parameters` takes them."""

    def __init__(self, workers: int, *, folder: Path, options: dict[str, Any], **_: Any) -> None:
        try:
            module = importlib.import_module("submitit")
        except ImportError:
            raise UserError("submitit is not installed: pip install submitit") from None
        self._executor = module.AutoExecutor(folder=folder / ".jobs")
        is_slurm = self._executor.cluster == "slurm"
        self.slots = MAX_JOBS if is_slurm else workers
        usual: dict[str, Any] = {"timeout_min": 240}
        usual |= {"slurm_array_parallelism": workers} if is_slurm else {}
        self._executor.update_parameters(**usual | options)
        paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # jobs find our modules from any folder
        self._jobs: list[tuple[Any, WorkerTask]] = []

    @property
    def busy(self) -> int:
        return len(self._jobs)

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        if tasks:
            self._jobs += zip(self._executor.map_array(perform, tasks), tasks, strict=True)

    def wait(self, seconds: float) -> list[Report]:
        end = time.monotonic() + seconds
        while True:
            done = [(job, task) for job, task in self._jobs if job.done()]
            if done or time.monotonic() >= end:
                break
            time.sleep(min(0.5, seconds))
        self._jobs = [one for one in self._jobs if one not in done]
        return [_report(job, task) for job, task in done]

    def stop(self) -> None:
        for job, _ in self._jobs:
            job.cancel()
        self._jobs = []


def _report(job: Any, task: WorkerTask) -> Report:
    try:
        return job.result()
    except Exception as error:  # of kinds of its own; the job's log has more
        return Report(task, trace=f"{type(error).__name__}: {error}", died=True)
