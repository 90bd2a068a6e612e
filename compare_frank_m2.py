"""Compare the stitched representation of a result file with the end network's own."""

import argparse
from typing import Any

import torch

from src import arguments, cli, report
from src.config import choose_device
from src.evaluation import compare
from src.layer_grid import compare_outputs
from src.metrics import FUNCTIONAL, Cell
from src.metrics.products import described
from src.saved_stitch import STITCH_TYPES, load_stitch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "compare_frank_m2",
        "Compare a stitched activation with the end network's own, at the stitched layer or a later one.",
        "results/run1/bn3-bn3.pkl after cka\nresults/run1/bn3-bn3.pkl ps_inv cka l2 -l bn7",
    )
    arguments.add_stitch_arguments(parser, STITCH_TYPES)
    arguments.add_method_argument(parser)
    group = arguments.add_comparison_options(parser)
    group.add_argument("-l", "--layer", help="layer of the end network to compare at (default: the stitched one)")
    arguments.add_split_options(parser)
    arguments.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare, print and write; returns the result."""
    device = choose_device(args.device)
    saved = load_stitch(args.pickle_path, args.stitch_type, front=args.front_model, end=args.end_model)
    for role, file in saved.weight_files.items():
        cli.notice(f"{role}: {file}")
    layer = saved.end_layer if args.layer is None else args.layer
    stitched, end = (part.to(device) for part in saved.heads(layer))
    whole, sample = [part.to(device) for part in saved.heads("")], saved.viewing.sample.to(device)
    with torch.no_grad():
        shape = tuple(end(sample).shape[1:])
    name = f"compare_frank_m2-{args.pickle_path.stem}-{args.stitch_type}"
    with cli.result_path(args, name if args.layer is None else f"{name}-{layer or 'output'}") as path:
        split = saved.viewing.split(args.dataset_type, device=device, num_workers=args.num_workers)
        names = [[name for name in args.methods if (name in FUNCTIONAL) == functional] for functional in (True, False)]
        cells = [compare_outputs((whole[0], whole[1]), split, names[0], sample=sample, batch_size=args.batch_size)]
        if names[1]:
            cells += [
                compare(
                    (stitched, end),
                    (shape, shape),
                    split,
                    names[1],
                    view=args.view,
                    group=args.group_at,
                    memory=1e9 * args.memory,
                    batch_size=args.batch_size,
                )
            ]
        text, result = cli.comparison_report(Cell.joined(cells, args.methods))
        where = f"{args.stitch_type} at {layer or 'output'}, {args.dataset_type}"
        result["products"] = described(device)
        cli.publish(args, path, result, report.fill(f"{saved.title}: {where}") + f"\n{text}")
    return result


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.one_line_errors(debug=args.debug, less_memory=cli.GROUPS_HELP):
        run(args)


if __name__ == "__main__":
    main()
