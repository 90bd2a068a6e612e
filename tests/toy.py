"""A toy architecture of any width and a toy data set, so that whole scripts run in a fraction of a second."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src.dataset import DATASETS
from src.models import MODELS, Architecture, build_model
from src.networks import checkpoints

IMAGES, CLASSES, SIZE = 48, 4, 8


class Toy(nn.Module):
    """Two convolutions around a skip connection, and two linear layers; `width` channels throughout."""

    def __init__(self, *, channels: int, classes: int, size: int, width: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.fc1, self.fc2 = nn.Linear(4 * width, width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(x + self.conv2(x))
        return self.fc2(torch.tanh(self.fc1(self.flatten(self.pool(x)))))


def read_toy(root: None, split: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(int(split == "train"))
    labels = torch.arange(IMAGES) % CLASSES
    noise = torch.randint(0, 160, (IMAGES, 1, SIZE, SIZE), generator=generator)
    for image, label in zip(noise, labels, strict=True):  # each class brightens its own quarter
        row, column = divmod(int(label), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 90
    return noise.to(torch.uint8), labels


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A working folder with weights of toy networks: a3.pt and b3.pt of width 3, b5.pt of width 5."""
    digits = DATASETS["digits"]
    spec = replace(digits, name="toy", folder="Toy", labels=tuple("abcd"), size=SIZE, read=read_toy)
    monkeypatch.setitem(DATASETS, "toy", spec)
    monkeypatch.setitem(MODELS, "toy_w<width>", Architecture("Toy_w<width>", Toy))
    monkeypatch.chdir(tmp_path)
    for name, width, seed in (("a3", 3, 0), ("b3", 3, 1), ("b5", 5, 2)):
        save_toy(tmp_path / f"{name}.pt", width, seed)
    yield tmp_path


def save_toy(path: Path, width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_model(f"toy_w{width}", channels=1, classes=CLASSES, size=SIZE)
        network.get_submodule("bn1").load_state_dict(
            {"running_mean": torch.randn(width) / 5, "running_var": torch.rand(width) + 0.5}, strict=False
        )
    checkpoints.save(
        path, network, model=f"toy_w{width}", dataset="toy", init_seed=seed, gradient_seed=0, iteration=0, recipe={}
    )
    return network
