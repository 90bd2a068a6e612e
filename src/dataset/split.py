"""A split of a data set as a source of batches, whether it lives in memory or in a folder of JPEG files."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from torch import Generator, Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from src.dataset.spec import DatasetSpec

Batch = tuple[Tensor, Tensor]
RESIZED = 256  # shorter side of images read from a folder, before the crop to the network's size


class Split(ABC):
    """Images of one data set with their labels, handed out as normalised batches on one device."""

    def __init__(self, spec: DatasetSpec, labels: Tensor, device: torch.device) -> None:
        self.spec = spec
        self.labels = labels
        self.device = device

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int,
        *,
        order: Generator | None = None,
        augment: Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Yield (images, labels): float32 (n, channels, size, size), channels last in memory, and their labels.

        With `order` the images are shuffled; with `augment` each image is changed at random. Both are CPU
        generators, drawn from in this process only: equal seeds give equal batches on every device and for any
        number of workers. `drop_last` leaves out an incomplete last batch.
        """
        index = torch.arange(len(self)) if order is None else torch.randperm(len(self), generator=order)
        stop = len(self) - len(self) % batch_size if drop_last else len(self)
        for images, labels in self._read(index[:stop].split(batch_size)):
            images = self._crop(images) if augment is None else self.spec.augment(images, augment)
            yield self._normalise(images), labels

    @abstractmethod
    def _read(self, indices: tuple[Tensor, ...]) -> Iterator[Batch]:
        """Yield the raw uint8 images and the labels of each tensor of indices, on the device."""

    def _crop(self, images: Tensor) -> Tensor:
        return images

    def _normalise(self, images: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.spec.mean, device=images.device).view(shape) * 255
        std = torch.tensor(self.spec.std, device=images.device).view(shape) * 255
        # channels last: the layout in which convolutions are fastest, on processors and on GPUs
        images = images.to(dtype=torch.float32, memory_format=torch.channels_last)
        return (images - mean) / std


class MemorySplit(Split):
    """A split small enough to live on the device as one tensor of bytes."""

    def __init__(self, spec: DatasetSpec, images: Tensor, labels: Tensor) -> None:
        super().__init__(spec, labels, images.device)
        self.images = images

    def _read(self, indices: tuple[Tensor, ...]) -> Iterator[Batch]:
        for index in indices:
            index = index.to(self.device)
            yield self.images[index], self.labels[index]


class FolderSplit(Split):
    """A split whose images are decoded from files by worker processes as they are needed."""

    def __init__(
        self,
        spec: DatasetSpec,
        files: list[Path],
        labels: Tensor,
        *,
        device: torch.device | str,
        num_workers: int | None,
    ) -> None:
        super().__init__(spec, labels, torch.device(device))
        self.files = files
        self.num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers

    def _read(self, indices: tuple[Tensor, ...]) -> Iterator[Batch]:
        loader = DataLoader(
            _Decoder(self.files),
            batch_sampler=[index.tolist() for index in indices],
            num_workers=min(self.num_workers, len(indices)),
            pin_memory=self.device.type == "cuda",
        )
        for index, images in zip(indices, loader, strict=True):
            yield images.to(self.device, non_blocking=True), self.labels[index].to(self.device)

    def _crop(self, images: Tensor) -> Tensor:
        return v2.functional.center_crop(images, [self.spec.size] * 2)


class _Decoder(torch.utils.data.Dataset):
    """Files -> uint8 images (3, 256, 256): RGB, shorter side 256, centre."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.resize = v2.Compose([v2.Resize(RESIZED, antialias=True), v2.CenterCrop(RESIZED)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = self.files[index]
        try:
            image = torchvision.io.decode_image(str(file), mode=torchvision.io.ImageReadMode.RGB)
        except RuntimeError as error:
            raise ValueError(f"cannot read the image {file}: {str(error).splitlines()[0]}") from None
        return self.resize(image)
