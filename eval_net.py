"""Evaluate a trained network on ground truth labels."""

import argparse
import math

from src.cli import arguments
from src.cli import output as cli
from src.core.config import choose_device
from src.core.errors import UserError
from src.core.intervals import is_chance
from src.dataset import file_part
from src.evaluation.evaluate import evaluate
from src.evaluation.passes import batch_of
from src.networks.checkpoints import model_folder
from src.networks.opening import HELP, open_network
from src.networks.presentation import put_on_dataset
from src.networks.source_spec import Named
from src.results.text import fill
from src.results.titles import at_chance, network_name


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "eval_net",
        "Measure the loss and the accuracy of a trained network.",
        "model_weights/Tiny10/Digits/in0-gn0/440.pt\nelsewhere/weights.pt -m tiny10 -d cifar10",
    )
    parser.add_argument("model_path", metavar="weights", help=HELP)
    group = arguments.add_split_options(parser)
    arguments.add_model_option(group, "-m", "--model")
    arguments.add_dataset_option(group)
    arguments.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    """Evaluate, print and write; returns the result."""
    device = choose_device(args.device)
    model = args.model and Named(args.model)
    about = {"model": model, "dataset": args.dataset, "size": args.image_size}
    checkpoint = open_network(Named(args.model_path), **about, on_message=cli.notice)
    on_data = put_on_dataset([checkpoint], args.dataset, size=args.image_size)
    on_data.require_decisions()
    cli.show(on_data)
    parts = (model_folder(checkpoint.model).lower(), file_part(on_data.dataset), checkpoint.seeds, checkpoint.stem)
    name = "-".join(["eval_net", *filter(None, parts)])
    with cli.result_path(args, name, answers_anyway=True) as path:
        split = on_data.split(args.dataset_type, device=device, **arguments.reading(args, cli.notice))
        args.batch_size = args.batch_size or batch_of(split)
        network = on_data.networks[0].network.to(device)
        scores = evaluate(network, split, batch_size=args.batch_size, title="evaluating", part=on_data.part)
        if not math.isfinite(scores["loss"]):
            raise UserError(f"{args.model_path}: the logits of some images are NaN or infinite, so none is a decision")
        text = (
            f"{network_name(checkpoint.facts())} ({on_data.dataset}): {args.dataset_type}, {len(split)} images\n"
            f"accuracy {scores['acc']:.2%}, loss {scores['loss']:.4f}"
        )
        if part := scores.get("part"):
            few, many = len(on_data.spec.labels), len(on_data.answers)
            text = text.replace("accuracy ", f"among {many} classes: accuracy ")
            text += f"\namong the {few} of {on_data.dataset}: accuracy {part['acc']:.2%}, loss {part['loss']:.4f}"
        text += "".join(f"\nnote: {line}" for line in on_data.notes)
        chance = split.spec.task.constant_accuracy(split.labels)
        warnings = [at_chance("the network", scores["acc"], chance)] * is_chance(scores["acc"], chance, len(split))
        text += "".join(f"\n{fill(f'warning: {line}')}" for line in warnings)
        facts = {"model": checkpoint.model, "dataset": on_data.dataset, "network": checkpoint.facts()}
        result = {**facts, "images": len(split), **scores, "constant_accuracy": chance, "warnings": warnings}
        cli.publish(args, path, result, text)
    return result


def main(argv: list[str] | None = None) -> None:
    cli.run_script(parse_args, run, argv)


if __name__ == "__main__":
    main()
