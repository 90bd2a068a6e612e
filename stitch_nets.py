"""Stitch two trained networks: the front of one, one trainable affine layer, the end of the other."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Generator, Tensor

from src import cli
from src.activations import feed
from src.checkpoints import Checkpoint
from src.config import choose_device
from src.dataset import Split, load_split
from src.evaluation import agreement, compare_stitches, evaluate, hits, score
from src.metrics.moments import PairedMoments, least_squares
from src.stitching import (
    INITS,
    MASKS,
    TARGETS,
    MaskedStitch,
    Pair,
    StitchLayer,
    StitchObjective,
    build_stitch,
    check_options,
    check_sizes,
    cut_pair,
    from_arrays,
)
from src.training import OPTIMIZERS, History, Recipe, fit

DEBUG_STEPS = 4  # batches an epoch with --debug
FIT_COLUMNS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
# the published keys: cka is the front network's, cka_frank that of the trained stitch
PUBLISHED_SUFFIX = {"front": "", "before": "_before", "after": "_frank", "ps_inv": "_ps_inv"}
# options that do not change the trained stitch: a resumed run may differ in them
IRRELEVANT = {"run_name", "out_dir", "overwrite", "resume", "num_workers", "device"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "stitch_nets",
        "Sew the front of one network to the end of another with one affine layer, train that layer, and compare.",
        "model_weights/Tiny10/Digits/in0-gn0/440.pt model_weights/Tiny10/Digits/in1-gn1/440.pt bn3 bn3 -i ps_inv\n"
        "a.pt b.pt bn7 bn7 -d cifar10 --low-rank 8 --target-type soft_2",
    )
    cli.add_pair_arguments(parser)
    parser.add_argument("front_layer", help="layer of the first network to cut after")
    parser.add_argument("end_layer", help="layer of the second network to replace")
    cli.add_dataset_option(parser)
    add_training_options(parser.add_argument_group("training"))
    add_stitch_options(parser.add_argument_group("stitch"))
    cli.add_run_options(parser)
    return parser.parse_args(argv)


def add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-e", "--epochs", type=cli.natural, default=30, metavar="N", help="(30)")
    group.add_argument("-lr", "--lr", type=cli.positive_float, default=1e-3, help="x0.1 after 1/3 and 2/3 (1e-3)")
    group.add_argument("-b", "--batch-size", type=cli.positive, default=128, metavar="N", help="images a batch (128)")
    group.add_argument("-wd", "--weight-decay", type=cli.natural_float, default=1e-4, help="(1e-4)")
    group.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adam", help="(adam)")
    group.add_argument("--seed", type=cli.natural, default=0, help="of init, batches and augmentation (0)")
    group.add_argument(
        "-s", "--save-frequency", type=cli.positive, default=10, metavar="N", help="x epochs: save every N (10)"
    )
    group.add_argument("--target-type", choices=sorted(TARGETS), default="hard", help="labels, or donors (hard)")
    group.add_argument("--temperature", type=cli.positive_float, default=1.0, help="of soft targets (1)")
    group.add_argument("--l1", type=cli.natural_float, default=0.0, help="weight of the mean |W| in the loss (0)")
    group.add_argument("--cka-reg", type=cli.finite_float, default=0.0, help="weight of CKA in the loss (0)")
    group.add_argument("--resume", action="store_true", help="go on with the interrupted run of --run-name")
    cli.add_worker_option(group)


def add_stitch_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-i", "--init", choices=sorted(INITS), default="random", help="where to start (random)")
    group.add_argument("-m", "--mask", choices=sorted(MASKS), default="identity", help="weights kept (identity: all)")
    group.add_argument("-r", "--low-rank", type=cli.positive, metavar="RANK", help="a product of this rank")
    group.add_argument("--orthogonal", action="store_true", help="keep the matrix orthogonal")
    group.add_argument("--flatten", action="store_true", help="map every value, not channels alike at all positions")
    group.add_argument("--resize", action="store_true", help="interpolate to the end layer's height and width")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stitch, train, evaluate, print and write; returns the result."""
    options = vars(args)
    check_options(options)
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
        train, val = (
            load_split(front.dataset, split, device=device, num_workers=args.num_workers) for split in ("train", "val")
        )
        stitch = initial_stitch(pair, train, args).to(device)
        initial = stitch.arrays()
        resume_file = path.with_suffix(".resume.pt")
        history = train_stitch(pair, stitch, train, val, args, recipe, resume_file)
        maps = all_maps(pair, stitch, initial, val)
        result = {
            "weights": {"front": describe(front), "end": describe(end)},
            "geometry": {"front": pair.geometry.front_shape, "end": pair.geometry.end_shape},
            "trans_fit": pd.DataFrame(history.epochs, columns=FIT_COLUMNS),
            "trans_history": {iteration: published(state) for iteration, state in history.snapshots.items()},
            "trans_m": maps,
            **compare_maps(pair, maps, val),
        }
        print(table(result))
        cli.write_result(args, path, result)
        resume_file.unlink(missing_ok=True)
    return result


def initial_stitch(pair: Pair, train: Split, args: argparse.Namespace) -> StitchLayer:
    """The stitch before training; a pass over the training images, not augmented, where init or mask ask for it."""
    generator = Generator().manual_seed(args.seed)
    moments = None
    if INITS[args.init].needs_moments or MASKS[args.mask].needs_moments:
        moments = paired_moments(pair, train, title="moments on train")
    affine = INITS[args.init].build(pair.geometry, generator, moments)
    mask = None if args.mask == "identity" else MASKS[args.mask].build(pair.geometry, generator, moments)
    stitch = build_stitch(affine, pair.geometry, mask=mask, rank=args.low_rank, orthogonal=args.orthogonal)
    if not stitch.matrix().any():
        cli.notice(f"warning: --mask {args.mask} keeps no weight of --init {args.init}; all weights start at zero")
    return stitch


def paired_moments(pair: Pair, split: Split, *, title: str) -> PairedMoments:
    """Moments of the front activation and the end network's own, as the stitch pairs them, over a whole split."""
    geometry = pair.geometry
    moments = PairedMoments(geometry.inputs, geometry.outputs, split.device)

    def add(front: Tensor, end: Tensor) -> None:
        moments.update(geometry.front_rows(front), geometry.end_rows(end))

    feed((pair.front_head, pair.end_head), split, add, title=title)
    return moments


def train_stitch(
    pair: Pair,
    stitch: StitchLayer,
    train: Split,
    val: Split,
    args: argparse.Namespace,
    recipe: Recipe,
    resume_file: Path,
) -> History:
    if not args.resume:
        resume_file.unlink(missing_ok=True)
    stitched = pair.stitched(stitch)
    objective = StitchObjective(
        pair, stitch, train.spec.task, args.target_type, args.temperature, args.l1, args.cka_reg
    )
    return fit(
        stitch,
        train,
        objective,
        recipe=recipe,
        seed=args.seed,
        validate=lambda: evaluate(stitched, val),
        snapshot_every=args.save_frequency * max(1, args.epochs),
        resume_file=resume_file,
        identity={key: value for key, value in cli.parameters(args).items() if key not in IRRELEVANT},
        max_steps=DEBUG_STEPS if args.debug else None,
        title=f"stitch {args.front_layer} -> {args.end_layer}",
    )


def all_maps(pair: Pair, stitch: StitchLayer, initial: dict[str, Any], val: Split) -> dict[str, Any]:
    """The affine maps of a result: before, after and their difference; least squares on `val` and after minus it."""
    after = stitch.arrays()
    exact = least_squares(paired_moments(pair, val, title="least squares on val"))
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


def compare_maps(pair: Pair, maps: dict[str, Any], val: Split) -> dict[str, Any]:
    """Scores, agreement with the end network and similarity to it for both networks and each map, on `val`."""
    task, labels = val.spec.task, val.labels
    stitches = {name: from_arrays(maps[name], pair.geometry).to(val.device) for name in ("before", "after", "ps_inv")}
    logits, similar = compare_stitches(pair, stitches, val)
    similar = {PUBLISHED_SUFFIX[name]: values for name, values in similar.items()}
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
    return {f"transform.{name}": value.numpy() for name, value in state.items() if name != "mask"}


def describe(checkpoint: Checkpoint) -> dict[str, str]:
    return {"model": checkpoint.model, "dataset": checkpoint.dataset, "sha256": checkpoint.sha256}


def table(result: dict[str, Any]) -> str:
    """What still works: a row for each network, and how close each comes to the end network."""
    lines = [f"{'':10} {'accuracy':>9} {'loss':>8} {'relative':>9} {'agrees':>8} {'CKA':>7} {'l2':>9}"]
    end_accuracy = result["model_results"]["end"]["acc"]
    for row, scores, agrees, cka, l2 in table_rows(result):
        relative = scores["acc"] / end_accuracy if end_accuracy else float("nan")
        cells = [f"{scores['acc']:9.2%}", f"{scores['loss']:8.4f}", f"{relative:9.4f}"]
        cells += [f"{agrees:8.2%}" if agrees is not None else " " * 8]
        cells += [f"{value:{width}.4f}" if value is not None else " " * width for value, width in ((cka, 7), (l2, 9))]
        lines.append(" ".join([f"{row:10}", *cells]).rstrip())
    return "\n".join([*lines, "relative: accuracy / accuracy of end; agrees, CKA, l2: with end"])


def table_rows(result: dict[str, Any]) -> list[tuple]:
    scores, similar = result["model_results"], result["m2_sim"]
    return [
        ("front", scores["front"], similar["m1"]["same_class_out"], result["cka"], result["l2"]),
        ("end", scores["end"], None, None, None),
        ("before", scores["before"], similar["before"]["same_class_out"], result["cka_before"], result["l2_before"]),
        ("after", scores["trans"], similar["after"]["same_class_out"], result["cka_frank"], result["l2_frank"]),
        ("ps_inv", scores["ps_inv"], similar["ps_inv"]["same_class_out"], result["cka_ps_inv"], result["l2_ps_inv"]),
    ]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.one_line_errors(debug=args.debug):
        run(args)


if __name__ == "__main__":
    main()
