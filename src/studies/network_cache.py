"""The networks and images of a study, each opened once, and what planning asks of them."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.cutting.channel_axis import Output, find_outputs
from src.cutting.selection import choose_layers
from src.dataset.feature_files import digest_of_features
from src.metrics.algebra.products import times
from src.networks import opening as sources
from src.networks.checkpoints import Checkpoint, weights_digest
from src.networks.feature_networks import FeaturePair, open_sides, place_of
from src.networks.presentation import NetworksOnDataset, put_on_dataset
from src.networks.source_spec import Named, is_features

CPU = torch.device("cpu")
SIDE, GPU_SIDE = 512, 2048  # rows of the matrix whose products are timed
BATCH, GPU_BATCH = 32, 512  # images of the forward pass that is timed


@dataclass(slots=True)
class NetworkCache:
    """Everything that was opened or found out, by what it depends on; `on_message` hears notes of what is opened.

    Speeds are those of the `device` that will do the work.
    """

    on_message: Callable[[str], None]
    device: torch.device = CPU
    networks: dict[tuple, Checkpoint] = field(default_factory=dict)
    _found: dict[tuple, Any] = field(default_factory=dict)

    def pair(
        self, texts: tuple[str | Named, str | Named], dataset: str | None, size: int | None
    ) -> NetworksOnDataset | FeaturePair:
        """Two networks in front of a data set, or files in the place of one or both.

        Raises UserError as `sources.open_pair` and `put_on_dataset` do, or `open_sides`.
        """
        if any(map(is_features, texts)):
            return open_sides(texts, place_of(texts, dataset), size=size, on_message=self.on_message, opener=self._open)
        return put_on_dataset(
            sources.open_pair(texts, dataset=dataset, size=size, opener=self._open), dataset, size=size
        )

    def _open(self, text: str | Named, *, dataset: str | None, size: int | None, **_: Any) -> Checkpoint:
        key = text, dataset, size
        if key not in self.networks:
            self.networks[key] = sources.open_network(text, dataset=dataset, size=size, on_message=self.on_message)
        return self.networks[key]

    def images(self, on_data: NetworksOnDataset, name: str, images: int | None) -> tuple[str, int]:
        """The digest of a split, or of so many of its images, as these networks' labels are arranged; and how many."""

        def read() -> tuple[str, int]:
            split = on_data.split(name, device=torch.device("cpu"), images=images)
            return split.digest(), len(split)

        return self._once((on_data.spec.name, on_data.spec.size, on_data.answers, name, images), read)

    def digest_of_file(self, path: Path) -> str:
        """The digest of a file or folder of activations."""
        return self._once(("file", str(path)), lambda: digest_of_features(path))

    def of(self, on_data: NetworksOnDataset, number: int) -> "CachedNetwork":
        """One of the two networks, as it looks in this pair."""
        network = on_data.networks[number]
        form = str(network.path), on_data.spec.name, on_data.spec.size, on_data.shared, on_data.reordered[number]
        return self._once(form, lambda: CachedNetwork(network, on_data.sample, self.device))

    @property
    def products(self) -> float:
        """Float operations that large matrix products do in a second there, measured."""
        return self._once(("products",), lambda: _products(self.device))

    def is_first(self, *what: Any) -> bool:
        """Whether nobody has asked for this before."""
        key = ("asked", *what)
        return key not in self._found and self._once(key, lambda: True)

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


class CachedNetwork:
    """A network and a sample of images: its layers by text, what they give, its digest and its speed."""

    def __init__(self, checkpoint: Checkpoint, sample: torch.Tensor, device: torch.device = CPU) -> None:
        self.checkpoint, self.sample, self.device = checkpoint, sample, device
        self._layers: dict[str, list[str]] = {}
        self._outputs: dict[str, Output] = {}
        self._digest: str | None = None
        self._seconds: float | None = None

    @property
    def network(self) -> nn.Module:
        return self.checkpoint.network

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = weights_digest(self.network)
        return self._digest

    def layers(self, text: str) -> list[str]:
        if text not in self._layers:
            self._layers[text] = choose_layers(self.network, text, self.sample)
            unknown = [layer for layer in self._layers[text] if layer not in self._outputs]
            if unknown:
                self._outputs |= find_outputs(self.network, unknown, self.sample, self.checkpoint.layout)
        return self._layers[text]

    def output(self, layer: str) -> Output:
        return self._outputs[layer]

    @property
    def seconds(self) -> float:
        """What a forward pass takes an image, measured on blank ones."""
        if self._seconds is None:
            self._seconds = _timed(self.network, self.sample[:1], self.device)
        return self._seconds


def _products(device: torch.device) -> float:
    side = GPU_SIDE if device.type == "cuda" else SIDE
    rows = torch.randn(side, 4 * side, generator=torch.Generator().manual_seed(0)).to(device)
    return 4 * side**3 / _least(lambda: times(rows, rows), device)


@torch.no_grad()
def _timed(network: nn.Module, image: torch.Tensor, device: torch.device) -> float:
    """Seconds an image; on a GPU of a copy, since the network stays where plans are made."""
    count = GPU_BATCH if device.type == "cuda" else BATCH
    images = image.expand(count, *image.shape[1:]).contiguous().to(device)
    there = copy.deepcopy(network).to(device) if device.type != "cpu" else network
    return _least(lambda: there(images), device) / count


def _least(work: Callable[[], Any], device: torch.device) -> float:
    """The least seconds of three times."""
    took = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
    return min(took)
