"""Time many stitches of one command against the commands one by one: python -m benchmarks.many [--sample N] [case ...]

Whole commands, on two shipped CIFAR-10 networks; the images and both networks are read by each. Of the commands one by
one `--sample` are run, spread over all of them, half of these before and half after the many; their mean stands for the
rest. Where others use the machine, too, set OMP_NUM_THREADS=1 and read the processor's seconds.
"""

import argparse
import tempfile
from dataclasses import dataclass

from benchmarks.run import ROOT, Cost, command, machine

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
    size = len(NORMS)  # in an order in which any few, evenly spread, are early and late ones of both networks
    pairs = [(front, NORMS[(3 * i + j) % size]) for i, front in enumerate(NORMS) for j in range(size)]
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


def stitch(weights: list[str], options: str) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        rest = [*options.split(), "-d", "cifar10", "-o", folder, "--run-name", "r"]
        return command("stitch_nets.py", *weights, *rest)


def row(case: Case, sample: int) -> str:
    step = max(1, len(case.single) // sample)
    chosen = case.single[step // 2 :: step][:sample]
    half = len(chosen) // 2
    before = [stitch(case.weights, options) for options in chosen[:half]]
    many = stitch(case.weights, case.many)
    singles = before + [stitch(case.weights, options) for options in chosen[half:]]
    cells = f"{case.title:40}"
    for together, alone in (
        (many.wall, [one.wall for one in singles]),
        (many.processor, [one.processor for one in singles]),
    ):
        total = sum(alone) / len(alone) * len(case.single)
        cells += f" {together:8.1f} {total:10.1f} {total / together:6.1f}x"
    return f"{cells}   {len(chosen)} of {len(case.single)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(cases()))
    parser.add_argument("--sample", type=int, default=4, help="commands one by one that are really run")
    args = parser.parse_args()
    print(machine())
    print(f"{'':40} {'wall seconds':^27} {'processor seconds':^27}")
    print(f"{'work':40}" + 2 * f" {'many':>8} {'one by one':>10} {'ratio':>7}" + "   timed")
    for name in args.cases or cases():
        print(row(cases()[name], args.sample), flush=True)


if __name__ == "__main__":
    main()
