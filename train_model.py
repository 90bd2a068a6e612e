"""Train a network on a data set."""

import argparse
import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src import arguments, checkpoints, cli
from src.checkpoints import seeds_name
from src.config import choose_device, mixed_precision
from src.dataset import (
    DatasetSpec,
    Split,
    dataset_of,
    is_known,
    load_split,
    measured,
    shuffle_labels,
    take_fraction,
)
from src.evaluation import evaluate
from src.files import atomic_write
from src.learner import History, Learner
from src.preprocessing import Preprocessing
from src.recipe import OPTIMIZERS, Recipe
from src.sources import architecture, own_size, source_sha256, split_model, start_from
from src.structure import in_channels_last, needs_plain_memory
from src.training import DEBUG_STEPS, Resume, fit_one
from src.weight_folder import RESUME, refuse_finished_or_other, remove_older, reserved

LOG_COLUMNS: tuple[str, ...] = ("epoch", "train_accuracy", "train_loss", "val_accuracy", "val_loss")
RECIPE = ("epochs", "batch_size", "optimizer", "lr", "weight_decay")
# in the recipe only where they are not what is usual: a recipe of before these options is one without them
UNUSUAL = {"amp": False, "train_fraction": 1.0, "shuffle_labels": 0.0, "freeze_body": False, "debug": False}


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
    group.add_argument(
        "--validate-on",
        choices=("val", "valid"),
        default="val",
        help="images of the scores: val, or CelebA's official validation images (valid)",
    )
    group.add_argument(
        "--train-fraction",
        type=arguments.fraction,
        default=1.0,
        metavar="X",
        help="train on this part of the images of each class, chosen by -g",
    )
    group.add_argument(
        "--shuffle-labels",
        type=arguments.share,
        default=0.0,
        metavar="X",
        help="exchange the labels of this part of the training images at random, by -g",
    )
    arguments.add_reading_options(group)
    add_training_options(parser.add_argument_group("training"))
    arguments.add_run_options(parser, out_dir="snapshots")
    return parser.parse_args(argv)


def add_training_options(group: argparse._ArgumentGroup) -> None:
    seed, positive, positive_float = arguments.seed, arguments.positive, arguments.positive_float
    group.add_argument("-i", "--init-noise", type=seed, default=0, metavar="SEED", help="seed of the first weights")
    group.add_argument(
        "--init-weights",
        metavar="SPEC",
        help="start from these weights; a head of another size stays random (default: all random)",
    )
    group.add_argument(
        "--freeze-body", action="store_true", help="train the last linear layer alone, on what the others give"
    )
    group.add_argument(
        "-g",
        "--gradient-noise",
        type=seed,
        default=0,
        metavar="SEED",
        help="seed of the order of images and of augmentation",
    )
    group.add_argument("-e", "--epochs", type=positive, default=300, metavar="N", help="passes over the images")
    group.add_argument("-b", "--batch-size", type=positive, default=128, metavar="N", help="images a batch")
    group.add_argument(
        "-lr",
        "--lr",
        type=positive_float,
        default=0.1,
        metavar="RATE",
        help="learning rate, x0.1 at one third and at two thirds of the epochs",
    )
    group.add_argument(
        "-wd", "--weight-decay", type=arguments.natural_float, default=1e-4, metavar="X", help="pull towards 0"
    )
    group.add_argument(
        "-opt", "--optimizer", choices=sorted(OPTIMIZERS), default="sgd", help="sgd is Nesterov's, momentum 0.9"
    )
    group.add_argument(
        "-s", "--save-frequency", type=positive, default=10000, metavar="N", help="iterations between saved weights"
    )
    arguments.add_amp_option(group)
    group.add_argument("--resume", action="store_true", help="go on with the same command's interrupted run")


def run(args: argparse.Namespace) -> dict:
    """Train, and return where the weights are with their scores and the training log."""
    device = choose_device(args.device)
    recipe = Recipe(args.epochs, args.batch_size, args.optimizer, args.lr, args.weight_decay)
    seeds = seeds_name(args.init_noise, args.gradient_noise, args.train_fraction, args.shuffle_labels)
    place = checkpoints.weight_folder(args.out_dir, args.model, args.dataset, seeds)
    with (
        reserved(place, resume=args.resume, overwrite=args.overwrite) as folder,
        cli.result_path(args, result_name(folder), out_dir=Path("results")) as path,
    ):
        resume_file = folder / RESUME
        images = images_for(args)
        start = initial_network(args, images)
        network, facts = start.network, recipe_facts(args) | start.origin
        start, train, val = open_images(args, images, start, device)
        train = training_images(train, args)
        steps = len(train) // args.batch_size
        iteration = args.epochs * (min(steps, DEBUG_STEPS) if args.debug else steps)
        final = weight_file(folder, iteration)
        if args.resume and not resume_file.exists():
            if not args.overwrite:
                refuse_finished_or_other(folder, facts, final)
            cli.notice(f"no {resume_file} to go on from; training starts at the first epoch")
        if not args.resume:
            resume_file.unlink(missing_ok=True)
        network.to(device)
        if not needs_plain_memory(network):
            in_channels_last(network)
        history = train_network(start, train, val, args, recipe, facts, resume_file)
        weights = save_weights(start, args, facts, final)
        scores = evaluate(network, val)
        text = f"validation: accuracy {scores['acc']:.2%}, loss {scores['loss']:.4f}\nweights: {weights}"
        text += f"\ndebug: only {DEBUG_STEPS} batches an epoch" * args.debug
        result = {"weights": str(weights), "iteration": iteration, "val": scores, "log": numbered(history)}
        cli.publish(args, path, result, text)
        resume_file.unlink(missing_ok=True)  # not before the result is safe
        remove_older(folder, iteration, facts)
    return result


def recipe_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the weights say of the training that made them."""
    unusual = {name: getattr(args, name) for name, usual in UNUSUAL.items() if getattr(args, name) != usual}
    return {name: getattr(args, name) for name in RECIPE} | unusual


def images_for(args: argparse.Namespace) -> DatasetSpec:
    """The data set, at the size that is asked for: of image files also at the one that the network is given."""
    images, (_, asked) = dataset_of(args.dataset, args.image_size), split_model(args.model)
    return dataset_of(images, asked.get("size")) if images.exact and not args.image_size else images


def open_images(
    args: argparse.Namespace, images: DatasetSpec, start: "Start", device: torch.device
) -> tuple["Start", Split, Split]:
    """The start, with what the network does to images; the images to train on and to validate on, as it sees them."""
    eyes, (_, asked) = start.preprocessing, split_model(args.model)
    if eyes and images.exact and not args.image_size:
        images = dataset_of(images, eyes.size)
    how = {"device": device, **arguments.reading(args, cli.notice)}
    train = load_split(images, "train", **how)
    if not eyes:
        known = measured(images, train)
        if not images.mean:
            cli.notice(f"training images of {images.name}: mean {known.mean}, deviation {known.std}")
        eyes = replace(known.preprocessing, **asked)
    val = load_split(images, args.validate_on, **how)
    return replace(start, preprocessing=eyes), train.seen_by(eyes), val.seen_by(eyes)


def training_images(train: Split, args: argparse.Namespace) -> Split:
    """The images to train on: fewer, or with shuffled labels, where the options say so."""
    if args.train_fraction < 1:
        everything = len(train)
        train = take_fraction(train, args.train_fraction, seed=args.gradient_noise)
        how = "alike of each class" if train.labels.dim() == 1 else "whatever their labels, of which each has many"
        cli.notice(f"training on {len(train)} of {everything} images, {how}")
    if args.shuffle_labels:
        train = shuffle_labels(train, args.shuffle_labels, seed=args.gradient_noise)
        cli.notice(f"the labels of {round(args.shuffle_labels * len(train))} of them are shuffled among these")
    return train


def result_name(folder: Path) -> str:
    return f"train_model-{'-'.join(folder.parts[-3:])}"


@dataclass(frozen=True, slots=True)
class Start:
    """A network before training: what it does to images, if not what its data set asks for, what the recipe says of
    the weights it starts from, if any, and the SHA-256 of the Python file that made it, if one did; and its classes."""

    network: nn.Module
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    origin: dict[str, str]
    source_sha256: str | None


def initial_network(args: argparse.Namespace, images: DatasetSpec) -> Start:
    """The network before training, its head sized for the data set.

    The random weights depend on the seed alone; torch's global generator is left as it was.
    """
    model, asked = split_model(args.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.init_noise)
        size = asked.get("size") or own_size(model, images)
        made = architecture(model, channels=images.channels, classes=images.classes, size=size)
    eyes = replace(made.preprocessing, **asked) if made.preprocessing else None
    if args.freeze_body:
        head = checkpoints.head_of(made.network)  # before anything is downloaded
        cli.notice(f"training {head}, the last linear layer, alone")
    if args.init_weights is None:
        return Start(made.network, eyes, images.labels, {}, source_sha256(model))
    digest, head = start_from(made.network, args.init_weights, model=model, tell=cli.notice)
    if head:
        cli.notice(f"the head {head} starts at random: it has another size in {args.init_weights}")
    return Start(made.network, eyes, images.labels, {"init_weights": digest}, source_sha256(model))


def train_network(
    start: Start,
    train: Split,
    val: Split,
    args: argparse.Namespace,
    recipe: Recipe,
    facts: dict[str, Any],
    resume_file: Path,
) -> History:
    network, task, folder = start.network, train.spec.task, resume_file.parent
    trained = network
    if args.freeze_body:  # the rest is never trained: its parameters stay, and so do the statistics of its norms
        network.eval().requires_grad_(False)
        trained = network.get_submodule(checkpoints.head_of(network)).requires_grad_()

    def objective(shared: None, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with mixed_precision(images.device, enabled=args.amp):
            logits = network(images).float()
        return task.loss(logits, labels), task.correct(logits, labels)

    def save_at(iteration: int) -> None:
        save_weights(start, args, facts, weight_file(folder, iteration))

    def epoch_done(history: History) -> None:
        write_log(folder / "training_log.csv", history)
        cli.tell_epoch(history, recipe.epochs)

    def resumed(epochs: int) -> None:
        write_log(folder / "training_log.csv", learner.history)
        cli.tell_resumed(epochs, recipe.epochs)

    learner = Learner(trained, objective, recipe, after_step=save_at, after_step_every=args.save_frequency)
    return fit_one(
        learner,
        train,
        seed=args.gradient_noise,
        validate=lambda: evaluate(network, val),
        after_epoch=epoch_done,
        resume=Resume(resume_file, identity(args) | facts, resumed),
        max_steps=DEBUG_STEPS if args.debug else None,
        title=f"{folder.parts[-3]} on {folder.parts[-2]}",
    )


def identity(args: argparse.Namespace) -> dict:
    """The arguments that decide the weights and the log, beside the recipe: a resumed run must agree in them."""
    names = ["model", "dataset", "init_noise", "gradient_noise", "validate_on"] + ["image_size"] * bool(args.image_size)
    return {name: getattr(args, name) for name in names}


def save_weights(start: Start, args: argparse.Namespace, facts: dict[str, Any], path: Path) -> Path:
    known = dataset_of(args.dataset).preprocessing if is_known(args.dataset) else None
    checkpoints.save(
        path,
        start.network,
        model=split_model(args.model)[0],
        dataset=args.dataset,
        init_seed=args.init_noise,
        gradient_seed=args.gradient_noise,
        iteration=int(path.stem),
        recipe=facts,
        preprocessing=None if start.preprocessing == known else start.preprocessing,
        labels=None if known else start.labels,
        source_sha256=start.source_sha256,
    )
    return path


def weight_file(folder: Path, iteration: int) -> Path:
    return folder / f"{iteration}.pt"


def numbered(history: History) -> list[dict[str, float]]:
    """A row an epoch, which it counts from 1."""
    return [{"epoch": epoch, **row} for epoch, row in enumerate(history.epochs, 1)]


def write_log(path: Path, history: History) -> None:
    """Rewrite training_log.csv, a row an epoch: whatever happens, the file holds whole rows only."""
    text = io.StringIO()
    writer = csv.DictWriter(text, LOG_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(numbered(history))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.one_line_errors(debug=args.debug, interrupted="interrupted; --resume goes on from the last whole epoch"):
        run(args)


if __name__ == "__main__":
    main()
