"""python -m tests.fuzz [CASES] [SEED]: spoil so many files, read each in a child, and say what came of them."""

import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from src.core.errors import UserError
from src.core.text import has_controls
from tests.fuzz import seeds
from tests.fuzz.readers import READERS
from tests.fuzz.spoil import SPOILERS, WEIGHTS

SECONDS, BYTES_A_SECOND = 5.0, 20e6  # of the processor, for any file
PATIENCE = 60.0  # seconds by the clock, after which a child is stopped
MEMORY = 3 * 2**30  # bytes beside what the child begins with
BATCH = 20  # cases a child
SAY = "SAY" in os.environ  # print every outcome, with its reason
HARMFUL = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "shutil.rmtree", "pty.spawn")


def case(kind: str, wholes: list[bytes], seed: int) -> bytes:
    """A spoilt file, always the same of the same seed."""
    draw = random.Random(seed)
    return SPOILERS[kind](draw.choice(wholes), draw)


def outcome_of(kind: str, content: bytes, folder: Path) -> str:
    """ "read" or "refused"; anything else is a failure, in words."""
    name, reader = READERS[kind]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    start, outcome = time.process_time(), "read"
    try:
        reader(path)
    except (UserError, OSError, FloatingPointError) as error:
        line = str(error)
        raw = has_controls(line) and not isinstance(error, OSError)  # the system's own shows a name as it is
        outcome = f"no line: {error!r}" if raw else f"refused: {line[:150]}"
    except BaseException:
        outcome = "traceback: " + traceback.format_exc()
    took = time.process_time() - start
    if took > SECONDS + len(content) / BYTES_A_SECOND:
        outcome = f"{took:.1f} s"
    if _harm or Path("executed").exists():
        outcome = f"executed: {_harm}"
    return outcome


_harm: list[str] = []


def _limit() -> None:
    def watch(event: str, arguments: tuple) -> None:
        if event in HARMFUL and arguments[:1] != ("git",):  # which provenance asks
            _harm.append(f"{event} {str(arguments)[:200]}")

    sys.addaudithook(watch)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_batch(batch: list[tuple[str, int]], wholes: dict[str, list[bytes]], home: Path) -> list[str]:
    """The outcomes of cases read in a child; where it dies or hangs, those up to then, and that."""
    incoming, outgoing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(incoming)
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        contents = [case(kind, wholes[kind], seed) for kind, seed in batch]
        _limit()
        for (kind, seed), content in zip(batch, contents, strict=True):
            folder = home / f"{os.getpid()}-{seed}"
            folder.mkdir()
            line = outcome_of(kind, content, folder).replace("\n", "\x00")
            os.write(outgoing, (line.encode("utf-8", "backslashreplace")[-3000:] + b"\n"))
            shutil.rmtree(folder, ignore_errors=True)
            _harm.clear()
        os._exit(0)
    os.close(outgoing)
    found, rest, deadline = [], b"", time.monotonic() + PATIENCE
    os.set_blocking(incoming, False)
    while True:
        try:
            more = os.read(incoming, 65536)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
            continue
        if not more:
            break
        rest += more
        deadline = time.monotonic() + PATIENCE
    os.close(incoming)
    _, status = os.waitpid(child, 0)
    found = [line.replace("\x00", "\n") for line in rest.decode().split("\n")[:-1]]
    if len(found) < len(batch):
        found.append(f"died: status {os.waitstatus_to_exitcode(status)}")
    return found


def fuzz(count: int, seed: int, home: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """How many cases of a kind were read and refused; and what failed, in words, with what makes it again."""
    seeds.register()
    torch.set_num_threads(1)
    wholes = seeds.make(home)
    draw, outcomes, failures = random.Random(seed), Counter(), []
    kinds = [kind for kind in WEIGHTS if kind in wholes]
    todo = [
        (draw.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0], seed * 10**9 + number) for number in range(count)
    ]
    for kind, contents in wholes.items():  # whole ones are read; and what that imports, children have then
        for number, content in enumerate(contents):
            folder = home / f"{kind}-{number}"
            folder.mkdir()
            if (outcome := outcome_of(kind, content, folder)) != "read":
                failures.append(f"a whole file, {kind} {number}: {outcome}")
                print(failures[-1], file=sys.stderr, flush=True)
    while todo:
        batch, found = todo[:BATCH], run_batch(todo[:BATCH], wholes, home)
        todo[: len(found)] = []
        for (kind, number), outcome in zip(batch, found, strict=False):
            word = outcome.partition(":")[0]
            good = word in ("read", "refused")
            outcomes[kind, word if good else "failed"] += 1
            if not good or SAY:
                print(f"{kind} {number}: {outcome}", file=sys.stderr, flush=True)
            if not good:
                failures.append(f"{kind} {number}: {outcome}")
    return outcomes, failures


def main(argv: list[str]) -> int:
    count, seed = (*map(int, argv), *(1000, 0)[len(argv) :])
    with tempfile.TemporaryDirectory() as home:
        start = time.monotonic()
        outcomes, failures = fuzz(count, seed, Path(home).resolve())
        os.chdir("/")
    for kind in sorted({kind for kind, _ in outcomes}):
        print(f"{kind:14}" + "".join(f"{what} {outcomes[kind, what]:6} " for what in ("read", "refused", "failed")))
    kinds = {
        "traceback": "tracebacks",
        "executed": "executions",
        "died": "dead children",
        "no line": "of several lines",
    }
    words = [line.partition(": ")[2] for line in failures]
    counts = {said: sum(word.startswith(kind) for word in words) for kind, said in kinds.items()}
    counts["over the limit of time"] = sum(bool(re.match(r"[\d.]+ s$", word)) for word in words)
    print(", ".join(f"{number} {said}" for said, number in counts.items()))
    print(f"{count} cases of seed {seed} in {time.monotonic() - start:.0f} s: {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
