"""What passes for more than chance, and should or should not: python -m benchmarks.chance [PART ...]

type_one: independent Gaussian activations and 39 random pairings, where the level of .05 is exact: the share of trials
with p <= .05 is to lie within four binomial standard errors. power: the same of copies with noise, by the correlation
of a unit with its copy. closed: CKA by chance, by its formula and by random pairings. layers: the shipped networks of
CIFAR-10, layer by layer. What is done is kept in a file, and gone on from; docs/chance.md gets the tables.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import compare_nets
from benchmarks.pages import table_text, write
from src import results
from src.core.errors import UserError
from src.metrics import METRICS
from src.metrics.algebra.gram import gram_sums
from src.metrics.algebra.layer import Layer
from src.metrics.certainty.calibration import LEVEL, calibrate_grid, draw_of, orders
from src.metrics.certainty.uncertainty import Sample
from src.metrics.cka import chance_of, permuted_cka
from src.metrics.engine.plan import plan_cell
from tests.paths import ROOT

PAGE, WEIGHTS = ROOT / "docs" / "chance.md", ROOT / "model_weights"
SIZES = ((96, 48), (96, 96), (96, 192), (128, 384))  # images, features of either side
DRAWS = 39
CHEAP, DEAR, DEAR_FROM = 2000, 500, 0.05  # trials of metrics that take less, or more, than so many seconds a trial
SIGNALS = (0.05, 0.1, 0.15, 0.2, 0.3)  # of a unit with its copy
TRIALS = 200  # of a signal
PAIRS = {
    "Tiny10 in0, in10": (("Tiny10/CIFAR10/in0-gn0/110000.pt", "Tiny10/CIFAR10/in10-gn10/110000.pt"), ("bn*", "bn*")),
    "ViT in0, in1": (("ViT_w96/CIFAR10/in0-gn0/3900.pt", "ViT_w96/CIFAR10/in1-gn1/3900.pt"), ("blocks.*", "blocks.*")),
    "Tiny10 in0, ViT in0": (
        ("Tiny10/CIFAR10/in0-gn0/110000.pt", "ViT_w96/CIFAR10/in0-gn0/3900.pt"),
        ("bn*", "blocks.*"),
    ),
}
COUNTS = (2000, 100, 30)  # images
Known = Callable[[list[Any], Callable[[], Any]], Any]


def trial(name: str, images: int, features: int, seed: int, signal: float = 0.0) -> bool:
    """Whether a pair of layers passes, whose units have this correlation; UserError where the metric has no value."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(images, features, generator=generator) for _ in range(2))
    y = signal * x + math.sqrt(1 - signal**2) * y
    metric, sample = METRICS[name], Sample(x, y, (features,), (features,))
    plan = plan_cell([name], None, images, (features,), (features,), None)
    if name in plan.unavailable:
        raise UserError(plan.unavailable[name])
    if plan.source[name] == "row_space":
        sample = sample.in_row_space()
    draw = draw_of(metric, plan.views[name], [sample], [(0, 0)], (1, 1))
    drawn = torch.stack([draw(order) for order in orders(images, DRAWS, seed)])
    best = 1.0  # of which a p value says nothing
    return calibrate_grid(metric, draw(torch.arange(images)), drawn, best).cells[0, 0].p <= LEVEL


def unrelated(name: str, images: int, features: int) -> tuple[int, int] | str:
    """Trials without any signal that passed, and all; or why there is no value."""
    try:
        trial(name, images, features, 0)  # the first one warms up
        start = time.process_time()
        trial(name, images, features, 0)
        trials = CHEAP if time.process_time() - start < DEAR_FROM else DEAR
        return sum(trial(name, images, features, seed) for seed in range(trials)), trials
    except UserError as error:
        return str(error)


def type_one(known: Known) -> list[list[str]]:
    rows = [["metric", *(f"{images} images, {features} features" for images, features in SIZES)]]
    for name in METRICS:
        cells = []
        for size in SIZES:
            passed = known([name, *size], lambda name=name, size=size: unrelated(name, *size))
            if isinstance(passed, str):
                cells.append("refused")
                continue
            share, bound = passed[0] / passed[1], 4 * math.sqrt(LEVEL * (1 - LEVEL) / passed[1])
            cells.append(f"{share:.3f}{'' if abs(share - LEVEL) <= bound else ' out'} ({passed[1]})")
        if set(cells) != {"refused"}:
            rows.append([f"`{name}`", *cells])
    return rows


def power(known: Known) -> list[list[str]]:
    images, features = SIZES[0]
    rows = [["metric", *(f"{signal:g}" for signal in SIGNALS)]]
    for name in METRICS:
        cells = []
        for signal in SIGNALS:

            def share(name: str = name, signal: float = signal) -> float | None:
                try:
                    return sum(trial(name, images, features, seed, signal) for seed in range(TRIALS)) / TRIALS
                except UserError:
                    return None

            cells.append(known([name, signal], share))
        if None not in cells:
            rows.append([f"`{name}`", *(f"{cell:.2f}" for cell in cells)])
    return rows


def closed(known: Known) -> list[list[str]]:
    """Of 8 independent features a side: the formula, and the mean and its standard error of 2,000 random pairings."""
    rows = [["images", "formula", "mean of 2,000 pairings", "standard errors apart"]]
    for images in (32, 64, 128, 256):

        def figures(images: int = images) -> list[float]:
            generator = torch.Generator().manual_seed(images)
            x, y = (torch.randn(images, 8, generator=generator, dtype=torch.float64) for _ in range(2))
            draw = permuted_cka([Layer.of(x)], [Layer.of(y)])
            drawn = torch.stack([draw(order) for order in orders(images, 2000)]).flatten()
            formula = chance_of([gram_sums([Layer.of(x).centre()], [Layer.of(y).centre()])[0, 0]])
            assert formula is not None
            return [formula, float(drawn.mean()), float(drawn.std()) / math.sqrt(len(drawn))]

        formula, mean, error = known([images], figures)
        rows.append([str(images), f"{formula:.4f}", f"{mean:.4f}", f"{abs(mean - formula) / error:.1f}"])
    return rows


def layers(known: Known) -> list[list[str]]:
    names = ("cka", "cka_debiased", "mutual_knn")
    rows = [["networks", "images", "metric", "mean of all", "its threshold", "its score", "pairs above chance"]]
    for title in PAIRS:
        for images in COUNTS:
            figures = known([title, images], lambda title=title, images=images: calibrated(title, images, names))
            rows += [
                [title, f"{images:,}", f"`{name}`", *(f"{one:.3f}" for one in figures[name][:3]), figures[name][3]]
                for name in names
            ]
    return rows


def calibrated(title: str, images: int, names: tuple[str, ...]) -> dict[str, list[Any]]:
    """Of each metric: value, threshold and score of the mean of all pairs of layers, and how many pass."""
    files, patterns = PAIRS[title]
    with tempfile.TemporaryDirectory() as folder:
        words = [*(str(WEIGHTS / file) for file in files), *patterns, "cifar10", *names, "--calibrate", "199"]
        compare_nets.main([*words, "--images", str(images), "-o", folder])
        (path,) = Path(folder).rglob("*.pkl")
        found = results.read(path)["calibrated"]
    made = {}
    for name in names:
        frame, mean = found["frame"], found["grid"][name]["mean"]
        passed = frame[frame["method"] == name]["p"] <= LEVEL
        made[name] = [mean["value"], mean["threshold"], mean["score"], f"{passed.sum()} of {len(passed)}"]
    return made


PARTS = {"type_one": type_one, "power": power, "closed": closed, "layers": layers}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--keep", type=Path, default=Path("chance.jsonl"), help="what is done already")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    done = {}
    if args.keep.exists():
        done = {json.dumps(key): value for key, value in map(json.loads, args.keep.read_text().splitlines())}
    for part in args.parts:

        def known(key: list[Any], make: Callable[[], Any], part: str = part) -> Any:
            text = json.dumps([part, *key])
            if text not in done:
                done[text] = make()
                with args.keep.open("a") as file:
                    file.write(json.dumps([[part, *key], done[text]]) + "\n")
            return done[text]

        table = table_text(PARTS[part](known))
        print(table, flush=True)
        write(args.page, part, table)


if __name__ == "__main__":
    main()
