"""List the layers of an architecture."""

import argparse
import math

from src.cli import arguments  # first, since it ends a Ctrl-C in one line while all else is imported

# isort: split
import pandas as pd
from torch import Tensor, nn

from src.cli import output as cli
from src.cutting.channel_axis import Output, find_outputs, layout_warnings, require_fit
from src.cutting.parts import layer_names
from src.cutting.structure import split_layer
from src.dataset import file_part
from src.networks.checkpoints import model_folder
from src.networks.opening import HELP, open_network
from src.networks.source_spec import Named
from src.results import text as report

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
    shown = open_network(
        Named(args.model), dataset=args.dataset, size=args.image_size, on_message=cli.notice, bare=True
    )
    dataset, preprocessing = args.dataset or shown.dataset or DEFAULT, shown.preprocessing
    is_file = bool(shown.iteration or shown.recipe)
    parts = [model_folder(shown.model).lower(), file_part(dataset)] + ([shown.seeds, shown.stem] if is_file else [])
    with cli.result_path(args, "-".join(["layer_info", *filter(None, parts)]), answers_anyway=True) as path:
        layers = describe_layers(shown.network, shown.sample, shown.layout)
        shape = preprocessing.channels, preprocessing.size, preprocessing.size
        title = f"{model_folder(shown.model)} on {dataset}: images {' x '.join(map(str, shape))}"
        result = {"layers": layers, "network": shown.facts()}
        cli.publish(args, path, result, f"{title}\n{layers_text(layers)}")
    return layers


def describe_layers(network: nn.Module, images: Tensor, asked: str | None = None) -> pd.DataFrame:
    """Index, name, kind, output shape (without the batch), its layout, parameters and way to stitch of each layer that
    runs; `asked` is the layout that wins where it fits."""
    names = layer_names(network, images)
    outputs = find_outputs(network, names, images, asked)
    require_fit(asked, outputs)
    for line in layout_warnings(network, outputs):
        cli.notice(f"note: {line}")
    rows = []
    for index, (name, output) in enumerate(outputs.items()):
        module = network.get_submodule(split_layer(name)[0])
        rows.append(
            {
                "index": index,
                "layer": name or "(all)",
                "kind": type(module).__name__,
                "output": " x ".join(map(str, output.shape)),
                "layout": str(output.layout or "-"),
                "numbers": math.prod(output.shape),
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "stitch": stitch_way(output) if name else "-",
            }
        )
    return pd.DataFrame(rows)


def stitch_way(output: Output) -> str:
    """How a stitch maps what a layer gives; "-" where it cannot."""
    if output.layout is None:
        return "-"
    return "features" if output.layout.kind == "features" else "channels"


def layers_text(layers: pd.DataFrame) -> str:
    """The table in 80 columns: layer names are whole, kinds are cut where the names leave too little room."""
    rows = [
        {
            "": row["index"],
            "layer": row["layer"],
            "kind": row["kind"],
            "output": row["output"].replace(" ", ""),
            "layout": row["layout"],
            "params": row["parameters"],
            "by": row["stitch"][0],
        }
        for row in layers.to_dict("records")
    ]
    legend = "by: how a stitch maps: c, channels alike at all positions; f, all features; -, no stitch here"
    kinds = {
        "last": "last: channels stand last, height x width x channels",
        "tokens": "tokens p+h x w: p class or register tokens, and patches in h rows",
        "?": "?: a guess",
    }
    legend += "".join(f". {text}" for mark, text in kinds.items() if any(mark in row["layout"] for row in rows))
    return f"{report.columns_text(rows, right=('', 'params'), squeeze='kind')}\n{report.fill(legend)}"


def main(argv: list[str] | None = None) -> None:
    cli.run_script(parse_args, run, argv, less_memory="choose a smaller network")


if __name__ == "__main__":
    main()
