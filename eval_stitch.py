"""Evaluate a stitched network of a result file on ground truth labels."""

import argparse
from typing import Any

from src import arguments, cli, report
from src.config import choose_device
from src.dataset import load_split
from src.evaluation import evaluate
from src.saved_stitch import STITCH_TYPES, load_stitch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "eval_stitch",
        "Measure the loss and the accuracy of a stitched network of a result file.",
        "results/run1/bn3-bn3.pkl after\nresults/run1/bn3-bn3.pkl ps_inv -t train",
    )
    arguments.add_stitch_arguments(parser, STITCH_TYPES)
    arguments.add_split_options(parser)
    arguments.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, print and write; returns the result."""
    device = choose_device(args.device)
    saved = load_stitch(args.pickle_path, args.stitch_type, front=args.front_model, end=args.end_model)
    for role, file in saved.weight_files.items():
        cli.notice(f"{role}: {file}")
    with cli.result_path(args, f"eval_stitch-{args.pickle_path.stem}-{args.stitch_type}", answers_anyway=True) as path:
        split = load_split(saved.dataset, args.dataset_type, device=device, num_workers=args.num_workers)
        network = saved.network.to(device)
        scores = evaluate(network, split, batch_size=args.batch_size, title="evaluating")
        text = report.fill(f"{saved.title}: {args.stitch_type}, {args.dataset_type}, {len(split)} images")
        text += f"\naccuracy {scores['acc']:.2%}, loss {scores['loss']:.4f}"
        result = {"stitch": str(args.pickle_path), "type": args.stitch_type, "images": len(split), **scores}
        cli.publish(args, path, result, text)
    return result


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.one_line_errors(debug=args.debug):
        run(args)


if __name__ == "__main__":
    main()
