"""How many layers each metric recognises in a network trained from another seed: python -m benchmarks.identify [A B]

Kornblith et al.'s (2019, section 6.1) sanity check: of all layers of the second network the namesake should be the most
alike to a layer of the first, and the other way round. A layer competes with those that the metric can compare with it;
of the same shape for l2, of the same height and width where positions are rows. Regressions and correlations of more
features than images, which all are 1, are left out.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.run import machine
from src.layer_grid import compare_layers
from src.metrics import METRICS
from src.sources import open_network
from src.viewing import look

ROOT = Path(__file__).parent.parent / "model_weights"
PAIR = [str(ROOT / "Tiny10" / "CIFAR10" / f"in{seed}-gn{seed}" / "110000.pt") for seed in (0, 10)]
TIED = 1e-6
LAYERS = [f"bn{number}" for number in range(1, 9)]


def found(table: np.ndarray, *, lower: bool) -> tuple[int, int, list[str]]:
    """Of the rows of a table, and of its columns, how many have their best value on the diagonal; and what was missed.

    A tie is no recognition: a metric that says 1 everywhere has found nothing.
    """
    counts, missed = [], []
    for one in (table, table.T):
        values = np.where(np.isnan(one), -np.inf, -one if lower else one)
        others = np.where(np.eye(len(values), dtype=bool), -np.inf, values)
        ahead = values.diagonal() - others.max(1)
        counts.append(int((ahead > TIED).sum()))
        missed += [f"{LAYERS[i]}:{LAYERS[others[i].argmax()]}" for i in np.flatnonzero(ahead < -TIED)]
    ties = 2 * len(table) - sum(counts) - len(missed)
    return counts[0], counts[1], missed + [f"{ties} ties"] * bool(ties)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=PAIR)
    parser.add_argument("--images", type=int, default=1_000)
    args = parser.parse_args()
    viewing = look([open_network(file) for file in args.weights], "cifar10")
    networks = viewing.networks[0].network, viewing.networks[1].network
    split = viewing.split("val").take(torch.arange(args.images))
    print(machine())
    print(f"{args.images} images, {len(LAYERS)} layers, of {args.weights[0]} and {args.weights[1]}")
    print(f"{'metric':14} {'view':9} {'first':>5} {'second':>6}   taken for another")
    for view in ("images", "channels"):
        names = [name for name, metric in METRICS.items() if view in metric.views]
        if view == "images":  # more features than images are a linear map of anything
            names = [name for name in names if not METRICS[name].outnumbered]
        grid = compare_layers(networks, (LAYERS, LAYERS), viewing.sample, split, names, view=view)
        for name in names:
            first, second, missed = found(grid.table(name), lower=METRICS[name].alike == "lower")
            print(f"{name:14} {view:9} {first:5} {second:6}   {' '.join(missed)}", flush=True)


if __name__ == "__main__":
    main()
