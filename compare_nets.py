"""Compare the activations of two trained networks on the same images: two layers, or every pair of many."""

import argparse
import itertools
import re
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from src.cli import arguments
from src.cli import output as cli
from src.core.config import choose_device
from src.core.errors import UserError
from src.cutting.selection import ALL, choose_layers
from src.dataset import canonical_dataset, known_datasets
from src.evaluation.calibration import DRAWS, Calibration, calibrate
from src.evaluation.certainty import Certainty, certainty_of, require_room
from src.evaluation.layer_grid import Comparison, compare_layers, layer_label
from src.metrics import MEASURES
from src.metrics.algebra.products import described
from src.metrics.certainty.calibration import LEVEL
from src.results import plots
from src.results import text as report
from src.results.titles import network_name

CALIBRATED = ["method", "value", "threshold", "p", "score"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "compare_nets",
        "Compare two networks at two layers, or at every pair of many, by measures of how similar activations are.",
        "model_weights/Tiny10/Digits/in0-gn0/440.pt model_weights/Tiny10/Digits/in1-gn1/440.pt bn5 bn5 digits cka l2\n"
        "a.pt b.pt bn1,bn3,bn7 all cifar10 cka --plot",
    )
    arguments.add_pair_arguments(parser)
    several = "layer, several with commas between, or all"
    parser.add_argument("front_layer", metavar="layer1", help=f"{several}, of the first network")
    parser.add_argument("end_layer", metavar="layer2", help=f"{several}, of the second network")
    text = ", ".join(known_datasets())
    parser.add_argument("dataset", type=arguments.dataset_name, metavar="dataset", help=text)
    arguments.add_method_argument(parser)
    add_options(parser)
    options, words = options_first(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words, options)
    args.front_layer = args.front_layer if args.layers1 is None else args.layers1
    args.end_layer = args.end_layer if args.layers2 is None else args.layers2
    return args


def add_options(parser: argparse.ArgumentParser) -> None:
    group = arguments.add_comparison_options(parser)
    for number in "12":
        group.add_argument(
            f"--layers{number}",
            metavar="LAYERS",
            help=f"the same as layer{number}, which may be left out if both are given so (default: layer{number})",
        )
    group.add_argument("--intervals", action="store_true", help="95%% intervals over images, for one pair of layers")
    group.add_argument(
        "--permutations",
        type=arguments.natural,
        default=0,
        metavar="N",
        help="what N random pairings of the images give, for one pair of layers; CKA's is in closed form",
    )
    group.add_argument(
        "--calibrate",
        nargs="?",
        type=arguments.positive,
        const=DRAWS,
        metavar="K",
        help=f"thresholds, p values and scores against K random pairings of the images, for any layers (K: {DRAWS})",
    )
    arguments.add_pair_options(parser)
    arguments.add_split_options(parser)
    arguments.add_run_options(parser, plot="each method's layer x layer heatmap, or bars for one pair")


def options_first(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options among the words, and the other words, with the layers that options name in their usual place."""
    parser = arguments.Parser(prog="compare_nets.py", add_help=False)
    add_options(parser)
    options, rest = parser.parse_known_args(with_draws(words))
    if None not in (options.layers1, options.layers2) and rest[2:] and is_dataset(rest[2]):
        rest[2:2] = options.layers1, options.layers2
    return options, rest


def with_draws(words: list[str]) -> list[str]:
    """The words with a number behind a bare --calibrate, which takes no other word that follows."""
    found = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        bare = word == "--calibrate" and not re.fullmatch(r"[+-]?\d+", following)
        found.append(f"{word}={DRAWS}" if bare else word)
    return found


def is_dataset(word: str) -> bool:
    try:
        return bool(canonical_dataset(word))
    except UserError:
        return False


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare, print, draw and write; returns the result."""
    if args.plot:
        plots.require_matplotlib()
    device = choose_device(args.device)
    on_data = cli.open_pair(args)
    front, end = on_data.networks
    sample = on_data.sample
    layers = (
        choose_layers(front.network, args.front_layer, sample),
        choose_layers(end.network, args.end_layer, sample),
    )
    single = ALL not in (args.front_layer, args.end_layer) and len(layers[0]) == len(layers[1]) == 1
    check_certainty(args, single=single)
    names = args.front_layer, args.end_layer
    with cli.result_path(args, f"compare_nets-{'-'.join(map(short_name, names, layers))}") as path:
        split = on_data.split(args.dataset_type, device=device, **arguments.reading(args, cli.notice))
        networks = front.network, end.network
        options = {"view": args.view, "batch_size": args.batch_size, "memory": 1e9 * args.memory}
        options["layouts"] = front.layout, end.layout
        known = {"group": args.group_at, **on_data.classes_known}
        pair, is_sure = (layers[0][0], layers[1][0]), bool(args.intervals or args.permutations)
        if is_sure:
            room = {"memory": options["memory"], "layouts": options["layouts"]}
            require_room(networks, pair, on_data.sample, len(split), **room)
        comparison = compare_layers(
            networks, layers, on_data.sample, split, args.methods, on_message=cli.notice, **known, **options
        )
        certainty = None
        if is_sure:
            options |= {"with_intervals": args.intervals, "permutations": args.permutations}
            valued = [name for name in args.methods if name in comparison.cells[0, 0].values]
            certainty = certainty_of(networks, pair, on_data.sample, split, valued, **options)
        calibration = None
        if args.calibrate:
            how = {name: options[name] for name in ("view", "batch_size", "memory", "layouts")}
            draws = None if args.calibrate == DRAWS else args.calibrate
            calibration = calibrate(
                networks, layers, sample, split, args.methods, draws=draws, on_message=cli.notice, **how
            )
        facts = [checkpoint.facts() for checkpoint in (front, end)]
        titles = list(map(network_name, facts))
        text, result = pair_report(comparison, titles, certainty) if single else grid_report(comparison, titles)
        lines = [report.fill(f"{text[0]} ({args.dataset}, {args.dataset_type})"), *text[1:]]
        if calibration:
            lines += calibration_lines(calibration, single=single)
            result["calibrated"] = calibration_record(calibration, single=single)
        result = {"networks": facts, "frame": comparison.frame(), **result, "products": described(device)}
        cli.publish(args, path, result, "\n".join(lines), draw=plots.draw_pair if single else plots.draw_grid)
    return result


def short_name(text: str, layers: list[str]) -> str:
    """What stands for a choice of layers in the name of the result file."""
    if text == ALL:
        return ALL
    return layer_label(layers[0]) if len(layers) == 1 else f"{layers[0]}..{layers[-1]}"


def check_certainty(args: argparse.Namespace, *, single: bool) -> None:
    """Raise UserError where intervals or permutations are asked of more than one pair, or of groups of images."""
    for option in ("intervals", "permutations"):
        if getattr(args, option) and not single:
            raise UserError(f"--{option} is of one pair of layers; name one layer of each network")
        if getattr(args, option) and args.group_at is not None:
            raise UserError(f"--{option} excludes --group-at: it is of all images together")


def pair_report(
    comparison: Comparison, networks: list[str], certainty: Certainty | None
) -> tuple[list[str], dict[str, Any]]:
    """Lines, a title first, and result for one layer of each network."""
    text, result = cli.comparison_report(comparison.cells[0, 0], certainty)
    labels = comparison.layers1 + comparison.layers2
    return [" and ".join(map("{}, {}".format, networks, labels)), text], result


def grid_report(comparison: Comparison, networks: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Lines, a title first, and result for every pair of many layers."""
    result = {name: value for name, value in comparison.record().items() if name != "frame"}
    tables = [grid_text(comparison, name) for name in comparison.names]
    lines = [
        f"{networks[0]} (rows) and {networks[1]} (columns)",
        *tables,
        *doubts_text(comparison, result["refused"], result["warnings"]),
    ]
    return lines, result


def calibration_record(calibration: Calibration, *, single: bool) -> dict[str, Any]:
    """What the result holds: of a pair {metric: threshold, p, score}; of many a frame, and of each grid as a whole."""
    about = {"draws": calibration.draws, "images": calibration.images, "refused": calibration.refused}
    if single:
        values = {name: asdict(grid.cells[0, 0]) for name, grid in calibration.grids.items()}
        return values | {"how": about}
    return {"frame": calibration.frame(), "grid": calibration.whole(), "how": about}


def calibration_lines(calibration: Calibration, *, single: bool) -> list[str]:
    """What is more than chance: of a pair a row a metric; of many the scores of all cells, and of the grid."""
    images, draws = calibration.images, calibration.draws
    lines = ["", report.fill(f"against {draws} random pairings of {images} images, at 5%:")]
    if single:
        rows = [row | {"p": f"{row['p']:.4f}"} for row in calibration.frame().to_dict("records")]
        cells = [
            {key: f"{row[key]:.4f}" if isinstance(row[key], float) else row[key] for key in CALIBRATED} for row in rows
        ]
        lines.append(report.columns_text(cells, right=CALIBRATED[1:]))
    for name, grid in calibration.grids.items() if not single else ():
        table = np.full((len(calibration.layers1), len(calibration.layers2)), np.nan)
        for cell, found in grid.cells.items():
            table[cell] = found.score
        lines += [f"\n{name}, score", report.matrix_text(table, calibration.layers1, calibration.layers2)]
        above = sum(found.p <= LEVEL for found in grid.cells.values())
        lines.append(f"{above} of {len(grid.cells)} pairs are more alike than by chance, each for itself")
        for what, found in (("best", grid.best), ("mean", grid.mean)):
            lines.append(
                f"the {what} of all: {found.value:.4f}, threshold {found.threshold:.4f}, p {found.p:.4f}, "
                f"score {found.score:.4f}"
            )
    lines += [report.fill(f"{name}: not calibrated: {reason}") for name, reason in calibration.refused.items()]
    note = "score: 0 at the threshold and below, 1 for equal representations"
    return [*lines, report.fill(note + "; that of the best knows that it was chosen" * (not single))]


def grid_text(comparison: Comparison, name: str) -> str:
    """A metric's matrix, and how often a layer is most similar to the layer of its own name."""
    table, layers = comparison.table(name), (comparison.layers1, comparison.layers2)
    metric = MEASURES[name]
    heading = report.fill(f"{name}: {metric.meaning}; {metric.more_alike} means more alike")
    lines = [f"\n{heading}", report.matrix_text(table, *layers)]
    if layers[0] == layers[1] and not np.isnan(table).any():
        best = table.argmax(1) if metric.higher_is_better else table.argmin(1)
        hits = int((best == np.arange(len(table))).sum())
        lines.append(f"{hits} of {len(table)} layers are most similar to their namesake")
    return "\n".join(lines)


def doubts_text(comparison: Comparison, refused: pd.DataFrame, warnings: pd.DataFrame) -> list[str]:
    """One line for each method about pairs without a value, and one for each kind of warning."""
    lines = []
    for name, rows in refused.groupby("method", sort=False):
        first = rows.iloc[0]
        lines.append(
            f"{name}: no value for {len(rows)} of {len(comparison.cells)} pairs; "
            f"{first['layer1']} and {first['layer2']}: {first['reason']}"
        )
    if len(warnings):
        first = warnings.iloc[0]
        pairs = len(warnings[["layer1", "layer2"]].drop_duplicates())
        lines.append(
            f"warnings for {pairs} pairs (all in the result); {first['layer1']} and {first['layer2']}: "
            f"{first['warning']}"
        )
    return [report.fill(line) for line in lines]


def main(argv: list[str] | None = None) -> None:
    cli.run_script(parse_args, run, argv, less_memory=cli.GROUPS_HELP)


if __name__ == "__main__":
    main()
