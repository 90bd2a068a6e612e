"""Train a network on a data set."""

import argparse
import sys
from pathlib import Path
from typing import Any

from src.cli import arguments
from src.cli import output as cli
from src.cutting.structure import in_channels_last, needs_plain_memory
from src.dataset import Split
from src.evaluation.adversarial import robust_accuracy, with_bound
from src.evaluation.evaluate import evaluate
from src.networks import checkpoints
from src.networks.checkpoints import seeds_name
from src.results.text import fill
from src.training.endings import bad_endings
from src.training.folder import RESUME, numbered, refuse_finished_or_other, remove_older, reserved, weight_file
from src.training.loop import DEBUG_STEPS
from src.training.network import (
    Start,
    images_for,
    initial_network,
    iterations,
    open_images,
    save_weights,
    train_network,
)
from src.training.network_spec import OPTIONS, TrainSpec
from src.training.train_state import History


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "train_model",
        "Train a network; its weights land at <out>/<Model>/<Dataset>/in<i>-gn<j>/<iteration>.pt.",
        "-m tiny10 -d cifar10\n-m lenet -d mnist -e 12 -i 1 -g 1 --resume",
    )
    group = parser.add_argument_group("network and images")
    names = f"{arguments.models_help()}; or torchvision:NAME, timm:NAME, FILE.py:FUNCTION"
    group.add_argument("-m", "--model", type=arguments.model_name, default="tiny10", metavar="MODEL", help=names)
    arguments.add_dataset_option(group, default="cifar10")
    groups = arguments.add_spec_options(parser, OPTIONS, TrainSpec())
    arguments.add_reading_options(group)
    training = groups["training"]
    arguments.add_precision_options(training)
    arguments.add_adversarial_option(training, "train on images that are changed against the network within this bound")
    training.add_argument("--resume", action="store_true", help="go on with the same command's interrupted run")
    arguments.add_run_options(parser, out_dir="snapshots")
    return parser.parse_args(with_bound(sys.argv[1:] if argv is None else argv))


def scored(
    spec: TrainSpec, start: Start, history: History, train: Split, val: Split
) -> tuple[dict[str, Any], list[str]]:
    """What a result holds of a trained network's scores, and the lines that say so."""
    network = start.network
    scores = evaluate(network, val)
    lines = [f"validation: accuracy {scores['acc']:.2%}, loss {scores['loss']:.4f}"]
    if spec.adversarial:
        network.eval()
        scores["robust"] = robust_accuracy(network, val, bound=spec.adversarial, title="attacking")
        lines.append(f"robust accuracy, images changed by up to {spec.adversarial:.4g}: {scores['robust']:.2%}")
    lines += [f"debug: only {DEBUG_STEPS} batches an epoch"] * spec.debug
    chance = train.spec.task.constant_accuracy(train.labels)
    warnings = [] if spec.debug else bad_endings(history.epochs, rate=spec.lr, chance=chance, images=len(train))
    lines += [fill(f"warning: {line}") for line in warnings]
    return {"val": scores, "log": numbered(history.epochs), "warnings": warnings}, lines


def run(args: argparse.Namespace) -> dict:
    """Train, and return where the weights are with their scores and the training log."""
    device, spec = cli.device_for_training(args), TrainSpec.of(args)
    recipe = spec.recipe
    how = spec.train_fraction, spec.shuffle_labels, spec.adversarial
    seeds = seeds_name(spec.init_noise, spec.gradient_noise, *how)
    place = checkpoints.weight_folder(args.out_dir, spec.model, spec.dataset, seeds)
    with (
        reserved(place, resume=args.resume, overwrite=args.overwrite) as folder,
        cli.result_path(args, f"train_model-{'-'.join(folder.parts[-3:])}", out_dir=Path("results")) as path,
    ):
        resume_file, images = folder / RESUME, images_for(spec)
        start = initial_network(spec, images, cli.notice)
        facts = spec.facts() | start.origin
        how = {"device": device, **arguments.reading(args, cli.notice)}
        start, train, val = open_images(spec, images, start, how, cli.notice)
        iteration = iterations(spec, train)
        final = weight_file(folder, iteration)
        if args.resume and not resume_file.exists():
            if not args.overwrite:
                refuse_finished_or_other(folder, facts, final)
            cli.notice(f"no {resume_file} to go on from; training starts at the first epoch")
        if not args.resume:
            resume_file.unlink(missing_ok=True)
        start.network.to(device)
        if not needs_plain_memory(start.network):
            in_channels_last(start.network)
        with cli.going_on(resume_file.is_file, "--resume goes on from the last whole epoch"):
            history = train_network(
                spec,
                start,
                train,
                val,
                resume_file=resume_file,
                epoch_done=lambda history: cli.tell_epoch(history, recipe.epochs),
                resumed=lambda epochs: cli.tell_resumed(epochs, recipe.epochs),
            )
            save_weights(spec, start, final)
            outcome, lines = scored(spec, start, history, train, val)
            result = {"weights": str(final), "iteration": iteration, **outcome}
            cli.publish(args, path, result, "\n".join([lines[0], f"weights: {final}", *lines[1:]]))
            resume_file.unlink(missing_ok=True)  # not before the result is safe
        remove_older(folder, iteration, facts)
    return result


def interrupted(args: argparse.Namespace) -> str:
    """What an interrupted run says."""
    return f"interrupted; --resume{' without --no-save' * args.no_save} goes on from the last whole epoch"


def main(argv: list[str] | None = None) -> None:
    goes_on = "the same command with --overwrite begins anew"
    cli.run_script(parse_args, run, argv, interrupted=interrupted, goes_on=goes_on)


if __name__ == "__main__":
    main()
