"""Architectures of other libraries, cut at three block boundaries and held against plain forward hooks.

    python -m benchmarks.architectures [PART OF A NAME ...] > docs/architectures.md

Weights are random, of seed 0. For each: whether its graph or hooks cut it, how the three blocks lay out what they give,
the largest difference of heads and tails to hooks, relative to the largest value, and the share of decisions that a
stitch of the network to itself with an identity map keeps.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import first_line
from src.cutting.channel_axis import Output, find_outputs
from src.cutting.hooks import exchanged, tensor_of
from src.cutting.parts import head, is_traced, layer_names, tail
from src.cutting.structure import split_layer
from src.networks.opening import open_network
from src.networks.sources.transformers import Logits
from src.stitching import CutNetworks, StitchSpec, initial_stitch

# name of a spec, and the size of its images
TORCHVISION = {
    "alexnet": 96, "vgg11": 64, "squeezenet1_1": 64, "resnet18": 64, "resnext50_32x4d": 64, "densenet121": 64,
    "googlenet": 96, "inception_v3": 96, "shufflenet_v2_x0_5": 64, "mnasnet0_5": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "efficientnet_b0": 64, "regnet_y_400mf": 64, "convnext_tiny": 64, "vit_b_32": 64,
    "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224,
}  # fmt: skip
TIMM = {
    "resnet18": 64, "resnet50d": 64, "mobilenetv3_small_050": 64, "mobilenetv4_conv_small": 64,
    "tf_efficientnet_lite0": 64, "tf_efficientnetv2_b0": 64, "regnetx_002": 64, "regnety_002": 64, "ghostnet_050": 64,
    "repvgg_a0": 64,
    "convnext_atto": 64, "convnextv2_atto": 64, "poolformer_s12": 64, "edgenext_xx_small": 64, "fastvit_t8": 64,
    "vit_tiny_patch16_224": 64, "vit_small_patch14_reg4_dinov2": 56, "deit_tiny_distilled_patch16_224": 64,
    "deit3_small_patch16_224": 64, "beit_base_patch16_224": 64, "eva02_tiny_patch14_224": 56, "cait_xxs24_224": 64,
    "xcit_nano_12_p16_224": 64, "mixer_s32_224": 64, "resmlp_12_224": 64, "gmlp_ti16_224": 64, "levit_128s": 224,
    "efficientformer_l1": 224, "efficientformerv2_s0": 224, "swin_tiny_patch4_window7_224": 64,
    "swinv2_tiny_window8_256": 64,
    "maxvit_rmlp_pico_rw_256": 64, "coatnet_nano_rw_224": 64, "mobilevit_xxs": 64, "pvt_v2_b0": 64,
    "twins_svt_small": 64,
    "crossvit_tiny_240": 240, "tiny_vit_5m_224": 64, "focalnet_tiny_srf": 64, "davit_tiny": 64, "mvitv2_tiny": 64,
    "hiera_tiny_224": 224, "caformer_s18": 64, "volo_d1_224": 224,
}  # fmt: skip
_SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
_SMALL |= {"image_size": 32}
_STAGES = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32}
# name of a family of transformers, its config's options, and the size of its images
TRANSFORMERS: dict[str, tuple[dict[str, Any], int]] = {
    "ViT": ({**_SMALL, "patch_size": 4}, 32),
    "DeiT": ({**_SMALL, "patch_size": 4}, 32),
    "Beit": ({**_SMALL, "patch_size": 4}, 32),
    "Dinov2": ({**_SMALL, "patch_size": 4}, 32),
    "ViTMSN": ({**_SMALL, "patch_size": 4}, 32),
    "Swin": (_STAGES, 32),
    "Swinv2": (_STAGES, 32),
    "ConvNext": ({"hidden_sizes": [16, 32, 64, 64], "depths": [2, 2, 2, 2]}, 64),
    "ConvNextV2": ({"hidden_sizes": [16, 32, 64, 64], "depths": [2, 2, 2, 2]}, 64),
    "ResNet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]}, 64),
    "RegNet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "groups_width": 8}, 64),
    "MobileNetV2": ({"depth_multiplier": 0.35}, 64),
    "PoolFormer": ({"hidden_sizes": [16, 32, 64, 64], "depths": [2, 2, 2, 2]}, 64),
    "Segformer": ({"hidden_sizes": [16, 32, 64, 64], "depths": [2, 2, 2, 2]}, 64),
}
NOISE = 0.1  # of what a tail is given in place of what its layer gave, relative to its standard deviation


def architectures() -> Iterator[tuple[str, int, Callable[[], nn.Module]]]:
    """Name, size of images, and what builds it."""
    for source, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name, size in names.items():
            yield f"{source}:{name}", size, partial(of_spec, f"{source}:{name}#0?size={size}")
    for name, (options, size) in TRANSFORMERS.items():
        yield f"transformers {name}", size, partial(of_config, name, options)


def of_spec(text: str) -> nn.Module:
    return open_network(text).network


def of_config(name: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=10, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Logits(getattr(transformers, f"{name}ForImageClassification")(config)).eval()


def block_boundaries(network: nn.Module, sample: Tensor) -> dict[str, Output]:
    """Three of the numbered layers, those that hold others if there are any, spread over the network."""
    names = [name for name in layer_names(network, sample) if re.fullmatch(r"[^:]*\d(:0)?", name)]
    whole = [name for name in names if any(module_of(network, name).children())] or names
    found = {name: output for name, output in find_outputs(network, whole, sample).items() if output.layout}
    chosen = list(found)
    places = sorted({len(chosen) * part // 6 for part in (1, 3, 5)})
    return {chosen[place]: found[chosen[place]] for place in places}


@contextmanager
def hooked(network: nn.Module, layer: str, given: Tensor | None) -> Iterator[list[Tensor]]:
    """The plain way: a hook that keeps what a layer gives and, if asked, gives something else."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        seen.append(tensor_of(layer, output).clone())
        return None if given is None else exchanged(layer, output, given.clone())  # what follows may write into it

    handle = module_of(network, layer).register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def module_of(network: nn.Module, layer: str) -> nn.Module:
    return network.get_submodule(split_layer(layer)[0])


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


@torch.no_grad()
def examine(network: nn.Module, size: int) -> str:
    """The columns of a row."""
    torch.manual_seed(1)
    images = torch.randn(8, 3, size, size)
    blocks = block_boundaries(network, images[:2])
    heads, tails, kept, layouts = [], [], [], []
    for layer, output in blocks.items():
        layout = output.known
        with hooked(network, layer, None) as seen:
            network(images[:2])
        given = seen[-1] + NOISE * seen[-1].std() * torch.randn_like(seen[-1])
        with hooked(network, layer, given):
            wanted = network(images[:2])
        said = {layer: layout}
        heads.append(apart(head(network, layer, said)(images[:2]), layout.canonical(seen[-1])))
        tails.append(apart(tail(network, layer, layouts=said)(layout.canonical(given), images[:2]), wanted))
        spec = StitchSpec(layer, layer, init="eye", epochs=0)
        cuts = CutNetworks(network, network, [spec], images[:2])
        kept.append(agreement(cuts, spec, network, images))
        layouts.append(f"`{layer}` {layout}")
    how = "graph" if all(is_traced(tail(network, layer)) for layer in blocks) else "hooks"
    return f"{how} | {', '.join(layouts)} | {max(heads):.0e} | {max(tails):.0e} | {min(kept):.0%}"


def agreement(cuts: CutNetworks, spec: StitchSpec, network: nn.Module, images: Tensor) -> float:
    """The share of decisions that a stitch with an identity map keeps."""
    stitch = initial_stitch(cuts.geometry(spec.cut), None, init="eye", mask="identity", seed=0)
    logits = cuts.logits(spec, stitch, cuts.front_activations([spec], images), images)
    return float((logits.argmax(1) == network(images).argmax(1)).double().mean())


def main(words: list[str]) -> None:
    print("# Architectures of other libraries\n")
    print("Made by `python -m benchmarks.architectures`, whose docstring says what the columns mean.\n")
    print("| network | images | cut by | three blocks and their layouts | head | tail | kept |")
    print("|---|--:|---|---|--:|--:|--:|")
    for name, size, build in architectures():
        if words and not any(word in name for word in words):
            continue
        start = time.time()
        try:
            row = examine(build(), size)
        except Exception as error:  # a table of what works and what does not
            row = f"failed | {type(error).__name__}: {first_line(error)} | | |"
        print(f"| {name} | {size} | {row} |", flush=True)
        print(f"{name}: {time.time() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
