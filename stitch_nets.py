"""Stitch two trained networks: the front of one, one trainable affine layer, the end of the other."""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from src import arguments, cli, plots, report, results
from src.config import choose_device
from src.controls import CONTROLS, choose_controls
from src.layers import choose_layers
from src.learner import History
from src.sources import untrained
from src.stitch import Plan, Tell, stitch
from src.stitch_folder import SET, check_states, file_names, resume_states, state_files
from src.stitch_keys import stitch_keys
from src.stitch_table import stitch_table, stitches_table
from src.stitching import Cuts, StitchSpec
from src.stitching.options import OPTIONS, VARIED
from src.stitching.targets import TARGETS
from src.training import Resume
from src.viewing import Viewing


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
    group = parser.add_argument_group("training and evaluation")
    arguments.add_amp_option(group)
    group.add_argument(
        "--controls",
        type=arguments.checked(choose_controls),
        metavar="LIST",
        help=f"hold each stitch against controls: all, or some of {', '.join(CONTROLS)} (default: none)",
    )
    group.add_argument("--ood", action="store_true", help="ask whether stitched activations look like the end's own")
    group.add_argument("--no-similarity", action="store_true", help="leave out CKA, the dearest part of many stitches")
    arguments.add_memory_option(group, "GB of moments held at once; more stitches than fit are taken in groups")
    group.add_argument("--resume", action="store_true", help="go on with the interrupted run of --run-name")
    arguments.add_run_options(
        parser, plot="matrices, singular values, learning curve and accuracies, or what several stitches have in common"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Stitch, train, evaluate, print and write; returns the result of each stitch."""
    settings = settings_of(args)
    if args.resume and not args.run_name:
        raise ValueError("--resume needs the --run-name of the run to go on with: the folder that it left behind")
    if args.plot:
        plots.require_matplotlib()
    device = choose_device(args.device)
    viewing = cli.open_pair(args, labelled=any(not TARGETS[one.target_type].teachers for one in settings))
    front, end = viewing.networks
    scored = viewing
    if args.evaluate_on:
        scored = cli.show(viewing.elsewhere(args.evaluate_on, size=args.image_size))
    specs = [
        replace(setting, front_layer=one, end_layer=other)
        for one, other in layer_pairs(args, viewing)
        for setting in settings
    ]
    networks, asked = (front.network.to(device), end.network.to(device)), (front.layout, end.layout)
    cuts = Cuts(*networks, specs, viewing.sample.to(device), layouts=asked)
    for line in cuts.notes:
        cli.notice(f"note: {line}")
    names = file_names(specs)
    single = len(specs) == 1
    with cli.result_paths(args, names, picture=None if single else SET) as paths:
        folder = paths[0].parent if paths[0] else None
        state = states_in(folder, names, args, viewing) if folder else None
        how = {"device": device, **arguments.reading(args, cli.notice)}
        train, val = viewing.split("train", **how), scored.split("val", **how)
        keys = stitch_keys(cuts, viewing, train, val)
        plan = Plan(
            similarity=not args.no_similarity,
            labelled=viewing.labelled,
            ood=args.ood,
            controls=args.controls or (),
            fresh=lambda seed: viewing.seen(untrained(front, seed), front),
            memory=1e9 * args.memory,
            resume=state,
            tell=Tell(cli.notice, teller(specs, args)),
        )
        outcomes = stitch(cuts, train, val, plan)
        about = {"weights": {"front": front.facts(), "end": end.facts()}}
        found = [
            {"params": cli.parameters(args) | asdict(spec), "key": key, **about, **outcome}
            for spec, key, outcome in zip(specs, keys, outcomes, strict=True)
            if isinstance(outcome, dict)
        ]
        kept = [path for path, outcome in zip(paths, outcomes, strict=True) if isinstance(outcome, dict)]
        publish(args, kept, found, single=single)
        refuse_diverged(dict(zip(names, outcomes, strict=True)))
        if folder:
            for file in state_files(folder, names):
                file.unlink(missing_ok=True)
    return found


def settings_of(args: argparse.Namespace) -> list[StitchSpec]:
    """Every combination of the options that were given several values, before layers are known.

    Raises ValueError for one that would be refused alone.
    """
    rate = 1e-2 if args.whiten else 1e-3
    values = {field.name: getattr(args, field.name) for field in fields(StitchSpec) if not field.name.endswith("layer")}
    values["lr"] = values["lr"] or rate
    lists = [values[name] if isinstance(values[name], list) else [values[name]] for name in VARIED]
    chosen = (dict(zip(VARIED, combination, strict=True)) for combination in itertools.product(*lists))
    return [StitchSpec("", "", **(values | some)) for some in chosen]


def layer_pairs(args: argparse.Namespace, viewing: Viewing) -> list[tuple[str, str]]:
    (front, end), sample = viewing.networks, viewing.sample
    layers = [
        choose_layers(network.network, text, sample)
        for network, text in ((front, args.front_layer), (end, args.end_layer))
    ]
    if args.pairs == "all":
        return list(itertools.product(*layers))
    if len(layers[0]) != len(layers[1]):
        raise ValueError(
            f"--pairs zip needs as many front layers as end layers, not {len(layers[0])} and {len(layers[1])}"
        )
    return list(zip(*layers, strict=True))


def teller(specs: Sequence[StitchSpec], args: argparse.Namespace) -> Callable[[StitchSpec, History], None]:
    """A line on stderr after each epoch; with many stitches, that of the first alone."""

    def tell(spec: StitchSpec, history: History) -> None:
        if spec == specs[0]:
            cli.tell_epoch(history, spec.epochs, always=args.debug)

    return tell


def states_in(
    folder: Path, names: Sequence[str], args: argparse.Namespace, viewing: Viewing
) -> Callable[[Sequence[StitchSpec]], Resume]:
    if text := check_states(folder, names, resume=args.resume, overwrite=args.overwrite):
        cli.notice(text)
    networks = viewing.networks
    about = dict(zip(("front weights", "end weights"), (network.sha256 for network in networks), strict=True))
    about |= {"dataset": viewing.dataset} | ({"controls": args.controls} if args.controls else {})
    about |= {name: getattr(args, name) for name in ("evaluate_on", "image_size") if getattr(args, name)}
    about |= {f"{role} layout": one.layout for role, one in zip(("front", "end"), networks, strict=True) if one.layout}
    return resume_states(folder, names, about, cli.tell_resumed)


def publish(
    args: argparse.Namespace, paths: Sequence[Path | None], found: list[dict[str, Any]], *, single: bool
) -> None:
    """Print and write what came of the stitches that came through."""
    if not found:
        return
    if single:
        cli.publish(args, cli.Place(paths[0]), found[0], stitch_table(found[0]), draw=plots.draw_stitch)
        return
    if not args.json:
        cli.say(stitches_table(found))
    for path, result in zip(paths, found, strict=True):
        if path:
            results.write(path, result | results.provenance(), overwrite=args.overwrite)
    pictures = cli.picture_paths(args, paths[0].with_name(f"{SET}.pkl")) if paths[0] and args.plot else []
    for picture in pictures:
        plots.draw_stitches(found, picture)
    places = {"results": str(paths[0].parent) if paths[0] else None}
    places |= {"picture": ", ".join(map(str, pictures))} if pictures else {}
    if args.json:
        cli.say(report.to_json({"stitches": found, **places}))
    elif paths[0]:
        cli.say("\n".join(f"{what}: {where}" for what, where in places.items()))


def refuse_diverged(outcomes: dict[str, Any]) -> None:
    failed = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, FloatingPointError)}
    if len(outcomes) == 1 and failed:
        raise next(iter(failed.values()))
    if failed:
        name, error = next(iter(failed.items()))
        raise FloatingPointError(
            f"{len(failed)} of {len(outcomes)} stitches diverged and have no result; {name}: {error}"
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    remedy = "--resume with the --run-name of its folder goes on from the last whole epoch"
    less_memory = "lower --batch-size, or choose smaller layers" + ", or leave out --flatten" * args.flatten
    with cli.one_line_errors(debug=args.debug, interrupted=f"interrupted; {remedy}", less_memory=less_memory):
        run(args)


if __name__ == "__main__":
    main()
