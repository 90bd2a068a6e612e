"""What paired moments cost beside the heads that they watch: python -m benchmarks.moments

Seconds for 5,000 images, medians: two heads alone, the same with moments, and what the moments add. The last column is
the least they could add, from the arithmetic of both: float64 products run at half the speed of float32.
"""

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import data, network
from benchmarks.run import machine, seconds
from src.cutting.freeze import freeze
from src.cutting.parts import head
from src.evaluation.passes import feed
from src.metrics import PairedMoments, channels_last_rows

IMAGES, REPEATS = 5_000, 5
LAYERS = ("bn1", "bn3", "bn5", "bn7")


def row(layer: str, images: int, repeats: int) -> str:
    split = data(images)
    heads = [freeze(head(network("tiny10", seed), layer)) for seed in (0, 1)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        channels, *sizes = heads[0](torch.zeros(1, 3, 32, 32)).shape[1:]
    moments = PairedMoments(channels, channels)

    def alone() -> None:
        feed(heads, split, lambda front, end: None)

    def both() -> None:
        feed(heads, split, lambda front, end: moments.update(channels_last_rows(front), channels_last_rows(end)))

    alone()
    times = [(seconds(alone), seconds(both)) for _ in range(repeats)]
    heads_alone, with_moments = (statistics.median(column) for column in zip(*times, strict=True))
    products = 3 * 2 * channels**2 * sizes[0] * sizes[1]
    least = 2 * products / (2 * counter.get_total_flops())
    return f"{layer:5} {heads_alone:8.2f} {with_moments:8.2f} {with_moments / heads_alone - 1:6.0%} {least:6.0%}"


def main() -> None:
    print(machine())
    print(f"{'layer':5} {'heads s':>8} {'both s':>8} {'extra':>6} {'least':>6}")
    for layer in LAYERS:
        print(row(layer, IMAGES, REPEATS), flush=True)


if __name__ == "__main__":
    main()
