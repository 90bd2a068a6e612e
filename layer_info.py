"""List the layers of an architecture."""

import argparse
import math

import pandas as pd
import torch
from torch import Tensor, nn

from src import arguments, cli, report
from src.cut import heads, layer_names
from src.dataset import file_part
from src.sources import HELP, model_folder, open_network
from src.structure import split_layer

DEFAULT = "cifar10"  # the images of a network that was trained on none of our data sets


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.parser(
        "layer_info",
        "List the layers of a network, at each of which one can cut and stitch.",
        "resnet20_w3 -d cifar100\nmodel_weights/Tiny10/Digits/in0-gn0/440.pt",
    )
    parser.add_argument("model", help=f"architecture: {arguments.models_help()}; or {HELP}")
    group = parser.add_argument_group("images")
    arguments.add_dataset_option(group, shown="the network's, else cifar10")
    arguments.add_size_option(group)
    arguments.add_run_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> pd.DataFrame:
    """Print and write the table of layers; returns it, a row a layer."""
    shown = open_network(args.model, dataset=args.dataset, size=args.image_size, tell=cli.notice, bare=True)
    dataset, eyes = args.dataset or shown.dataset or DEFAULT, shown.preprocessing
    is_file = bool(shown.iteration or shown.recipe)
    parts = [model_folder(shown.model).lower(), file_part(dataset)] + ([shown.seeds, shown.stem] if is_file else [])
    with cli.result_path(args, "-".join(["layer_info", *filter(None, parts)]), answers_anyway=True) as path:
        layers = describe_layers(shown.network, shown.sample[:1])
        title = f"{model_folder(shown.model)} on {dataset}: images {eyes.channels} x {eyes.size} x {eyes.size}"
        result = {"layers": layers, "network": shown.facts()}
        cli.publish(args, path, result, f"{title}\n{layers_text(layers)}")
    return layers


def describe_layers(network: nn.Module, images: Tensor) -> pd.DataFrame:
    """Index, name, kind, output shape (without the batch), parameters and way to stitch of each layer that runs."""
    names = layer_names(network)
    network.eval()
    with torch.no_grad():
        outputs = heads(network, names)(images)
    rows = []
    for index, (name, output) in enumerate(zip(names, outputs, strict=True)):
        module = network.get_submodule(split_layer(name)[0])
        shape = tuple(output.shape[1:])
        rows.append(
            {
                "index": index,
                "layer": name or "(all)",
                "kind": type(module).__name__,
                "output": " x ".join(map(str, shape)),
                "numbers": math.prod(shape),
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "stitch": {1: "features", 3: "channels"}.get(len(shape), "-") if name else "-",
            }
        )
    return pd.DataFrame(rows)


def layers_text(layers: pd.DataFrame) -> str:
    """The table in 80 columns: layer names are whole, kinds are cut where the names leave too little room."""
    rows = [
        {
            "": row["index"],
            "layer": row["layer"],
            "kind": row["kind"],
            "output": row["output"].replace(" ", ""),
            "params": row["parameters"],
            "by": row["stitch"][0],
        }
        for row in layers.to_dict("records")
    ]
    legend = "by: how a stitch maps: c, channels alike at all positions; f, all features; -, no stitch here"
    return f"{report.columns_text(rows, right=('', 'params'), squeeze='kind')}\n{report.fill(legend)}"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with cli.one_line_errors(debug=args.debug, less_memory="choose a smaller network"):
        run(args)


if __name__ == "__main__":
    main()
