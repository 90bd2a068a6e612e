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
from src.cutting.selection import ALL, choose_layers
from src.dataset import Split, canonical_dataset, known_datasets
from src.evaluation.activations import keep_activations, require_room
from src.evaluation.calibration import DRAWS, calibrate
from src.evaluation.certainty import OPTIONS, Certainty, certainty_of
from src.evaluation.identical import (
    CACHE_FOLDER,
    DATA,
    IDENTICAL,
    IMAGES,
    STEPS,
    IdenticalCache,
    IdenticalInputs,
    error_text,
    identical_rows,
)
from src.evaluation.layer_grid import Comparison, compare_rows, layer_label
from src.evaluation.passes import batch_of
from src.evaluation.saving import save_activations
from src.metrics import FUNCTIONAL
from src.metrics.algebra.products import described
from src.metrics.certainty.uncertainty import Difference, difference
from src.metrics.engine.plan import Pair
from src.metrics.own import load_own
from src.networks.feature_networks import NONE, FeaturePair
from src.networks.feature_networks import open_sides as open_files
from src.networks.opening import Named, open_network
from src.networks.presentation import NetworksOnDataset, put_on_dataset
from src.networks.source_spec import is_features
from src.results import plots, provenance
from src.results import text as report
from src.results.comparison_text import (
    calibration_lines,
    calibration_record,
    grid_report,
    pair_report,
    versus_lines,
)
from src.results.titles import network_names
from src.stitching.keys import front_inputs, key_inputs

Layers = tuple[list[str], list[str]]


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
    parser.add_argument("dataset", type=dataset_or_none, metavar="dataset", help=f"{text}; {NONE} of two files")
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
    group.add_argument("--intervals", action="store_true", help="95%% intervals over images")
    group.add_argument(
        "--permutations",
        type=arguments.natural,
        default=0,
        metavar="N",
        help="what N random pairings of the images give; CKA's is in closed form",
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
        choices=(DATA, IDENTICAL),
        default=DATA,
        help="measure on the images, or, for each layer of the first network, on inputs that it cannot tell from them",
    )
    images = f"so many images of a fixed subset, with --on {IDENTICAL} (default: all on a GPU, else {IMAGES})"
    group.add_argument("--iri-images", type=arguments.positive, metavar="N", help=images)
    steps = f"steps that make such inputs (default: {STEPS})"
    group.add_argument("--iri-steps", type=arguments.natural, metavar="N", help=steps)
    group.add_argument(
        "--save-activations",
        type=Path,
        metavar="FILE",
        help="write what was compared into a .safetensors, which features:FILE names: layers 1.LAYER and 2.LAYER",
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
        return word == NONE or bool(canonical_dataset(word))
    except UserError:
        return False


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare, print, draw and write; returns the result."""
    if args.plot:
        plots.require_matplotlib()
    device, own = choose_device(args.device), load_own(args.methods)
    on_data = open_sides(args)
    names = args.front_layer, args.end_layer
    chosen = [
        choose_layers(network.network, name, on_data.sample)
        for network, name in zip(on_data.networks, names, strict=True)
    ]
    layers = chosen[0], chosen[1]
    single = ALL not in names and len(layers[0]) == len(layers[1]) == 1
    check_certainty(args, single=single)
    with cli.result_path(args, f"compare_nets-{'-'.join(map(short_name, names, layers))}") as path:
        split = on_data.split(args.dataset_type, device=device, **arguments.reading(args, cli.notice))
        args.batch_size = args.batch_size or batch_of(split)
        alike = {}
        if args.on == IDENTICAL:
            assert isinstance(on_data, NetworksOnDataset)
            alike = identical_of(args, on_data, split, layers[0])
        split = alike[layers[0][0]].split if single and alike else split
        lines, result = compare(args, on_data, layers, split, alike, single=single)
        facts = {"networks": [network.facts() for network in on_data.networks]}
        result = {**facts, **result, **({"own_metrics": own} if own else {}), "products": described(device)}
        cli.publish(args, path, result, "\n".join(lines), draw=plots.draw_pair if single else plots.draw_grid)
    return result


def open_sides(args: argparse.Namespace) -> NetworksOnDataset | FeaturePair:
    """Both networks in front of the images; one or both may be files of activations."""
    specs = Named(args.front_model), Named(args.end_model)
    if not any(map(is_features, specs)):
        if args.dataset == NONE:
            raise UserError(f"{NONE} stands for a data set where both sides are files: features:PATH")
        return cli.open_pair(args)
    if args.dataset == NONE and args.image_size:
        raise UserError("--image-size is of images, and two files see none")
    for option, default in (("on", DATA), ("versus", None), ("model1", None), ("model2", None), ("images", None)):
        if getattr(args, option) not in (default, None):
            reason = "is of all its images" if option == "images" else "has no network that could be asked"
            raise UserError(f"features: excludes --{option}: a file {reason}")
    return cli.show(open_files(specs, args.dataset, size=args.image_size, on_message=cli.notice))


def dataset_or_none(text: str) -> str:
    """argparse type: a data set, or none where both sides are files."""
    return text if text == NONE else arguments.dataset_name(text)


def compare(
    args: argparse.Namespace,
    on_data: NetworksOnDataset | FeaturePair,
    layers: Layers,
    split: Split,
    alike: dict[str, IdenticalInputs],
    *,
    single: bool,
) -> tuple[list[str], dict[str, Any]]:
    """All that is asked about every pair of these layers: lines, and what the result says of it.

    alike: where each layer of the first network has inputs of its own, these.
    """
    front, end = on_data.networks
    given = (front.network, end.network), layers, on_data.sample, split
    room: dict[str, Any] = {"batch_size": args.batch_size, "memory": 1e9 * args.memory}
    room["layouts"] = front.layout, end.layout
    comparison, certainties = measure(args, given, alike, room, on_data.classes_known)
    make_report = pair_report if single else grid_report
    names = network_names([network.facts() for network in on_data.networks])
    (title, *lines), result = make_report(comparison, names, certainties)
    lines = [report.fill(f"{title} ({args.dataset}, {args.dataset_type})"), *lines]
    if args.calibrate:
        draws = None if args.calibrate == DRAWS else args.calibrate
        calibration = calibrate(*given, args.methods, view=args.view, draws=draws, on_message=cli.notice, **room)
        lines += calibration_lines(calibration, single=single)
        result["calibrated"] = calibration_record(calibration, single=single)
    if args.versus:
        assert isinstance(on_data, NetworksOnDataset)
        differences = versus(args, on_data, split, (layers[0][0], layers[1][0]))
        lines += versus_lines(args.versus[0], args.versus[1], differences)
        result["versus"] = {name: how if isinstance(how, str) else asdict(how) for name, how in differences.items()}
    if args.save_activations:
        save(args, on_data, given, room)
    lines += [report.fill(f"on {error_text(inputs, layer_label(layer))}") for layer, inputs in alike.items()]
    if alike:
        result["identical"] = {layer_label(layer): inputs.facts() for layer, inputs in alike.items()}
    return lines, {"frame": comparison.frame(), **result}


def measure(
    args: argparse.Namespace,
    given: tuple[Any, Layers, Any, Split],
    alike: dict[str, IdenticalInputs],
    room: dict[str, Any],
    classes_known: dict[str, bool],
) -> tuple[Comparison, dict[Pair, Certainty]]:
    """Every pair of layers compared, and how sure that is; `given` is what all passes take."""
    networks, layers, sample, split = given
    if args.intervals or args.permutations:
        kept = {name: room[name] for name in ("memory", "layouts")}
        require_room(networks, layers, sample, len(split), options=OPTIONS, **kept)
    rows = {layer: inputs.split for layer, inputs in alike.items()}
    how = {"view": args.view, "on_message": cli.notice, "group": args.group_at, **classes_known, **room}
    comparison = compare_rows(*given, args.methods, rows=rows, **how)
    if not (args.intervals or args.permutations):
        return comparison, {}
    asked = {"with_intervals": args.intervals, "permutations": args.permutations}
    valued = {pair: list(cell.values) for pair, cell in comparison.cells.items()}
    return comparison, certainty_of(*given, valued, view=args.view, **asked, **room)


def save(
    args: argparse.Namespace,
    on_data: NetworksOnDataset | FeaturePair,
    given: tuple[Any, Layers, Any, Split],
    room: dict[str, Any],
) -> None:
    """Write the activations that were compared."""
    about = {"networks": [network.facts() for network in on_data.networks], "dataset": args.dataset}
    about |= {"split": args.dataset_type, "made_by": provenance()["runner_code"]}
    kept = {name: room[name] for name in ("batch_size", "layouts")}
    save_activations(args.save_activations, *given, about=about, overwrite=args.overwrite, **kept)
    cli.notice(f"activations: {args.save_activations}")


def identical_of(
    args: argparse.Namespace, on_data: NetworksOnDataset, split: Split, layers: list[str]
) -> dict[str, IdenticalInputs]:
    """For each layer of the first network inputs that it cannot tell from the images."""
    folder = None if args.no_save else Path(args.out_dir) / CACHE_FOLDER
    cache = IdenticalCache(folder, front_inputs(key_inputs(on_data, [], device=split.device)), cli.notice)
    usual = len(split) if split.device.type == "cuda" else IMAGES
    steps = STEPS if args.iri_steps is None else args.iri_steps
    network = on_data.networks[0].network
    return identical_rows(network, layers, split, cache, steps=steps, count=args.iri_images or usual)


def short_name(text: str, layers: list[str]) -> str:
    """What stands for a choice of layers in the name of the result file."""
    if text == ALL:
        return ALL
    return layer_label(layers[0]) if len(layers) == 1 else f"{layers[0]}..{layers[-1]}"


def check_certainty(args: argparse.Namespace, *, single: bool) -> None:
    """Raise UserError where a third network is held against more than one pair, or any of these against groups."""
    of_one = args.calibrate or args.versus or (not single and (args.intervals or args.permutations))
    if args.on == IDENTICAL and of_one:
        asked = ("versus", "calibrate", "intervals", "permutations")
        option = next(name for name in asked if getattr(args, name))
        text = f"--on {IDENTICAL} excludes --{option}: each layer of the first network has images of its own"
        raise UserError(text + "; name one layer of each" * (option in asked[2:]))
    if (path := args.save_activations) and (path.suffix != ".safetensors" or args.on == IDENTICAL):
        raise UserError("--save-activations writes the activations of the images into a .safetensors, named so")
    if path and path.exists() and not args.overwrite:
        raise FileExistsError(f"{path} exists already; give --overwrite or another name")
    for option in ("iri_images", "iri_steps"):
        if getattr(args, option) is not None and args.on != IDENTICAL:
            raise UserError(f"--{option.replace('_', '-')} is of --on {IDENTICAL}")
    if args.versus and not single:
        raise UserError("--versus is of one pair of layers; name one layer of each network")
    for option in ("intervals", "permutations", "versus"):
        if getattr(args, option) and args.group_at is not None:
            raise UserError(f"--{option} excludes --group-at: it is of all images together")


def versus(
    args: argparse.Namespace,
    on_data: NetworksOnDataset,
    split: Split,
    pair: tuple[str, str],
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
    chosen, *more = choose_layers(versus_pair.networks[1].network, layer, versus_pair.sample)
    if more:
        raise UserError(f"--versus is of one layer of {spec}; {layer} means {len(more) + 1}")
    images = versus_pair.split(args.dataset_type, device=split.device, **arguments.reading(args, cli.notice))
    samples = [
        keep_activations(
            (each.networks[0].network, each.networks[1].network),
            ([pair[0]], [last]),
            each.sample,
            data,
            options=OPTIONS,
            batch_size=args.batch_size,
            memory=1e9 * args.memory,
            layouts=(front.layout, each.networks[1].layout),
        ).sample(0, 0)
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
