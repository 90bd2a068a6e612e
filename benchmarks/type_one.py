"""How often unrelated activations pass for more than chance: python -m benchmarks.type_one

Independent Gaussian activations, and 39 random pairings a trial, where the level of .05 is exact: the share of trials
with p <= .05 is to lie within four binomial standard errors. What is done is kept in a file, and gone on from.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch

from src.core.errors import UserError
from src.metrics import METRICS
from src.metrics.certainty.calibration import LEVEL, calibrate_grid, draw_of, orders
from src.metrics.certainty.uncertainty import Sample, value_of
from src.metrics.engine.plan import plan_cell

SIZES = ((96, 48), (96, 96), (96, 192), (128, 384))  # images, features of either side
DRAWS = 39
CHEAP, DEAR, DEAR_FROM = 2000, 500, 0.05  # trials of metrics that take less, or more, than so many seconds a trial


def trial(name: str, images: int, features: int, seed: int) -> bool:
    """Whether one pair of unrelated layers passes; raises UserError where the metric has no value."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(images, features, generator=generator) for _ in range(2))
    metric, sample = METRICS[name], Sample(x, y, (features,), (features,))
    plan = plan_cell([name], None, images, (features,), (features,), None)
    if name in plan.unavailable:
        raise UserError(plan.unavailable[name])
    if callable(metric.identical):
        raise UserError("its value for equal representations depends on these")
    if plan.source[name] == "row_space":
        sample = sample.in_row_space()
    view = plan.views[name]
    observed = torch.tensor([[value_of(metric, view, sample)]], dtype=torch.float64)
    draw = draw_of(metric, view, [sample], [(0, 0)], (1, 1))
    drawn = torch.stack([draw(order) for order in orders(images, DRAWS, seed)])
    return calibrate_grid(metric, observed, drawn, metric.identical).cells[0, 0].p <= LEVEL


def passed(name: str, images: int, features: int, cheap: int, dear: int) -> tuple[int, int] | str:
    """Trials that passed, and all; or why there is no value."""
    try:
        trial(name, images, features, 0)  # the first one warms up
        start = time.process_time()
        trial(name, images, features, 0)
        trials = cheap if time.process_time() - start < DEAR_FROM else dear
        return sum(trial(name, images, features, seed) for seed in range(trials)), trials
    except UserError as error:
        return str(error)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.type_one", description=__doc__)
    parser.add_argument("--keep", type=Path, default=Path("type_one.jsonl"), help="what is done already")
    parser.add_argument("--trials", type=int, nargs=2, default=(CHEAP, DEAR), metavar=("CHEAP", "DEAR"))
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), choices=list(METRICS), metavar="METRIC")
    args = parser.parse_args(argv)
    known = {}
    if args.keep.exists():
        for line in args.keep.read_text().splitlines():
            name, images, features, found = json.loads(line)
            known[name, images, features] = found
    for name in args.metrics:
        cells = []
        for images, features in SIZES:
            if (name, images, features) not in known:
                known[name, images, features] = passed(name, images, features, *args.trials)
                with args.keep.open("a") as file:
                    file.write(json.dumps([name, images, features, known[name, images, features]]) + "\n")
            found = known[name, images, features]
            if isinstance(found, str):
                cells.append("refused")
                continue
            count, trials = found
            bound = 4 * math.sqrt(LEVEL * (1 - LEVEL) / trials)
            cells.append(f"{count / trials:.3f}{'' if abs(count / trials - LEVEL) <= bound else ' out'} ({trials})")
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
