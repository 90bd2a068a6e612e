"""How often intervals hold the truth, on networks and activations made up to know it: python -m benchmarks.coverage

A network is right about an image where its hardness, which all share in part, is below the network's accuracy. The
second of two activations is a linear map of the first, and noise. Biased metrics are held against their own mean over
the trials, the debiased ones against their value for very many images.
"""

import argparse

import numpy as np
import torch
from torch import Tensor

from src.core.intervals import wilson
from src.core.task import SINGLE_LABEL
from src.evaluation.scores import AgreementCounter
from src.metrics import METRICS
from src.metrics.certainty.uncertainty import Sample, intervals
from src.stitching.significance import penalty_of, score_of

OF_METRICS = (
    "cka_debiased",
    "cka",
    "lr",
    "cca",
    "procrustes",
    "svcca",
    "mutual_knn",
    "jaccard",
    "rank_sim",
    "second_cos",
    "rsa",
    "dist_corr",
    "aligned_cos",
)
UNTRAINED = ("untrained 0", "untrained 1", "untrained 2")


def made_up(rng: np.random.Generator, images: int, shares: dict[str, float], shared: float) -> dict[str, Tensor]:
    """Which images each network is right about (1.0); `shared` is the share of images that are as hard for all."""
    hardness, alike = rng.random(images), rng.random(images) < shared
    return {
        name: torch.from_numpy((np.where(alike, hardness, rng.random(images)) < share).astype(float))
        for name, share in shares.items()
    }


def tally_of(right: dict[str, Tensor]) -> AgreementCounter:
    """A tally of networks that are right (1.0) or not about two classes, image by image."""
    images = len(next(iter(right.values())))
    counts = AgreementCounter(SINGLE_LABEL, target="end", couples=[("end", "after")], keep=right)
    labels = torch.arange(images) % 2
    counts.update({name: torch.eye(2)[(labels + 1 - which.long()) % 2] for name, which in right.items()}, labels)
    return counts


def coverage(end: float, after: float, *, images: int, trials: int, floor: float = 0.35) -> dict[str, float]:
    """The share of trials in which each interval holds the truth."""
    rng = np.random.default_rng(0)
    shares = {"end": end, "after": after, "self": end, **dict.fromkeys(UNTRAINED, floor)}
    truths = {"accuracy": after, "penalty": end - after, "score": (after - floor) / (end - floor)}
    held = dict.fromkeys(truths, 0)
    for _ in range(trials):
        counts = tally_of(made_up(rng, images, shares, 0.6))
        penalty, score = penalty_of(counts, "after"), score_of(counts, "after", UNTRAINED, "self")
        assert penalty and score
        found = {"accuracy": wilson(counts.scores("after")["acc"], images)}
        found |= {name: (some["low"], some["high"]) for name, some in (("penalty", penalty), ("score", score))}
        for name, (low, high) in found.items():
            held[name] += low <= truths[name] <= high
    return {name: count / trials for name, count in held.items()}


def activations(images: int, seed: int) -> Sample:
    """Six features, and five that are a fixed map of these with as much noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 6, generator=generator) + 3
    mix = torch.randn(6, 5, generator=torch.Generator().manual_seed(99))
    return Sample(x, x @ mix + 2 * torch.randn(images, 5, generator=generator), (6,), (5,))


def metric_coverage(name: str, *, images: int, trials: int) -> tuple[float, float]:
    """The share of trials in which a metric's interval holds the truth, and the intervals' mean width."""
    metric, values, found = METRICS[name], [], []
    for seed in range(trials):
        sample = activations(images, seed)
        values.append(metric.number(metric.of_rows(sample.x, sample.y)))
        found.append(intervals([name], None, sample).values[name])
    many = activations(20_000, trials)
    truth = metric.number(metric.of_rows(many.x, many.y)) if name == "cka_debiased" else float(np.mean(values))
    return float(np.mean([low <= truth <= high for low, high in found])), float(np.mean(np.diff(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage of nominal 95% intervals")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--metrics", default=",".join(OF_METRICS), help="metrics of activations, with commas")
    args = parser.parse_args()
    print(f"{args.trials} trials of {args.images} images: share of intervals that hold the truth")
    print(f"{'end':>5} {'after':>6} {'accuracy':>9} {'penalty':>8} {'score':>7}")
    for end, after in ((0.7, 0.6), (0.8, 0.7), (0.9, 0.8), (0.9, 0.9), (0.95, 0.9), (0.96, 0.95)):
        found = coverage(end, after, images=args.images, trials=args.trials)
        print(f"{end:5.2f} {after:6.2f} {found['accuracy']:9.1%} {found['penalty']:8.1%} {found['score']:7.1%}")
    print(f"\n{args.trials // 2} trials of 150 images: metrics of activations, and the mean width of their intervals")
    for name in args.metrics.split(","):
        held, width = metric_coverage(name, images=150, trials=args.trials // 2)
        print(f"{name:14} {held:6.1%} {width:8.4f}", flush=True)


if __name__ == "__main__":
    main()
