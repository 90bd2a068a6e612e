"""Stitch two trained networks: the front of one, one trainable affine layer, the end of the other."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from src import arguments, cli, plots, report
from src.config import choose_device
from src.dataset import Split, load_split
from src.evaluation import PairView, agreement, evaluate, hits, score, stitched_logits, view_pair
from src.metrics.moments import PairedMoments, least_squares
from src.stitching import (
    INITS,
    MASKS,
    TARGETS,
    MaskedStitch,
    Pair,
    StitchLayer,
    StitchObjective,
    check_options,
    check_sizes,
    cut_pair,
    from_arrays,
    initial_stitch,
    needs_moments,
)
from src.training import OPTIMIZERS, History, Recipe, fit

DEBUG_STEPS = 4  # batches an epoch with --debug
FIT_COLUMNS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
# the published keys: cka is the front network's, cka_frank that of the trained stitch
PUBLISHED_SUFFIX = {"front": "", "before": "_before", "after": "_frank", "ps_inv": "_ps_inv"}
# options that do not change the trained stitch: a resumed run may differ in them
IRRELEVANT = {"run_name", "out_dir", "overwrite", "resume", "num_workers", "device", "plot", "json"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "stitch_nets",
        "Sew the front of one network to the end of another with one affine layer, train that layer, and compare.",
        "model_weights/Tiny10/Digits/in0-gn0/440.pt model_weights/Tiny10/Digits/in1-gn1/440.pt bn3 bn3 -i ps_inv\n"
        "a.pt b.pt bn7 bn7 -d cifar10 --low-rank 8 --target-type soft_2 --plot",
    )
    arguments.add_pair_arguments(parser)
    parser.add_argument("front_layer", help="layer of the first network to cut after")
    parser.add_argument("end_layer", help="layer of the second network to replace")
    arguments.add_pair_options(parser)
    group = parser.add_argument_group("images")
    arguments.add_dataset_option(group)
    group.add_argument("-b", "--batch-size", type=arguments.positive, default=128, metavar="N", help="images a batch")
    arguments.add_worker_option(group)
    add_stitch_options(parser.add_argument_group("stitch"))
    add_training_options(parser.add_argument_group("training"))
    arguments.add_run_options(parser, plot="matrices, singular values, learning curve and accuracies")
    return parser.parse_args(argv)


def add_stitch_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-i", "--init", choices=sorted(INITS), default="random", help="the map before training")
    group.add_argument(
        "-m",
        "--mask",
        choices=sorted(MASKS),
        default="identity",
        metavar="MASK",
        help=f"which weights there are: {', '.join(sorted(MASKS))}",
    )
    group.add_argument(
        "-r", "--low-rank", type=arguments.positive, metavar="RANK", help="a product of this rank (default: full rank)"
    )
    group.add_argument("--orthogonal", action="store_true", help="keep the matrix orthogonal")
    group.add_argument("--flatten", action="store_true", help="map all features, not channels alike at all positions")
    group.add_argument("--resize", action="store_true", help="interpolate to the end layer's height and width")


def add_training_options(group: argparse._ArgumentGroup) -> None:
    weight = arguments.natural_float
    for flags, kind, default, metavar, text in (
        (("-e", "--epochs"), arguments.natural, 30, "N", "passes over the training images"),
        (("-lr", "--lr"), arguments.positive_float, 1e-3, "RATE", "learning rate, x0.1 at 1/3 and 2/3 of the epochs"),
        (("-wd", "--weight-decay"), weight, 1e-4, "X", "pull of the weights towards 0"),
        (("--l1",), weight, 0.0, "X", "weight of the mean |W| in the loss"),
        (("--cka-reg",), arguments.finite_float, 0.0, "X", "weight in the loss of CKA with the end network's own"),
        (("--temperature",), arguments.positive_float, 1.0, "T", "divides the logits of soft targets"),
        (("--seed",), arguments.seed, 0, "N", "seed of the init, the order of images and augmentation"),
        (("-s", "--save-frequency"), arguments.positive, 10, "N", "keep the map every N x EPOCHS iterations"),
    ):
        group.add_argument(*flags, type=kind, default=default, metavar=metavar, help=text)
    group.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adam", help="how to descend")
    group.add_argument(
        "--target-type", choices=sorted(TARGETS), default="hard", help="true labels (hard), or what the networks say"
    )
    arguments.add_amp_option(group)
    group.add_argument("--resume", action="store_true", help="go on with the interrupted run of --run-name")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stitch, train, evaluate, print and write; returns the result."""
    options = vars(args)
    check_options(options)
    if args.plot:
        plots.require_matplotlib()
    device = choose_device(args.device)
    recipe = Recipe(args.epochs, args.batch_size, args.optimizer, args.lr, args.weight_decay)
    front, end = cli.load_pair(args)
    pair = cut_pair(
        front.network.to(device),
        end.network.to(device),
        args.front_layer,
        args.end_layer,
        front.sample.to(device),
        flatten=args.flatten,
        resize=args.resize,
    )
    check_sizes(options, pair.geometry)
    with cli.result_path(args, f"{args.front_layer or 'output'}-{args.end_layer or 'output'}") as path:
        resume_file = path.with_suffix(".resume.pt")
        check_resume(args, resume_file)
        train, val = (
            load_split(front.dataset, split, device=device, num_workers=args.num_workers) for split in ("train", "val")
        )
        stitch = start_of(pair, train, args).to(device)
        initial = stitch.arrays()
        identity = {key: value for key, value in cli.parameters(args).items() if key not in IRRELEVANT}
        identity |= {"front weights": front.sha256, "end weights": end.sha256}
        history = train_stitch(pair, stitch, train, val, args, recipe, identity, resume_file)
        del train  # room for the activations
        view = view_pair(pair, val, keep=True, title="activations on val")
        if view.cka_group:
            cli.notice(f"cka: mean over groups of {view.cka_group} images, since all activations are too large to keep")
        maps = all_maps(stitch, initial, view.moments)
        result = {
            "params": cli.parameters(args),
            "weights": {"front": front.facts(), "end": end.facts()},
            "geometry": {"front": pair.geometry.front_shape, "end": pair.geometry.end_shape},
            "trans_fit": pd.DataFrame(history.epochs, columns=FIT_COLUMNS),
            "trans_history": {iteration: published(state) for iteration, state in history.snapshots.items()},
            "trans_m": maps,
            "cka_group_at": view.cka_group,
            **compare_maps(view, maps),
        }
        cli.publish(args, path, result, report.stitch_table(result), draw=plots.draw_stitch)
        resume_file.unlink(missing_ok=True)
    return result


def check_resume(args: argparse.Namespace, resume_file: Path) -> None:
    """Do not throw away what an interrupted run has learnt, nor start anew in silence."""
    if resume_file.exists() and not args.resume and not args.overwrite:
        raise FileExistsError(f"{resume_file} is of an interrupted run; --resume goes on, --overwrite starts anew")
    if args.resume and not resume_file.exists():
        cli.notice(f"no {resume_file} to go on from; training starts at the first epoch")


def start_of(pair: Pair, train: Split, args: argparse.Namespace) -> StitchLayer:
    """The stitch before training; a pass over the training images, not augmented, where init or mask ask for it."""
    moments = None
    if needs_moments(args.init, args.mask):
        moments = view_pair(pair, train, keep=False, title="moments on train").moments
    stitch = initial_stitch(
        pair.geometry,
        moments,
        init=args.init,
        mask=args.mask,
        rank=args.low_rank,
        orthogonal=args.orthogonal,
        seed=args.seed,
    )
    if not stitch.matrix().any():
        cli.notice(f"warning: --mask {args.mask} keeps no weight of --init {args.init}; all weights start at zero")
    return stitch


def train_stitch(
    pair: Pair,
    stitch: StitchLayer,
    train: Split,
    val: Split,
    args: argparse.Namespace,
    recipe: Recipe,
    identity: dict[str, Any],
    resume_file: Path,
) -> History:
    if not args.resume:
        resume_file.unlink(missing_ok=True)
    stitched = pair.stitched(stitch)
    objective = StitchObjective(
        pair, stitch, train.spec.task, args.target_type, args.temperature, args.l1, args.cka_reg, args.amp
    )
    return fit(
        stitch,
        train,
        objective,
        recipe=recipe,
        seed=args.seed,
        validate=lambda: evaluate(stitched, val),
        snapshot=stitch.snapshot,
        snapshot_every=args.save_frequency * max(1, args.epochs),
        after_epoch=lambda history: cli.tell_epoch(history, recipe.epochs, always=args.debug),
        on_resume=lambda history: cli.tell_resumed(history, recipe.epochs),
        resume_file=resume_file,
        identity=identity,
        max_steps=DEBUG_STEPS if args.debug else None,
        title=f"stitch {args.front_layer} -> {args.end_layer}",
    )


def all_maps(stitch: StitchLayer, initial: dict[str, Any], moments: PairedMoments) -> dict[str, Any]:
    """The maps of a result: before, after, their difference; least squares on validation images, and it minus after."""
    after = stitch.arrays()
    exact = least_squares(moments)
    ps_inv = {"w": exact.w.cpu().numpy().reshape(after["w"].shape), "b": exact.b.cpu().numpy()}
    mask = stitch.mask.cpu().numpy() if isinstance(stitch, MaskedStitch) else np.ones_like(after["w"])
    return {
        "before": initial,
        "after": after,
        "diff": difference(after, initial),
        "ps_inv": ps_inv,
        "ps_frank": difference(ps_inv, after),
        "mask": {"w": mask.reshape(after["w"].shape), "b": np.ones_like(after["b"])},
    }


def compare_maps(view: PairView, maps: dict[str, Any]) -> dict[str, Any]:
    """Scores, agreement with the end network and similarity to it for both networks and each map."""
    pair, val = view.pair, view.split
    task, labels = val.spec.task, val.labels
    stitches = {name: from_arrays(maps[name], pair.geometry).to(val.device) for name in ("before", "after", "ps_inv")}
    similar = {PUBLISHED_SUFFIX[name]: values for name, values in view.similarities(stitches).items()}
    logits = stitched_logits(pair, stitches, val)
    couples = {"m2_frank": ("end", "after"), "m2_ps_inv": ("end", "ps_inv"), "frank_ps_inv": ("after", "ps_inv")}
    return {
        "model_results": {
            {"after": "trans"}.get(name, name): score(values, labels, task) for name, values in logits.items()
        },
        "hits": {key: hits(logits[a], logits[b], labels, task) for key, (a, b) in couples.items()},
        "m2_sim": {
            {"front": "m1"}.get(name, name): agreement(values, logits["end"], labels, task)
            for name, values in logits.items()
            if name != "end"
        },
        **{f"cka{suffix}": values["cka"] for suffix, values in similar.items()},
        **{f"l2{suffix}": values["l2"] for suffix, values in similar.items()},
    }


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] - other[key] for key in ("w", "b")}


def published(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """A snapshot of the stitch under the names that published results give its parameters."""
    return {f"transform.{name}": value.numpy() for name, value in state.items()}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    remedy = "--resume with the --run-name of its folder goes on from the last whole epoch"
    less_memory = "lower --batch-size, or choose smaller layers" + ", or leave out --flatten" * args.flatten
    with cli.one_line_errors(debug=args.debug, interrupted=f"interrupted; {remedy}", less_memory=less_memory):
        run(args)


if __name__ == "__main__":
    main()
