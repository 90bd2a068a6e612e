"""Compare the activations of two trained networks on the same images: two layers, or every pair of many."""

import argparse
import itertools
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.cli import arguments
from src.cli import output as cli
from src.core.config import choose_device
from src.core.errors import UserError
from src.cutting.freeze import freeze
from src.cutting.parts import head
from src.cutting.selection import ALL, choose_layers
from src.dataset import Split, canonical_dataset, known_datasets
from src.evaluation.calibration import DRAWS, calibrate
from src.evaluation.certainty import Certainty, certainty_of, require_room, sample_of
from src.evaluation.identical import (
    CACHE_FOLDER,
    IMAGES,
    STEPS,
    IdenticalCache,
    IdenticalInputs,
    error_text,
    identical_inputs,
)
from src.evaluation.layer_grid import Comparison, compare_layers, join_rows, layer_label
from src.metrics import FUNCTIONAL
from src.metrics.algebra.products import described
from src.metrics.certainty.uncertainty import Difference, difference
from src.networks.opening import Named, open_network
from src.networks.presentation import NetworksOnDataset, put_on_dataset
from src.results import plots
from src.results import text as report
from src.results.comparison_text import calibration_lines, calibration_record, doubts_text, grid_text, versus_lines
from src.results.titles import network_name
from src.stitching.keys import front_inputs, key_inputs

IRI = "iri"  # identically represented inputs


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
    group.add_argument(
        "--versus",
        nargs=2,
        metavar=("SPEC", "LAYER"),
        help="is the first network's layer more like the second's than like this layer of a third network",
    )
    group.add_argument(
        "--on",
        choices=("data", IRI),
        default="data",
        help="measure on the images, or, for each layer of the first network, on inputs that it cannot tell from them",
    )
    images = f"so many images of a fixed subset, with --on {IRI} (default: all on a GPU, else {IMAGES})"
    group.add_argument("--iri-images", type=arguments.positive, metavar="N", help=images)
    steps = f"steps that make such inputs (default: {STEPS})"
    group.add_argument("--iri-steps", type=arguments.natural, metavar="N", help=steps)
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
        alike = identical_of(args, on_data, split, layers[0]) if args.on == IRI else {}
        split = alike[layers[0][0]].split if single and alike else split
        options = {"view": args.view, "batch_size": args.batch_size, "memory": 1e9 * args.memory}
        options["layouts"] = front.layout, end.layout
        known = {"group": args.group_at, **on_data.classes_known}
        pair, is_sure = (layers[0][0], layers[1][0]), bool(args.intervals or args.permutations)
        if is_sure:
            room = {"memory": options["memory"], "layouts": options["layouts"]}
            require_room(networks, pair, on_data.sample, len(split), **room)
        rows = [([layer], alike[layer].split) for layer in layers[0]] if alike else [(layers[0], split)]
        comparison = join_rows(
            [
                compare_layers(
                    networks, (row, layers[1]), sample, images, args.methods, on_message=cli.notice, **known, **options
                )
                for row, images in rows
            ]
        )
        certainty = None
        differences = versus(args, on_data, split, pair, options, device) if args.versus else {}
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
        if args.versus:
            spec, layer = args.versus
            lines += versus_lines(spec, layer, differences)
            result["versus"] = {
                name: found if isinstance(found, str) else asdict(found) for name, found in differences.items()
            }
        lines += [report.fill(f"on {error_text(inputs, layer_label(layer))}") for layer, inputs in alike.items()]
        if alike:
            result["identical"] = {layer_label(layer): inputs.facts() for layer, inputs in alike.items()}
        result = {"networks": facts, "frame": comparison.frame(), **result, "products": described(device)}
        cli.publish(args, path, result, "\n".join(lines), draw=plots.draw_pair if single else plots.draw_grid)
    return result


def identical_of(
    args: argparse.Namespace, on_data: NetworksOnDataset, split: Split, layers: list[str]
) -> dict[str, IdenticalInputs]:
    """For each layer of the first network inputs that it cannot tell from the images."""
    front = on_data.networks[0]
    cache = IdenticalCache(Path(args.out_dir) / CACHE_FOLDER, front_inputs(key_inputs(on_data, [])), cli.notice)
    usual = len(split) if split.device.type == "cuda" else IMAGES
    how: dict[str, Any] = {
        "count": args.iri_images or usual,
        "steps": STEPS if args.iri_steps is None else args.iri_steps,
    }
    return {
        layer: identical_inputs(freeze(head(front.network, layer)).to(split.device), split, layer, cache, **how)
        for layer in layers
    }


def short_name(text: str, layers: list[str]) -> str:
    """What stands for a choice of layers in the name of the result file."""
    if text == ALL:
        return ALL
    return layer_label(layers[0]) if len(layers) == 1 else f"{layers[0]}..{layers[-1]}"


def check_certainty(args: argparse.Namespace, *, single: bool) -> None:
    """Raise UserError where intervals or permutations are asked of more than one pair, or of groups of images."""
    if args.on == IRI and (args.calibrate or args.versus):
        option = "--versus" if args.versus else "--calibrate"
        raise UserError(f"--on {IRI} excludes {option}: each layer of the first network has images of its own")
    for option in ("iri_images", "iri_steps"):
        if getattr(args, option) is not None and args.on != IRI:
            raise UserError(f"--{option.replace('_', '-')} is of --on {IRI}")
    for option in ("intervals", "permutations", "versus"):
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


def versus(
    args: argparse.Namespace,
    on_data: NetworksOnDataset,
    split: Split,
    pair: tuple[str, str],
    options: dict[str, Any],
    device: Any,
) -> dict[str, Difference | str]:
    """By method, s(A, B) - s(A, C) for the third network and its layer, or why there is none."""
    spec, layer = args.versus
    front = on_data.networks[0]
    how = {"dataset": args.dataset, "size": args.image_size, "on_message": cli.notice}
    # as it was opened: what preprocesses images for the one pair may not for the other
    opened = open_network(Named(args.front_model), model=args.model1 and Named(args.model1), **how)
    versus_pair = cli.show(
        put_on_dataset([opened, open_network(Named(spec), **how)], args.dataset, size=args.image_size)
    )
    if versus_pair.spec.size != on_data.spec.size:
        raise UserError(f"--versus: {spec} sees images of {versus_pair.spec.size} pixels; say --image-size for all")
    (chosen,) = choose_layers(versus_pair.networks[1].network, layer, versus_pair.sample)
    room = {name: options[name] for name in ("batch_size", "memory")}
    images = versus_pair.split(args.dataset_type, device=device, **arguments.reading(args, cli.notice))
    samples = [
        sample_of(
            (each.networks[0].network, each.networks[1].network),
            (pair[0], last),
            each.sample,
            data,
            layouts=(front.layout, each.networks[1].layout),
            **room,
        )
        for each, data, last in ((on_data, split, pair[1]), (versus_pair, images, chosen))
    ]
    differences: dict[str, Difference | str] = {}
    for name in args.methods:
        try:
            if name in FUNCTIONAL:
                raise UserError("it is of decisions, whatever the layers")
            differences[name] = difference(name, args.view, *samples)
        except UserError as error:
            differences[name] = str(error)
    return differences


def main(argv: list[str] | None = None) -> None:
    cli.run_script(parse_args, run, argv, less_memory=cli.GROUPS_HELP)


if __name__ == "__main__":
    main()
