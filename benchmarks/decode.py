"""How fast image files are decoded, and how much memory they take: python -m benchmarks.decode [--images N]

Makes JPEG files of 500 x 375, and gives images a second of one core's time for each decoder, with how far its pixels
are from those of PIL; then for the first and the second epoch of a folder, in memory and from a cache; with --memory
the peak memory of two epochs over 2, 10 and 50 thousand images (links to the same files), the first of which decodes
them into a cache that the second reads.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.run import machine, peak_bytes
from src.dataset import CacheOptions, dataset_of, load_split
from src.dataset.decode import Target, decode

WIDTH, HEIGHT, CLASSES, BATCH = 500, 375, 10, 64
COUNTS = (2_000, 10_000, 50_000)
SMALL = 56  # the size at which memory is measured: what is counted is images, not pixels


def photo(seed: int) -> Image.Image:
    """A synthetic photo: smooth shapes and grain."""
    draw = np.random.default_rng(seed)
    shapes = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), 3)
    grain = np.asarray(shapes, dtype=np.int16) + draw.integers(-14, 15, (HEIGHT, WIDTH, 3), dtype=np.int16)
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def make_folder(root: Path, count: int, made: int | None = None) -> Path:
    """A folder of `count` images in train/, a few in val/; beyond `made` they are links to the first ones."""
    made = min(count, made or count)
    for split, some in (("train", count), ("val", CLASSES)):
        for label in range(CLASSES):
            (root / split / f"class{label}").mkdir(parents=True)
        for number in range(some):
            file = root / split / f"class{number % CLASSES}" / f"{number:06}.jpg"
            if split == "train" and number < made:
                photo(number).save(file, quality=90)
            else:
                first = number % made
                os.link(root / "train" / f"class{first % CLASSES}" / f"{first:06}.jpg", file)
    return root


def by_pil(file: Path, target: Target) -> Tensor:
    return decode(file, target)


def by_torchvision(file: Path, target: Target) -> Tensor:
    from torchvision import io

    pixels: Any = io.decode_jpeg(io.read_file(str(file)), mode=io.ImageReadMode.RGB)
    return _fitted(pixels, target)


def by_draft(file: Path, target: Target) -> Tensor:
    """JPEG decoded at an eighth, a quarter or half of its size where that is not too small."""
    with Image.open(file) as image:
        scale = target.shorter / min(image.size)
        image.draft("RGB", (round(image.width * scale), round(image.height * scale)))
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return _fitted(pixels, target)


def _fitted(pixels: Tensor, target: Target) -> Tensor:
    from torchvision.transforms.v2 import functional

    resized = functional.resize(pixels, [target.shorter], antialias=True)
    return functional.center_crop(resized, [target.side, target.side])


DECODERS: dict[str, Callable[[Path, Target], Tensor]] = {
    "PIL": by_pil,
    "torchvision.io": by_torchvision,
    "PIL, draft": by_draft,
}


def decoder_rows(files: Sequence[Path], sizes: Sequence[int]) -> list[str]:
    """Images a second of each decoder at each size, and the mean and largest difference to PIL in levels of 255."""
    rows = [f"{'decoder':16} {'to':>9} {'images/s':>9} {'mean diff':>10} {'largest':>8}"]
    for size in sizes:
        target = Target(3, round(size * 8 / 7), round(size * 8 / 7), size)
        wanted = [by_pil(file, target) for file in files]
        for name, decoder in DECODERS.items():
            start = time.process_time()
            found = [decoder(file, target) for file in files]
            rate = len(files) / (time.process_time() - start)
            away = [(one.int() - other.int()).abs() for one, other in zip(found, wanted, strict=True)]
            most = max(int(values.max()) for values in away)
            mean = float(torch.stack([values.float().mean() for values in away]).mean())
            rows.append(f"{name:16} {target.side:4}x{target.side:<4} {rate:9.0f} {mean:10.3f} {most:8}")
    return rows


def epoch_rows(root: Path, size: int, cache: Path) -> list[str]:
    """Images a second of the first and the second epoch of training images, augmented, in this process alone."""
    rows = [f"{'kept':16} {'first':>9} {'second':>9}   images/s"]
    for name, keep in {
        "not": CacheOptions(gb=1e-9),
        "in memory": CacheOptions(),
        "in a file": CacheOptions(cache),
    }.items():
        split = load_split(dataset_of(f"folder:{root}", size), "train", num_workers=0, keep=keep).with_preprocessing(
            None
        )
        rates = [epoch_rate(split) for _ in range(2)]
        rows.append(f"{name:16} {rates[0]:9.0f} {rates[1]:9.0f}")
    again = load_split(
        dataset_of(f"folder:{root}", size), "train", num_workers=0, keep=CacheOptions(cache)
    ).with_preprocessing(None)
    rows.append(f"{'file, other run':16} {epoch_rate(again):9.0f}")
    return rows


def epoch_rate(split) -> float:
    start = time.process_time()
    order = torch.Generator().manual_seed(0)
    seen = sum(len(labels) for _, labels in split.batches(BATCH, order=order))
    return seen / (time.process_time() - start)


def memory_row(count: int, made: int, size: int = SMALL) -> str:
    """Peak memory of a process that decodes `count` images into a cache file, and reads them from there."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_folder(Path(folder) / "images", count, made)
        work = ["--child", str(root), str(Path(folder) / "cache"), str(size)]
        command = [sys.executable, "-m", "benchmarks.decode", *work]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{count:8} {float(done.stdout) / 1e6:8.0f}"


def child(root: str, cache: str, size: str) -> None:
    torch.set_num_threads(1)
    spec = dataset_of(f"folder:{root}", int(size))
    split = load_split(spec, "train", num_workers=0, keep=CacheOptions(Path(cache))).with_preprocessing(None)
    for _ in range(2):
        epoch_rate(split)
    print(peak_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000, metavar="N")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory, too (many minutes)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    warnings.filterwarnings("ignore", "The image decoding and encoding capabilities of TorchVision")
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = make_folder(Path(folder) / "images", args.images)
        files = sorted((root / "train").rglob("*.jpg"))
        print("\n".join(decoder_rows(files, (224, 112, 56))), flush=True)
        print("\n".join(epoch_rows(root, 224, Path(folder) / "cache")), flush=True)
    if args.memory:
        print(f"{'images':>8} {'peak MB':>8}")
        for count in COUNTS:
            print(memory_row(count, min(args.images, count)), flush=True)


if __name__ == "__main__":
    main()
