"""Time the suite against the plain way: python -m benchmarks.run [--repeats N] [case ...]

Both sides run in this process, in turn; a row gives the median time of each, scaled to the whole job, the median of the
ratios, the suite's arithmetic as a share of what float32 products reach here at best, and the peak memory of each side
in a process of its own.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import CASES
from src.metrics.algebra import products

ROOT = Path(__file__).parent.parent


def machine() -> str:
    """The date, and what the figures depend on."""
    names = [line.split(":")[1].strip() for line in _cpu_facts() if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{date.today()}, {processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpu_facts() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []


def matrix_peaks(size: int = 4096, repeats: int = 5) -> dict[str, float]:
    """Best float32 matrix product rates of this machine, in floating point operations a second, by library.

    oneDNN is what torch's convolutions use; one over 1 x 1 positions is a matrix product.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    maps = a.T.reshape(1, size, 64, size // 64).contiguous(memory_format=torch.channels_last)
    ways = {
        "torch": lambda: a @ b,
        "oneDNN": lambda: F.conv2d(maps, b[:, :, None, None]),
        "numpy": lambda: a.numpy() @ b.numpy(),
    }
    return {name: 2 * size**3 / min(seconds(way) for _ in range(repeats)) for name, way in ways.items()}


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Cost(NamedTuple):
    """Of a command: wall seconds, processor seconds of all its threads, peak resident memory in GB."""

    wall: float
    processor: float
    memory: float


# a process begins with the peak memory of the one that it was forked from, so a small one comes between
LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def command(*words: str) -> Cost:
    """What a command of this suite costs; raises RuntimeError where it fails."""
    script = [sys.executable, "-c", LAUNCHER, *words]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(words)}")
    return Cost(*map(float, done.stdout.split()))


def peak_bytes() -> int:
    """Peak resident memory of this process; where /proc does not tell, it may be that of the process that began it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak_memory(case: str, side: str) -> float:
    """Peak resident memory of one side of a case in a process of its own, in GB."""
    command = [sys.executable, "-m", "benchmarks.run", case, "--child", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else float("nan")


def child(case: str, side: str) -> None:
    getattr(CASES[case](), side)()
    print(peak_bytes() / 1e9)


def arithmetic(work) -> float:
    """Floating point operations of the convolutions and matrix products in `work`, which runs once."""
    by_numpy = []

    def multiply(x, y, out, threads) -> None:
        by_numpy.append((1 if x is y else 2) * out.size * x.shape[1])
        original(x, y, out, threads)

    original = products._multiply
    with (
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _in_place_product}) as counter,
        mock.patch.object(products, "_multiply", multiply),
    ):
        work()
    return counter.get_total_flops() + sum(by_numpy)


def _in_place_product(_: torch.Size, a: torch.Size, b: torch.Size, **__: object) -> int:
    return 2 * a[0] * a[1] * b[1]  # torch's own table has the product that makes a new matrix only


def row(name: str, repeats: int, memory: bool, peak: float) -> str:
    case = CASES[name]()
    flops = arithmetic(case.suite)  # a first run, which also pays for the set-up that both sides share
    times = [(seconds(case.suite), seconds(case.plain)) for _ in range(repeats)]
    suite, plain = (statistics.median(column) * case.total / case.images for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    share = flops * case.total / case.images / suite / peak
    cells = f"{case.title:34} {suite:8.1f} {plain:8.1f} {ratio:6.1f}x {share:6.0%}"
    if memory:
        cells += "".join(f" {peak_memory(name, side):7.2f}" for side in ("suite", "plain"))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--child", choices=("suite", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.cases[0], args.child)
    print(machine())
    peaks = matrix_peaks()
    print("float32 products, Gflop/s: " + ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.items()))
    peak = max(peaks.values())
    memory = " suite GB plain GB" * (not args.no_memory)
    print(f"{'work':34} {'suite s':>8} {'plain s':>8} {'ratio':>7} {'peak':>6}{memory}")
    for name in args.cases or CASES:
        print(row(name, args.repeats, not args.no_memory, peak), flush=True)


if __name__ == "__main__":
    main()
