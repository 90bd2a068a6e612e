"""What Slurm says of jobs: which are queued, which run, and how one ended."""

import getpass
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.studies.deaths import Death, death_of

ASK = 5.0  # seconds between questions to squeue
GONE = 3  # of them that do not know a job, after which it is gone; a job that was just sent may be unknown for a while
# states of jobs whose machine was taken back, and which go on elsewhere, or will
TAKEN_BACK = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REQUEUED", "REVOKED", "RESIZING")
QUEUED = ("PENDING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD")


@dataclass(slots=True)
class _Seen:
    """What was seen of a job: its last sign of life, when that changed, and how often nobody knew it."""

    sign: Any = None
    since: float = 0.0
    unknown: int = 0


@dataclass(slots=True)
class Watch:
    """Looks after jobs that have not ended in a word, and says which have died, and of what.

    patience: seconds after which a job that has started and shows no life is given up.
    """

    patience: float
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _asked: float = 0.0

    def dead(self, signs: Mapping[str, Any]) -> dict[str, Death]:
        """The deaths among jobs, given a sign of life of each: whatever changes as long as it lives, None before it
        has started."""
        if time.monotonic() < self._asked + min(ASK, self.patience / 2):
            return {}
        self._asked, states = time.monotonic(), states_of_jobs()
        found = {job: death for job, sign in signs.items() if (death := self._look(job, sign, states))}
        self._seen = {job: seen for job, seen in self._seen.items() if job in signs and job not in found}
        return found

    def _look(self, job: str, sign: Any, states: dict[str, str] | None) -> Death | None:
        now = time.monotonic()
        seen = self._seen.setdefault(job, _Seen(sign, now))
        state = None if states is None else states.get(job, "")
        queued = state in QUEUED or bool(state and state.startswith("REQUEUE"))
        if sign != seen.sign or queued or (state is None and sign is None):
            seen.sign, seen.since = sign, now
        seen.unknown = seen.unknown + 1 if state == "" else 0
        if seen.unknown >= GONE:
            return ending_of(job) or Death(f"job {job} is gone: squeue no longer knows it")
        if now - seen.since >= self.patience:
            return Death(f"job {job} has started, and shown no life for {self.patience:g} s")
        return None


def states_of_jobs() -> dict[str, str] | None:
    """The state of each of the user's jobs that squeue knows, those of arrays by `JOB_NUMBER`; None where it fails."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i %T"]
    lines = _said(command)
    if lines is None:
        return None
    return dict(line.split(None, 1) for line in lines if len(line.split(None, 1)) == 2)


def ending_of(job: str) -> Death | None:
    """How a job ended by sacct, which many clusters do not have."""
    lines = _said(["sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job, "--format", "State,ExitCode"])
    if not lines or "|" not in lines[-1]:
        return None
    state, _, code = lines[-1].partition("|")
    state = state.split()[0] if state.split() else ""  # "CANCELLED by 1000"
    words = f"job {job} ended as {state}"
    if state in TAKEN_BACK:
        return Death(words, counts=False)
    if state == "OUT_OF_MEMORY":
        return Death(f"{words}: ask for more memory in [submitit], or lower --memory", of_work=True)
    if state == "FAILED" and (match := re.fullmatch(r"(\d+):(\d+)", code)):
        number = int(match[2]) or (int(match[1]) - 128 if int(match[1]) > 128 else 0)
        death = death_of(-number if number else int(match[1]))
        return Death(f"{words}: {death.words}", death.signal, death.of_work)
    return Death(words)


def _said(command: list[str]) -> list[str] | None:
    """The lines that a command prints; None where there is none, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip().splitlines()


def refusal(error: Exception) -> str:
    """What sbatch said when it refused a job, in its own words and one line."""
    texts = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [text.removeprefix("sbatch: ").removeprefix("error: ") for text in texts if text.startswith("sbatch: error:")]
    return "; ".join(own or texts[-1:]) or type(error).__name__


def sign_of(paths: list[Path]) -> Any:
    """What changes while somebody writes to some of these files; None where there is none."""
    stamps = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        stamps.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(stamps) or None
