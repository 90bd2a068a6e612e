"""How fast faces are read from their files: python -m benchmarks.reader

Images a second of CelebA's training split, decoded, resized, cropped and normalised, by number of worker processes.
"""

import statistics
import time
import warnings

import torch

from benchmarks.run import machine
from src.dataset import load_split

WORKERS, REPEATS, BATCH = (0, 1, 2), 3, 32


def images_per_second(workers: int) -> float:
    split = load_split("celeba", "train", num_workers=workers)
    start = time.perf_counter()
    seen = sum(len(labels) for _, labels in split.batches(BATCH))
    return seen / (time.perf_counter() - start)


def main() -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.set_num_threads(1)
    print(machine())
    print(f"{'workers':>7} {'images/s':>9}")
    rates = {workers: [images_per_second(workers) for _ in range(REPEATS)] for workers in WORKERS}
    for workers, values in rates.items():
        print(f"{workers:7} {statistics.median(values):9.0f}")


if __name__ == "__main__":
    main()
