"""Time whole comparisons beside the Gram matrices of their layers alone: python -m benchmarks.compare [case ...]

Commands on all 10,000 validation images of CIFAR-10 and the shipped Tiny10 in0 and in10: wall seconds and peak memory,
medians of --repeats.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.many import NORMS, TINY
from benchmarks.run import command, machine, seconds
from src.metrics.algebra.products import described, times

IMAGES = 10_000
FEATURES = dict(zip(NORMS, (14_400, 12_544, 5_408, 3_872, 2_592, 1_024, 256, 256), strict=True))


@dataclass(frozen=True, slots=True)
class Case:
    """What a command compares, and the layers of whose activations it needs Gram matrices of all images."""

    options: str
    layers: list[str]


CASES = {
    "bn1": Case("bn1 bn1 cifar10 cka l2", ["bn1", "bn1"]),
    "bn5": Case("bn5 bn5 cifar10 cka l2", ["bn5", "bn5"]),
    "grid": Case(f"{','.join(NORMS)} {','.join(NORMS)} cifar10 cka_debiased", NORMS * 2),
    "groups": Case(f"{','.join(NORMS)} {','.join(NORMS)} cifar10 cka_debiased -g 256", []),
}


def compare_nets(options: str) -> tuple[float, float]:
    """Wall seconds and peak GB."""
    with tempfile.TemporaryDirectory() as folder:
        cost = command("compare_nets.py", *TINY, *options.split(), "-o", folder)
    return cost.wall, cost.memory


def products(layers: list[str]) -> float:
    """Seconds of the (images x images) Gram matrices, by the library that the suite multiplies with."""
    total = 0.0
    for layer in layers:
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((IMAGES, FEATURES[layer]), dtype=np.float32))
        total += seconds(lambda x=x: times(x, x))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{machine()}, {described()}")
    print(f"{'compare_nets.py':60} {'s':>7} {'GB':>6} {'Gram matrices, s':>17}")
    for name in args.cases or CASES:
        case = CASES[name]
        runs = [compare_nets(case.options) for _ in range(args.repeats)]
        wall, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        alone = f"{products(case.layers):17.1f}" if case.layers else ""
        print(f"{case.options.replace(','.join(NORMS), 'all8'):60} {wall:7.1f} {memory:6.2f} {alone}", flush=True)


if __name__ == "__main__":
    main()
