"""How many layers each metric recognises in networks trained from other seeds: python -m benchmarks.identify [FILE ...]

Kornblith et al.'s (2019, section 6.1) sanity check: of all layers of another network the namesake should be the most
alike to a layer of the first; over all pairs of the networks, both ways. A layer competes with those that the metric
can compare with it; of the same shape for l2, of the same height and width where positions are rows. Regressions and
correlations of more features than images, which all are 1, are left out. Minutes a pair.
"""

import argparse
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.run import machine
from src.evaluation.layer_grid import compare_layers
from src.metrics import METRICS
from src.networks.opening import open_network
from src.networks.presentation import put_on_dataset

ROOT = Path(__file__).parent.parent / "model_weights"
FILES = [str(ROOT / "Tiny10" / "CIFAR10" / f"in{seed}-gn{seed}" / "110000.pt") for seed in (0, 10)]
TIED = 1e-6
LAYERS = [f"bn{number}" for number in range(1, 9)]
FOUND, TIE = "found", "ties"


def found(table: np.ndarray, *, lower: bool) -> Counter[str]:
    """Of the rows of a table and of its columns, how many have their best value on the diagonal, and what was missed.

    A tie is no recognition: a metric that says 1 everywhere has found nothing.
    """
    counts: Counter[str] = Counter()
    for one in (table, table.T):
        values = np.where(np.isnan(one), -np.inf, -one if lower else one)
        others = np.where(np.eye(len(values), dtype=bool), -np.inf, values)
        for i, ahead in enumerate(values.diagonal() - others.max(1)):
            taken = f"{LAYERS[i]}:{LAYERS[others[i].argmax()]}"
            counts[FOUND if ahead > TIED else taken if ahead < -TIED else TIE] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=FILES)
    parser.add_argument("--images", type=int, default=1_000)
    args = parser.parse_args()
    if len(args.weights) < 2:
        parser.error("two networks or more are compared")
    totals: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    pairs = list(itertools.combinations(args.weights, 2))
    for pair in pairs:
        on_data = put_on_dataset([open_network(file) for file in pair], "cifar10")
        networks = on_data.networks[0].network, on_data.networks[1].network
        split = on_data.split("val").take(torch.arange(args.images))
        for view in ("images", "channels"):
            names = [name for name, metric in METRICS.items() if view in metric.views]
            if view == "images":  # more features than images are a linear map of anything
                names = [name for name in names if not METRICS[name].outnumbered]
            grid = compare_layers(networks, (LAYERS, LAYERS), on_data.sample, split, names, view=view)
            for name in names:
                totals[name, view] += found(grid.table(name), lower=not METRICS[name].higher_is_better)
    print(machine())
    print(f"{args.images} images, {len(LAYERS)} layers, {len(pairs)} pairs of networks, both ways")
    print(f"{'metric':14} {'view':9} {'found':>5} {'of':>4}   taken for another")
    for (name, view), counts in totals.items():
        missed = [f"{pair} {count}" for pair, count in counts.most_common() if pair != FOUND]
        print(f"{name:14} {view:9} {counts[FOUND]:5} {counts.total():4}   {', '.join(missed)}")


if __name__ == "__main__":
    main()
