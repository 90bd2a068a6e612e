"""Time the suite against the plain way: python -m benchmarks.run [--repeats N] [case ...]

Both sides run in this process, in turn; a row gives the median time of each, scaled to the whole job, the median of the
ratios, and the peak memory that each side reaches in a process of its own.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date

import torch

from benchmarks.cases import CASES


def matrix_peak(size: int = 2048, repeats: int = 5) -> float:
    """Best float32 matrix product rate of this machine, in floating point operations a second."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = min(seconds(lambda: a @ b) for _ in range(repeats))
    return 2 * size**3 / best


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory(case: str, side: str) -> float:
    """Peak resident memory of one side of a case in a process of its own, in GB."""
    command = [sys.executable, "-m", "benchmarks.run", case, "--child", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else float("nan")


def child(case: str, side: str) -> None:
    getattr(CASES[case](), side)()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def row(name: str, repeats: int, memory: bool) -> str:
    case = CASES[name]()
    case.suite()  # the first run pays for set-up that both sides share
    times = [(seconds(case.suite), seconds(case.plain)) for _ in range(repeats)]
    suite, plain = (statistics.median(column) * case.total / case.images for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    cells = f"{case.title:34} {suite:8.1f} {plain:8.1f} {ratio:6.1f}x"
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
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"float32 matrix peak {matrix_peak() / 1e9:.0f} Gflop/s")
    print(f"{'work':34} {'suite s':>8} {'plain s':>8} {'ratio':>7}" + " suite GB plain GB" * (not args.no_memory))
    for name in args.cases or CASES:
        print(row(name, args.repeats, not args.no_memory), flush=True)


if __name__ == "__main__":
    main()
