"""Evaluate stitched networks of result files on ground truth labels."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.cli import arguments
from src.cli import output as cli
from src.core.config import choose_device
from src.evaluation.evaluate import evaluate
from src.evaluation.passes import batch_of
from src.results import text as report
from src.results.saved_stitch import load_stitch, stitch_files
from src.stitching.stages import MAPS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "eval_stitch",
        "Measure the loss and the accuracy of a stitched network of a result file, or of each in a folder.",
        "results/run1/bn3-bn3.pkl ps_inv -t train\nresults/run1 after",
    )
    arguments.add_stitch_arguments(parser, MAPS)
    arguments.add_split_options(parser)
    arguments.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, print and write; returns the result."""
    device = choose_device(args.device)
    files, told = stitch_files(args.pickle_path, cli.notice), set()
    name = f"eval_stitch-{args.pickle_path.stem}-{args.stitch_type}"
    with cli.result_path(args, name, answers_anyway=True) as path:
        rows = [evaluate_one(args, file, device, told) for file in files]
        if args.pickle_path.is_dir():
            result: dict[str, Any] = {"folder": str(args.pickle_path), "type": args.stitch_type, "stitches": rows}
            text = folder_text(args, rows)
        else:
            (result,) = rows
            text = report.fill(f"{result['title']}: {args.stitch_type}, {args.dataset_type}, {result['images']} images")
            text += f"\naccuracy {result['acc']:.2%}, loss {result['loss']:.4f}"
        cli.publish(args, path, result, text)
    return result


def evaluate_one(args: argparse.Namespace, file: Path, device: Any, told: set[str]) -> dict[str, Any]:
    """Scores of one stitched network, and what it is."""
    moved = {"front": args.front_model, "end": args.end_model}
    tell = cli.tell_once(told)
    saved = load_stitch(file, args.stitch_type, **moved, size=args.image_size, on_message=tell)
    cli.tell_weights(saved, told)
    saved.on_data.require_decisions()
    split = saved.split(args.dataset_type, device=device, **arguments.reading(args, cli.notice))
    args.batch_size = args.batch_size or batch_of(split)
    scores = evaluate(saved.network.to(device), split, batch_size=args.batch_size, title="evaluating")
    about = {"stitch": str(file), "name": saved.called(file), "title": saved.title, "type": args.stitch_type}
    return {**about, "images": len(split), **scores}


def folder_text(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> str:
    """A row a stitch."""
    table = [{"stitch": row["name"], "accuracy": f"{row['acc']:.2%}", "loss": f"{row['loss']:.4f}"} for row in rows]
    title = f"{args.pickle_path}: {args.stitch_type}, {args.dataset_type}, {rows[0]['images']} images"
    return f"{report.fill(title)}\n{report.columns_text(table, right=('accuracy', 'loss'), squeeze='stitch')}"


def main(argv: list[str] | None = None) -> None:
    cli.run_script(parse_args, run, argv)


if __name__ == "__main__":
    main()
