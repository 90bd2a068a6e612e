"""How a process of a study ends without a word, and what that says of its work."""

import contextlib
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from src.studies.estimate import size_in_words

# what a program does to itself; any other signal comes from outside
OWN = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP")
NEAR = 0.8  # of the memory that there is, from which on a killed process is likely to have run out of it
LONGEST = 60.0  # seconds between attempts
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a process, in words and, if there was one, by its signal.

    of_work: the work itself is likely to have done it, and to do it again. counts: not where a cluster took back its
    machine and will give another.
    """

    words: str
    signal: int = 0
    of_work: bool = False
    counts: bool = True


def death_of(code: int | None, peak: float = 0.0, others: float = 0.0, limit: float | None = None) -> Death:
    """The death of a process that ended with a code, as Python has it: below 0 for a signal.

    peak: bytes that it held at most. others: bytes that its neighbours hold. limit: bytes that there are for all,
    found out if it is not given.
    """
    if code is None or code >= 0:
        return Death(f"the process ended with exit code {code}", of_work=True)
    name = next((known.name for known in signal.Signals if known == -code), "a signal")
    words = f"the process was killed by {name} (signal {-code})"
    limit = memory_limit() if limit is None else limit
    if name == "SIGKILL" and peak and peak + others >= NEAR * limit:
        held = f"{size_in_words(peak)} held, {size_in_words(peak + others)} with its neighbours, of {{}} in all"
        words += f"; memory is likely to have run out ({held.format(size_in_words(limit))})"
        return Death(words + ": lower --memory, or --workers", 9, of_work=True)
    return Death(words, -code, of_work=name in OWN)


def pause_after(deaths: int) -> float:
    """Seconds until the next attempt after so many deaths in a row without anything gained: 1, 2, 4 and so on."""
    return min(LONGEST, 2.0 ** (deaths - 1)) if deaths else 0.0


def memory_limit() -> float:
    """Bytes that the processes of this container, job or machine may hold together."""
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits += [float(soft)] if soft != resource.RLIM_INFINITY else []
    files = [CGROUPS / "memory" / "memory.limit_in_bytes"]  # of the first version
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":")[2].strip("/")
        folder = CGROUPS / own
        files += [parent / "memory.max" for parent in (folder, *folder.parents) if CGROUPS in (parent, *parent.parents)]
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            limits.append(float(file.read_text()))
    return min(limits)


def held_by(pid: int) -> float:
    """Bytes that a process holds; 0 where that cannot be known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0.0


def reaped(pid: int) -> tuple[int, float] | None:
    """The exit code of a child that has ended, and the bytes that it held at most; None where others have reaped it."""
    try:
        _, status, usage = os.wait4(pid, 0)
    except OSError:
        return None
    return os.waitstatus_to_exitcode(status), 1024.0 * usage.ru_maxrss
