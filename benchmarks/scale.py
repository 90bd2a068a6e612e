"""How time and memory grow with images and with width: python -m benchmarks.scale

Each line is a process of its own. Time is that of the work, GB the peak of the process, and own GB what the work adds
to the peak of reading the images, which always reads all of the training split.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable

from benchmarks.cases import data, init_least_squares, stitch_epoch
from benchmarks.run import machine, peak_bytes, seconds

IMAGES = (10_000, 20_000, 50_000)
WIDTHS = (1, 2, 3, 4)
WIDE_IMAGES = 2_560


def jobs() -> dict[str, Callable[[], object]]:
    """Name -> work; the images are read before the clock runs."""
    found = {f"ps_inv init, tiny10 bn3, {n} images": init_least_squares("tiny10", "bn3", n).suite for n in IMAGES}
    for width in WIDTHS:
        model, layer = f"resnet20_w{width}", "layer2.0.add"
        found[f"stitch epoch, {model} {layer}, {WIDE_IMAGES} images"] = stitch_epoch(model, layer, WIDE_IMAGES).suite
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        for count in (*IMAGES, WIDE_IMAGES):
            if f" {count} images" in args.child:
                data(count)
        before = peak_bytes()
        time = seconds(jobs()[args.child])
        print(f"{time:8.1f} {peak_bytes() / 1e9:8.2f} {(peak_bytes() - before) / 1e9:8.2f}")
        return
    print(machine())
    print(f"{'work':60} {'s':>8} {'GB':>8} {'own GB':>8}")
    for name in jobs():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", "--child", name], capture_output=True, text=True, check=True
        )
        print(f"{name:60} {done.stdout.rstrip()}", flush=True)


if __name__ == "__main__":
    main()
