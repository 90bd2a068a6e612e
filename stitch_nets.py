"""Stitch two trained networks: the front of one, one trainable affine layer, the end of the other."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from src.cli import arguments
from src.cli import output as cli
from src.cli.stitch_output import epochs_of, publish, refuse_diverged
from src.core.errors import UserError
from src.cutting.selection import choose_layers, pairs_of_layers
from src.evaluation.adversarial import with_bound
from src.evaluation.identical import ALL_IMAGES, CACHE_FOLDER, IMAGES, IdenticalCache
from src.networks.architectures import untrained
from src.networks.presentation import NetworksOnDataset
from src.results import plots
from src.stitching import CutNetworks, StitchSpec, combinations, spec_names
from src.stitching.controls import CONTROLS, choose_controls
from src.stitching.keys import front_inputs, key_inputs, stitch_keys
from src.stitching.options import LADDER, OPTIONS, blind_labels, ladder
from src.stitching.run import Callbacks, Outcome, StitchPlan, stitch
from src.stitching.states import SET, check_same_stitches, check_states, resume_states, state_files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "stitch_nets",
        "Sew the front of one network to the end of another with one affine layer, train that layer, and compare.",
        "model_weights/Tiny10/Digits/in0-gn0/440.pt model_weights/Tiny10/Digits/in1-gn1/440.pt bn3 bn3 -i ps_inv\n"
        "a.pt b.pt 'bn*' 'bn*' --resize -e 0 -i ps_inv --no-similarity --plot",
    )
    arguments.add_pair_arguments(parser)
    several = "a name, several with commas, a pattern or all"
    parser.add_argument("front_layer", help=f"layer of the first network to cut after: {several}")
    parser.add_argument("end_layer", help=f"layer of the second network to replace: {several}")
    arguments.add_pair_options(parser)
    group = parser.add_argument_group("images")
    arguments.add_dataset_option(group)
    group.add_argument(
        "--evaluate-on",
        type=arguments.dataset_name,
        metavar="DATASET",
        help="score on the validation images of this data set, of the same classes (default: those of -d)",
    )
    arguments.add_reading_options(group)
    arguments.add_spec_options(parser, OPTIONS, StitchSpec("", ""))
    group = parser.add_argument_group("stitch")
    group.add_argument(
        "--pairs",
        choices=("all", "zip"),
        default="all",
        help="of several layers: each front layer with each end layer, or the first with the first",
    )
    group.add_argument("--family-ladder", action="store_true", help=f"stitches of all families: {LADDER}")
    group = parser.add_argument_group("training and evaluation")
    arguments.add_precision_options(group)
    group.add_argument(
        "--controls",
        type=arguments.checked(choose_controls),
        metavar="LIST",
        help=f"hold each stitch against controls: all, or some of {', '.join(CONTROLS)} (default: none)",
    )
    group.add_argument(
        "--batch-dependent",
        action="store_true",
        help="stitch networks whose answers depend on the rest of a batch",
    )
    group.add_argument("--ood", action="store_true", help="ask whether stitched activations look like the end's own")
    group.add_argument("--no-similarity", action="store_true", help="leave out CKA, the dearest part of many stitches")
    arguments.add_adversarial_option(group, "robust accuracy: decisions about images changed against each network")
    arguments.add_memory_option(
        group, "GB of moments, or of activations for validation, held at once; more stitches go in groups"
    )
    group.add_argument("--resume", action="store_true", help="go on with the interrupted run of --run-name")
    arguments.add_run_options(
        parser, plot="matrices, singular values, learning curve and accuracies, or what several stitches have in common"
    )
    return parser.parse_args(with_bound(sys.argv[1:] if argv is None else argv))


def plan_of(
    args: argparse.Namespace, on_data: NetworksOnDataset, around: dict[str, Any], *, resume: Any, progress: Any
) -> StitchPlan:
    """What is asked for beside the stitches themselves."""
    cache = None if args.no_save else Path(args.out_dir) / CACHE_FOLDER
    return StitchPlan(
        similarity=not args.no_similarity,
        labelled=on_data.end_labelled,
        front_labelled=on_data.shares_classes[0],
        comparable=on_data.comparable,
        ood=args.ood,
        adversarial=args.adversarial,
        controls=args.controls or (),
        fresh=lambda seed: on_data.with_preprocessing(untrained(on_data.networks[0], seed), on_data.networks[0]),
        memory=1e9 * args.memory,
        resume=resume,
        identical=IdenticalCache(cache, front_inputs(around), cli.notice),
        callbacks=Callbacks(cli.notice, progress),
    )


def made_of(
    specs: Sequence[StitchSpec],
    keys: Sequence[str],
    outcomes: Sequence[Outcome],
    params: dict[str, Any],
    on_data: NetworksOnDataset,
) -> Iterator[dict[str, Any]]:
    """The results of those stitches that came through."""
    facts = [network.facts() for network in on_data.networks]
    about = {"weights": dict(zip(("front", "end"), facts, strict=True))}
    for spec, key, outcome in zip(specs, keys, outcomes, strict=True):
        if isinstance(outcome, dict):
            yield {"params": params | asdict(spec), "key": key, **about, **outcome}


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Stitch, train, evaluate, print and write; returns the result of each stitch."""
    device = cli.device_for_training(args)
    settings = combinations(vars(args), lambda: ALL_IMAGES if device.type == "cuda" else IMAGES)
    if args.resume and not args.run_name:
        raise UserError("--resume needs the --run-name of the run to go on with: the folder that it left behind")
    if args.plot:
        plots.require_matplotlib()
    on_data = cli.open_pair(args, targets={setting.target_type for setting in settings})
    scored = on_data
    if args.evaluate_on:
        scored = cli.show(on_data.elsewhere(args.evaluate_on, size=args.image_size))
    cuts = cut(args, on_data, settings, device)
    names = spec_names(cuts.specs)
    single = len(names) == 1
    interrupted = partial(state_files, names=names) if args.resume else None
    picture = None if single else SET
    with cli.result_paths(args, names, picture=picture, interrupted=interrupted) as paths, cli.resumable(paths):
        folder = paths[0].parent if paths[0] else None
        if folder and (text := check_states(folder, names, resume=args.resume, overwrite=args.overwrite)):
            cli.notice(text)
        how = {"device": device, **arguments.reading(args, cli.notice)}
        train, val = on_data.split("train", **how), scored.split("val", **how)
        around = key_inputs(on_data, [split.digest() for split in (train, val)], device=device)
        keys = stitch_keys(cuts, around)
        about, state = identity(args, on_data, around), None
        if folder:
            if not single:
                check_same_stitches(state_files(folder, names), cuts.specs, about)
            state = resume_states(folder, names, about, cli.tell_resumed)
        plan = plan_of(args, on_data, around, resume=state, progress=epochs_of(cuts.specs, always=args.debug))
        outcomes = stitch(cuts, train, val, plan)
        params = cli.parameters(args) | on_data.dataset_param
        results = list(made_of(cuts.specs, keys, outcomes, params, on_data))
        kept = [path for path, outcome in zip(paths, outcomes, strict=True) if isinstance(outcome, dict)]
        publish(args, kept, results, single=single)
        refuse_diverged(dict(zip(names, outcomes, strict=True)))
        if folder:
            for file in state_files(folder, names):
                file.unlink(missing_ok=True)
    return results


def cut(args: argparse.Namespace, on_data: NetworksOnDataset, settings: list[StitchSpec], device: Any) -> CutNetworks:
    """The two networks, cut at the layers that the arguments mean for all that the settings ask."""
    front, end = on_data.networks
    fronts, ends = (
        choose_layers(network.network, text, on_data.sample)
        for network, text in ((front, args.front_layer), (end, args.end_layer))
    )
    layers = pairs_of_layers(fronts, ends, args.pairs)
    specs = [replace(setting, front_layer=one, end_layer=other) for one, other in layers for setting in settings]
    networks, asked = (front.network.to(device), end.network.to(device)), (front.layout, end.layout)
    cuts = CutNetworks(*networks, specs, on_data.sample.to(device), layouts=asked)
    if args.family_ladder:
        specs = [rung for spec in specs for rung in ladder(spec, cuts.geometry(spec.cut))]
        cuts = CutNetworks(*networks, specs, on_data.sample.to(device), layouts=asked)
    for line in [*cuts.notes, *on_data.missing_columns, *blind_labels(specs)]:
        cli.notice(f"note: {line}")
    return cuts


def identity(args: argparse.Namespace, on_data: NetworksOnDataset, around: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must agree in, beside the specs; `around` is what decides all stitches."""
    networks, about = on_data.networks, {name: around[name] for name in ("images", "code", "device") if name in around}
    about |= {"front weights": networks[0].sha256, "end weights": networks[1].sha256, "dataset": on_data.dataset}
    about |= {name: getattr(args, name) for name in ("controls", "evaluate_on", "image_size") if getattr(args, name)}
    asked = zip(("front layout", "end layout"), networks, strict=True)
    return about | {what: network.layout for what, network in asked if network.layout}


def less_memory(args: argparse.Namespace) -> str:
    """What to do where memory is short."""
    return "lower --batch-size, or choose smaller layers" + ", or leave out --flatten" * args.flatten


def main(argv: list[str] | None = None) -> None:
    cli.run_script(parse_args, run, argv, less_memory=less_memory)


if __name__ == "__main__":
    main()
