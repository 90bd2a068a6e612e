"""A file of activations larger than the memory, compared: python -m benchmarks.big_file [--gb 20] [--folder DIR]

The file is sparse: it takes few blocks of the disk, and reads as so many numbers. Each line is a process of its own; GB
is its peak, the pages of the file that it has read among it. It is held against a small file of as many images.
"""

import argparse
import contextlib
import io
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import compare_nets
from benchmarks.run import machine, peak_bytes, seconds

MANY, WIDE = "many images", "wide rows"
# by name: features of an image, and what is asked
CASES = {
    MANY: (256, ["cka", "cka_debiased", "-b", "4096"]),
    WIDE: (1_000_000, ["cka", "-g", "256"]),
}
OWN = 4  # features of the small file
FILLED = 500  # batches of rows that hold numbers; the others are zeros, which no disk block stands for


def write_sparse(path: Path, images: int, features: int) -> None:
    """A .npy (images, features) of float32 in which evenly spread rows hold normal numbers, and all others zeros."""
    with path.open("wb") as file:
        about = {"descr": "<f4", "fortran_order": False, "shape": (images, features)}
        np.lib.format.write_array_header_1_0(file, about)
        head, random = file.tell(), np.random.default_rng(0)
        step = max(1, images // FILLED)
        for image in range(0, images, step):
            file.seek(head + 4 * features * image)
            file.write(random.normal(size=min(features, 4096)).astype("<f4").tobytes())
        file.truncate(head + 4 * features * images)


def run_case(name: str, size: float, folder: Path) -> None:
    """Make the files of a case, compare them, and print what that took."""
    features, asked = CASES[name]
    images = math.ceil(size / (4 * features))
    big, small = folder / "big.npy", folder / "small.npy"
    try:
        write_sparse(big, images, features)
        np.save(small, np.random.default_rng(1).standard_normal((images, OWN), dtype=np.float32))
        taken = 512 * sum(file.stat().st_blocks for file in (big, small))
        words = [f"features:{big}", f"features:{small}", "big", "small", "none", *asked, "--no-save"]
        with contextlib.redirect_stdout(io.StringIO()):
            time = seconds(lambda: compare_nets.main(words))
        about = f"{name}: {images:,} x {features:,}, {' '.join(asked)}"
        figures = big.stat().st_size, taken, peak_bytes()
        print(f"{about:56} {time:8.1f}" + "".join(f" {value / 1e9:9.2f}" for value in figures))
    finally:
        for file in (big, small):
            file.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=20.0, help="size of the file (default: 20)")
    parser.add_argument("--folder", type=Path, help="where it is made, and removed again (default: a temporary one)")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_case(args.child, 1e9 * args.gb, args.folder)
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    print(f"{machine()}, {memory:.0f} GB of memory")
    print(f"{'comparison':56} {'s':>8} {'file GB':>9} {'disk GB':>9} {'peak GB':>9}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name in CASES:
            command = [sys.executable, "-m", "benchmarks.big_file", "--child", name, "--gb", str(args.gb)]
            subprocess.run([*command, "--folder", folder], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
