"""Dense layers of frozen transformers, by every library at hand: python -m benchmarks.dense

Seconds for IMAGES images, medians in turn: the network as `freeze` leaves it, and with its linear layers done by
another library; the largest difference of logits, over their largest size.
"""

import copy
import statistics
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.run import machine, seconds
from src.cutting.freeze import freeze
from src.metrics.algebra.products import times
from src.networks.opening import open_network

IMAGES, REPEATS = 16, 7
NETWORKS = {"vit_w96#0": 32, "timm:vit_tiny_patch16_224#0": 224}


class Other(nn.Module):
    """A linear layer, computed by something else."""

    def __init__(self, layer: nn.Linear, product: Callable[[Tensor, nn.Linear], Tensor]) -> None:
        super().__init__()
        self.layer, self.product = layer, product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.layer)


def by_convolution(x: Tensor, layer: nn.Linear) -> Tensor:
    """oneDNN's 1 x 1 convolution over tokens, which channels last are the same bytes."""
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    return F.conv2d(rows, layer.weight[:, :, None, None], layer.bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Packed:
    """oneDNN's linear, whose weights are laid out for it once."""

    def __init__(self) -> None:
        self.layers: dict[nn.Linear, nn.Module] = {}

    def __call__(self, x: Tensor, layer: nn.Linear) -> Tensor:
        if layer not in self.layers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch about its own mkldnn
                from torch.utils import mkldnn
            self.layers[layer] = mkldnn.to_mkldnn(layer)
        return self.layers[layer](x)


def by_numpy(x: Tensor, layer: nn.Linear) -> Tensor:
    products = times(x.reshape(-1, x.shape[-1]), layer.weight)
    return products.add_(layer.bias).view(*x.shape[:-1], -1)


def replaced(network: nn.Module, product: Callable[[Tensor, nn.Linear], Tensor]) -> nn.Module:
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Other(child, product))
    return network


@torch.no_grad()
def rows(spec: str, size: int) -> list[str]:
    network = freeze(open_network(spec, dataset="cifar10").network)
    ways = {
        "torch": network,
        "oneDNN, packed": replaced(network, Packed()),
        "oneDNN, 1 x 1 convolution": replaced(network, by_convolution),
        "numpy": replaced(network, by_numpy),
    }
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, taken = network(images), {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            taken[name].append(seconds(lambda way=way: way(images)))
    lines = []
    for name, way in ways.items():
        differs = float((way(images) - expected).abs().max() / expected.abs().max())
        lines.append(f"{spec:32} {name:26} {statistics.median(taken[name]):7.3f} {differs:8.0e}")
    return lines


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch about its own mkldnn
    print(machine())
    print(f"{'network':32} {'linear layers by':26} {'s':>7} {'differs':>8}")
    for spec, size in NETWORKS.items():
        try:
            print("\n".join(rows(spec, size)), flush=True)
        except ValueError as error:  # timm is no part of the core
            print(error)


if __name__ == "__main__":
    main()
