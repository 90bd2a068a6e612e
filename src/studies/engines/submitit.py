"""Slurm arrays through submitit, a job a bundle; without Slurm, its processes on this machine."""

import importlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.core.config import gpu_numbers
from src.core.errors import UserError
from src.core.text import in_line
from src.studies.deaths import Death
from src.studies.engines import slurm
from src.studies.leases import PATIENCE, Leases
from src.studies.store import Store
from src.studies.work import Report, WorkerTask, perform

MAX_JOBS = 1000  # jobs of an array; Slurm usually takes 1001
HOME = Path(__file__).resolve().parents[3]


class Jobs:
    """Tasks as jobs, `options` as submitit's `update_parameters` takes them.

    patience: seconds after which a job of Slurm that has started and shows no life is given up; queued ones are waited
    for.
    """

    def __init__(self, workers: int, *, folder: Path, options: dict[str, Any], patience: float = PATIENCE) -> None:
        try:
            module = importlib.import_module("submitit")
        except ImportError:
            raise UserError("submitit is not installed: pip install submitit") from None
        self._executor = module.AutoExecutor(folder=folder / ".jobs")
        self._is_slurm = self._executor.cluster == "slurm"
        self.slots = MAX_JOBS if self._is_slurm else workers
        self.shares_cores = not self._is_slurm
        self._gpus = [] if self._is_slurm else gpu_numbers()
        usual: dict[str, Any] = {"timeout_min": 240}
        usual |= {"gpus_per_node": max(self._gpus) + 1} if self._gpus else {}  # else submitit hides all of them
        usual |= {"slurm_array_parallelism": workers} if self._is_slurm else {}
        try:
            self._executor.update_parameters(**usual | options)
        except (ValueError, TypeError, NameError, AssertionError) as error:  # of submitit, on what it does not know
            raise UserError(f"[submitit]: {in_line(str(error))}") from None
        paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # jobs find our modules from any folder
        self._jobs: list[tuple[Any, WorkerTask]] = []
        self._refused: list[Report] = []
        self._leases, self._watch = Leases(Store(folder).leases), slurm.Watch(patience)

    @property
    def busy(self) -> int:
        return len(self._jobs) + len(self._refused)

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        """Send tasks; where Slurm takes no more beside those that are there, they come back, and wait until it does.

        Raises UserError, in sbatch's own words, where it takes none at all.
        """
        if not tasks:
            return
        tasks = self._placed(tasks)
        try:
            self._jobs += zip(self._executor.map_array(perform, tasks), tasks, strict=True)
        except Exception as error:
            if not self._is_slurm or type(error).__name__ not in ("FailedJobError", "FailedSubmissionError"):
                raise
            if not self._jobs:
                raise UserError(f"sbatch refuses: {in_line(slurm.refusal(error))}") from None
            self.slots = len(self._jobs)  # as many as it took
            self._refused += [Report(task, held=True) for task in tasks]

    def _placed(self, tasks: Sequence[WorkerTask]) -> list[WorkerTask]:
        """The tasks, each on the GPU that has the fewest: without Slurm nobody but us gives them out."""
        taken, placed = Counter(task.device for _, task in self._jobs), []
        for task in tasks:
            if self._gpus and task.device in ("auto", "cuda"):
                task = replace(task, device=min((f"cuda:{gpu}" for gpu in self._gpus), key=lambda gpu: taken[gpu]))
                taken[task.device] += 1
            placed.append(task)
        return placed

    def wait(self, seconds: float) -> list[Report]:
        end = time.monotonic() + seconds
        while True:
            reports, self._refused = self._refused, []
            reports += [self._report(job, task) for job, task in self._jobs if job.done()]
            reports += self._dead({report.task.bundle.name for report in reports})
            if reports or time.monotonic() >= end:
                break
            time.sleep(min(0.5, seconds))
        told = {id(report.task) for report in reports}
        self._jobs = [(job, task) for job, task in self._jobs if id(task) not in told]
        return reports

    def _report(self, job: Any, task: WorkerTask) -> Report:
        try:
            return replace(job.result(), task=task)
        except Exception as error:  # of kinds of its own; the job's log has more
            death = slurm.ending_of(job.job_id) if self._is_slurm else None
            return Report(task, death=death or Death(f"job {job.job_id}: {in_line(str(error))}"))

    def _dead(self, done: set[str]) -> list[Report]:
        """Jobs that will never say anything; cancelled, so that a silent one does not go on beside the next."""
        if not self._is_slurm:
            return []
        jobs = {job.job_id: (job, task) for job, task in self._jobs if task.bundle.name not in done}
        dead = self._watch.dead({name: self._sign(*pair) for name, pair in jobs.items()})
        for name in dead:
            jobs[name][0].cancel(check=False)
        return [Report(jobs[name][1], death=death) for name, death in dead.items()]

    def _sign(self, job: Any, task: WorkerTask) -> Any:
        return slurm.sign_of([self._leases.path(task.bundle.name), job.paths.stdout, job.paths.stderr])

    def stop(self) -> None:
        for job, _ in self._jobs:
            job.cancel(check=False)
        self._jobs, self._refused = [], []
