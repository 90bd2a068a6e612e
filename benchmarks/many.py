"""Time many stitches of one command against the commands one by one: python -m benchmarks.many [--sample N] [case ...]

Whole commands, on the shipped CIFAR-10 networks; the images and both networks are read by each. Of the commands one by
one `--sample` are run, spread over all of them, before and after the many in turn, and their mean stands for the rest.
"""

import argparse
import itertools
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.run import machine, seconds

ROOT = Path(__file__).parent.parent
TINY = [f"model_weights/Tiny10/CIFAR10/in{seed}-gn{seed}/110000.pt" for seed in (0, 10)]
RESNET = [f"model_weights/ResNet20_w1/CIFAR10/in{seed}-gn{seed}" for seed in (0, 1)]
NORMS = [f"bn{number}" for number in range(1, 9)]
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]


@dataclass(frozen=True, slots=True)
class Case:
    """Layers and options of one command for many stitches, and those of the commands one by one."""

    title: str
    weights: list[str]
    many: str
    single: list[str]


def cases() -> dict[str, Case]:
    pairs = list(itertools.product(NORMS, NORMS))
    ours = [str(next((ROOT / folder).glob("*.pt"))) for folder in RESNET]
    fitted, lean = "--resize -e 0 -i ps_inv", "--resize -e 0 -i ps_inv --no-similarity"
    trained = "-i ps_inv -e 1"
    names, blocks = ",".join(NORMS), ",".join(BLOCKS)
    return {
        "map": Case("8 x 8 map", TINY, f"{names} {names} {lean}", [f"{a} {b} {lean}" for a, b in pairs]),
        "similar": Case(
            "8 x 8 map with CKA", TINY, f"{names} {names} {fitted}", [f"{a} {b} {fitted}" for a, b in pairs]
        ),
        "zip": Case(
            "8 layers zipped, 1 epoch",
            TINY,
            f"{names} {names} --pairs zip {trained}",
            [f"{name} {name} {trained}" for name in NORMS],
        ),
        "seeds": Case(
            "5 seeds at bn5, 1 epoch",
            TINY,
            f"bn5 bn5 --seed 0,1,2,3,4 {trained}",
            [f"bn5 bn5 --seed {seed} {trained}" for seed in range(5)],
        ),
        "blocks": Case(
            "ResNet20_w1, 9 blocks zipped, 1 epoch",
            ours,
            f"{blocks} {blocks} --pairs zip {trained}",
            [f"{name} {name} {trained}" for name in BLOCKS],
        ),
    }


def stitch(weights: list[str], options: str) -> float:
    """Seconds of one command."""
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, str(ROOT / "stitch_nets.py")]
        command = [*script, *weights, *shlex.split(options), "-d", "cifar10", "-o", folder, "--run-name", "r"]
        return seconds(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, check=True))


def row(case: Case, sample: int) -> str:
    step = max(1, len(case.single) // sample)
    chosen = case.single[step // 2 :: step][:sample]
    half = len(chosen) // 2
    before = [stitch(case.weights, options) for options in chosen[:half]]
    many = stitch(case.weights, case.many)
    after = [stitch(case.weights, options) for options in chosen[half:]]
    alone = sum(before + after) / len(chosen) * len(case.single)
    return f"{case.title:40} {many:8.1f} {alone:10.1f} {alone / many:6.1f}x   {len(chosen)} of {len(case.single)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(cases()))
    parser.add_argument("--sample", type=int, default=4, help="commands one by one that are really run")
    args = parser.parse_args()
    print(machine())
    print(f"{'work':40} {'many s':>8} {'one by one':>10} {'ratio':>7}   timed")
    for name in args.cases or cases():
        print(row(cases()[name], args.sample), flush=True)


if __name__ == "__main__":
    main()
