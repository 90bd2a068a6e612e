"""Compare the stitched representation of a result file with the end network's own."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.cli import arguments  # first, since it ends a Ctrl-C in one line while all else is imported

# isort: split
import torch

from src.cli import output as cli
from src.core.config import choose_device
from src.core.errors import UserError
from src.evaluation.evaluate import compare
from src.evaluation.layer_grid import compare_outputs
from src.evaluation.passes import batch_of
from src.metrics import FUNCTIONAL, Cell
from src.metrics.algebra.products import described
from src.metrics.own import load_own
from src.results import text as report
from src.results.comparison_text import comparison_record, comparison_report
from src.results.saved_stitch import load_stitch, stitch_files
from src.stitching.stages import MAPS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "compare_frank_m2",
        "Compare a stitched activation with the end network's own, at the stitched layer or a later one.",
        "results/run1/bn3-bn3.pkl after cka\nresults/run1/bn3-bn3.pkl ps_inv cka l2 -l bn7",
    )
    arguments.add_stitch_arguments(parser, MAPS)
    arguments.add_method_argument(parser)
    group = arguments.add_comparison_options(parser)
    group.add_argument("-l", "--layer", help="layer of the end network to compare at (default: the stitched one)")
    arguments.add_split_options(parser)
    arguments.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare, print and write; returns the result."""
    device, own = choose_device(args.device), load_own(args.methods)
    files, told = stitch_files(args.pickle_path, cli.notice), set()
    name = f"compare_frank_m2-{args.pickle_path.stem}-{args.stitch_type}"
    with cli.result_path(args, name if args.layer is None else f"{name}-{args.layer or 'output'}") as path:
        found = [compare_one(args, file, device, told) for file in files]
        if args.pickle_path.is_dir():
            text, result = folder_report(args, files, found)
        else:
            _, title, cell = found[0]
            text, result = comparison_report(cell)
            text = f"{report.fill(title)}\n{text}"
        result |= {"products": described(device), **({"own_metrics": own} if own else {})}
        cli.publish(args, path, result, text)
    return result


def compare_one(args: argparse.Namespace, file: Path, device: Any, told: set[str]) -> tuple[str, str, Cell]:
    """What a stitch is called, what is compared, in words, and the comparison."""
    moved = {"front": args.front_model, "end": args.end_model}
    tell = cli.tell_once(told)
    saved = load_stitch(file, args.stitch_type, **moved, size=args.image_size, on_message=tell)
    cli.tell_weights(saved, told)
    layer = saved.end_layer if args.layer is None else args.layer
    stitched, end = (part.to(device) for part in saved.heads(layer))
    sample = saved.on_data.sample.to(device)
    split = saved.split(args.dataset_type, device=device, **arguments.reading(args, cli.notice))
    args.batch_size = args.batch_size or batch_of(split)
    functional = [name for name in args.methods if name in FUNCTIONAL]
    others = [name for name in args.methods if name not in FUNCTIONAL]
    cells: list[Cell] = []
    if functional:
        whole, whole_end = (part.to(device) for part in saved.heads(""))
        how = {"sample": sample, "batch_size": args.batch_size, "alone": not others}
        how["labelled"] = saved.on_data.end_labelled
        cells += [compare_outputs((whole, whole_end), split, functional, **how)]
    if others:
        with torch.no_grad():
            shape = tuple(end(sample).shape[1:])
        cells += [
            compare(
                (stitched, end),
                (shape, shape),
                split,
                others,
                view=args.view,
                group=args.group_at,
                memory=1e9 * args.memory,
                batch_size=args.batch_size,
                alone=not functional,
            )
        ]
    cell = Cell.joined(cells, args.methods)
    if not cell.values:
        raise UserError("; ".join(dict.fromkeys(cell.unavailable.values())))
    title = f"{saved.title}: {args.stitch_type} at {layer or 'output'}, {args.dataset_type}"
    return saved.called(file), title, cell


def folder_report(
    args: argparse.Namespace, files: Sequence[Path], cells: Sequence[tuple[str, str, Cell]]
) -> tuple[str, dict[str, Any]]:
    """Text, a row a stitch and a column a method, and the same for the result file.

    Raises UserError where no stitch has a value at all.
    """
    if not any(cell.values for *_, cell in cells):
        comparison_report(cells[0][2])
    table, notes, rows = [], [], []
    for file, (name, title, cell) in zip(files, cells, strict=True):
        numbers = {key: f"{cell.number(key):.4f}" if key in cell.values else "-" for key in args.methods}
        table.append({"stitch": name, **numbers})
        notes += [f"{name}: {key}: no value: {reason}" for key, reason in cell.unavailable.items()]
        notes += [f"{name}: warning: {text}" for health in cell.health.values() for text in health.warnings]
        rows.append({"stitch": str(file), "title": title, **comparison_record(cell)})
    where = args.layer or ("the stitched layer" if args.layer is None else "output")
    lines = [
        report.fill(f"{args.pickle_path}: {args.stitch_type} at {where}, {args.dataset_type}"),
        report.columns_text(table, right=args.methods, squeeze="stitch"),
        *(report.fill(note) for note in notes),
    ]
    return "\n".join(lines), {"folder": str(args.pickle_path), "type": args.stitch_type, "stitches": rows}


def main(argv: list[str] | None = None) -> None:
    cli.run_script(parse_args, run, argv, less_memory=cli.GROUPS_HELP)


if __name__ == "__main__":
    main()
