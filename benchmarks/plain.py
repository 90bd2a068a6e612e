"""The plain way, as one would write it in an afternoon: whole networks, forward hooks, images one by one.

Nothing here is imported by the suite; it is what the benchmarks compare with.
"""

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Images(Dataset):
    """CIFAR's images through PIL, with or without augmentation."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, augment: bool) -> None:
        random = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4)] if augment else []
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def loader(images: np.ndarray, labels: np.ndarray, *, train: bool, batch_size: int = 128) -> DataLoader:
    data = Images(images, labels, augment=train)
    return DataLoader(data, batch_size=batch_size, shuffle=train, drop_last=train, num_workers=WORKERS)


class HookedStitch(nn.Module):
    """Runs all of network 1 for an activation, then all of network 2 with that activation put in by a hook."""

    def __init__(self, front: nn.Module, end: nn.Module, layer: str, channels: int) -> None:
        super().__init__()
        self.front, self.end = front.eval(), end.eval()
        self.transform = nn.Conv2d(channels, channels, 1)
        for parameter in (*front.parameters(), *end.parameters()):
            parameter.requires_grad = False
        self.hooks = [
            front.get_submodule(layer).register_forward_hook(self._keep),
            end.get_submodule(layer).register_forward_hook(lambda module, inputs, output: self.stitched),
        ]

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.kept = output

    def forward(self, images: Tensor) -> Tensor:
        self.front(images)
        self.stitched = self.transform(self.kept)
        return self.end(images)

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def put(self, matrix: np.ndarray) -> None:
        """Set the map to a matrix (channels + 1, channels), the bias in its last row."""
        self.transform.weight.data = torch.from_numpy(matrix[:-1].T.copy())[:, :, None, None]
        self.transform.bias.data = torch.from_numpy(matrix[-1].copy())  # pyright: ignore[reportOptionalMemberAccess]

    def train_epoch(self, batches: DataLoader) -> np.ndarray:
        """Train the map for an epoch; returns it, the bias in the last row."""
        optimizer = torch.optim.Adam(self.transform.parameters(), lr=1e-3, weight_decay=1e-4)
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(self(images), labels)
            loss.backward()
            optimizer.step()
        weight, bias = (parameter.detach().numpy() for parameter in self.transform.parameters())
        return np.concatenate([weight[:, :, 0, 0].T, bias[None]])


def whole_run(
    front: nn.Module, end: nn.Module, layer: str, channels: int, batches: dict[str, DataLoader]
) -> list[float]:
    """A stitch from least squares: init, an epoch, then accuracies and similarities of both networks and all stitches.

    batches: `train` with augmentation, `fit` the same images without, `val`.
    """
    maps = [least_squares(*(activations(network, layer, batches["fit"]) for network in (front, end)))]
    stitched = HookedStitch(front, end, layer, channels)
    stitched.put(maps[0])
    maps.append(stitched.train_epoch(batches["train"]))
    results = [evaluate(stitched, batches["val"])]  # the validation after the epoch
    stitched.close()
    x, y = (activations(network, layer, batches["val"]) for network in (front, end))
    maps.append(least_squares(x, y))
    results += [evaluate(network, batches["val"]) for network in (front, end)] + [cka(x, y), l2(x, y)]
    for matrix in maps:
        stitched = HookedStitch(front, end, layer, channels)
        stitched.put(matrix)
        results.append(evaluate(stitched, batches["val"]))
        stitched.close()
        mapped = np.einsum("nchw,cd->ndhw", x, matrix[:-1]) + matrix[-1][:, None, None]
        results += [cka(mapped, y), l2(mapped, y)]
    return results


def activations(network: nn.Module, layer: str, batches: DataLoader) -> np.ndarray:
    """All activations of a layer, (n, channels, h, w), by a hook on the whole network."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))  # type: ignore
    with torch.no_grad():
        for images, _ in batches:
            network(images)
    handle.remove()
    return torch.cat(kept).numpy()


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pseudo-inverse of the stacked activations, a row a position, with a column of ones."""
    rows_x, rows_y = (z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1]) for z in (x, y))
    rows_x = np.concatenate([rows_x, np.ones((len(rows_x), 1), dtype=rows_x.dtype)], 1)
    return np.linalg.pinv(rows_x) @ rows_y


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA from two full Gram matrices."""
    grams = []
    for z in (x, y):
        rows = z.reshape(len(z), -1)
        gram = rows @ rows.T
        gram -= gram.mean(0)
        gram -= gram.mean(1)[:, None]
        grams.append(gram)
    k, m = grams
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def l2(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x - y) ** 2).mean())


def evaluate(network: nn.Module, batches: DataLoader) -> float:
    """Accuracy."""
    correct = total = 0
    network.eval()
    with torch.no_grad():
        for images, labels in batches:
            correct += (network(images).argmax(1) == labels).sum().item()
            total += len(labels)
    return correct / total


def train_epoch(network: nn.Module, batches: DataLoader) -> float:
    """Train a whole network for an epoch; returns the last loss."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    loss = torch.zeros(())
    for images, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    return loss.item()
