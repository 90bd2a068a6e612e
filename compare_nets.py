"""Compare the activations of two trained networks on the same images."""

import argparse
from typing import Any

import torch

from src import cli
from src.config import choose_device
from src.cut import head
from src.dataset import DATASETS, load_split
from src.evaluation import compare


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "compare_nets",
        "How similar two networks are at two layers: any number of measures from one pass over the images.",
        "model_weights/Tiny10/Digits/in0-gn0/440.pt model_weights/Tiny10/Digits/in1-gn1/440.pt bn5 bn5 digits cka l2\n"
        "a.pt b.pt bn3 bn7 cifar10 cca svcca --view channels -t train",
    )
    cli.add_pair_arguments(parser)
    parser.add_argument("front_layer", metavar="layer1", help="layer of the first network")
    parser.add_argument("end_layer", metavar="layer2", help="layer of the second network")
    parser.add_argument("dataset", choices=sorted(DATASETS), help="data set of the images")
    cli.add_method_arguments(parser)
    cli.add_split_options(parser)
    cli.add_worker_option(parser)
    cli.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compare, print and write; returns the result."""
    device = choose_device(args.device)
    front, end = cli.load_pair(args)
    heads = head(front.network, args.front_layer).to(device), head(end.network, args.end_layer).to(device)
    with torch.no_grad():
        shapes = [tuple(part(front.sample.to(device)).shape[1:]) for part in heads]
    layers = f"{args.front_layer or 'output'}-{args.end_layer or 'output'}"
    with cli.result_path(args, f"compare_nets-{layers}") as path:
        split = load_split(args.dataset, args.dataset_type, device=device, num_workers=args.num_workers)
        comparison = compare(
            heads,
            (shapes[0], shapes[1]),
            split,
            args.methods,
            view=args.view,
            group=args.group_at,
            batch_size=args.batch_size,
        )
        text, result = cli.comparison_report(comparison)
        print(
            f"{front.model} {args.front_layer} and {end.model} {args.end_layer} on {args.dataset}, {args.dataset_type}"
        )
        print(text)
        cli.write_result(args, path, result)
    return result


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.one_line_errors(debug=args.debug):
        run(args)


if __name__ == "__main__":
    main()
