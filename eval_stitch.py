"""Evaluate a stitched network of a result file on ground truth labels."""

import argparse
from typing import Any

from src import cli
from src.config import choose_device
from src.dataset import load_split
from src.evaluation import evaluate
from src.saved_stitch import STITCH_TYPES, load_stitch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "eval_stitch",
        "Loss and accuracy of a stitched network that stitch_nets.py, or its published ancestor, wrote.",
        "results/run1/bn3-bn3.pkl after",
    )
    cli.add_stitch_arguments(parser, STITCH_TYPES)
    cli.add_split_options(parser)
    cli.add_worker_option(parser)
    cli.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, print and write; returns the result."""
    device = choose_device(args.device)
    saved = load_stitch(args.pickle_path, args.stitch_type, front=args.front_model, end=args.end_model)
    for role, file in saved.weight_files.items():
        cli.notice(f"{role}: {file}")
    with cli.result_path(args, f"eval_stitch-{args.pickle_path.stem}-{args.stitch_type}") as path:
        split = load_split(saved.dataset, args.dataset_type, device=device, num_workers=args.num_workers)
        network = saved.network.to(device)
        scores = evaluate(network, split, batch_size=args.batch_size, title="evaluating")
        print(f"{saved.name}, {args.stitch_type}, on {saved.dataset}, {args.dataset_type}, {len(split)} images")
        print(f"accuracy {scores['acc']:.2%}, loss {scores['loss']:.4f}")
        result = {"stitch": str(args.pickle_path), "type": args.stitch_type, "images": len(split), **scores}
        cli.write_result(args, path, result)
    return result


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.one_line_errors(debug=args.debug):
        run(args)


if __name__ == "__main__":
    main()
