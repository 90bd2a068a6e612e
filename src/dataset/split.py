"""A split of a data set as a source of batches, whether it lives in memory or in a folder of image files."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from src.core.config import decoders_of
from src.dataset.ahead import Ahead, change_of
from src.dataset.cache import CacheOptions, Kept
from src.dataset.dataset_spec import DatasetSpec
from src.dataset.decode import Files, decode_batches
from src.dataset.prefetch import on_device
from src.dataset.preprocessing import Preprocessing

Batch = tuple[Tensor, Tensor]
MARKS = 2  # channels that a MarkedSplit adds


class Split(ABC):
    """Images of one data set with their labels, handed out in batches on one device, as a network sees them.

    Without `seen_by` that is a network trained on this data set.
    """

    def __init__(self, spec: DatasetSpec, labels: Tensor, device: torch.device) -> None:
        self.spec = spec
        self.labels = labels
        self.device = device
        self._preprocess: Callable[[Tensor], Tensor] | None = None
        self._still = False

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
        """Yield (images, labels): float32 (n, channels, size, size), channels last in memory, and their labels; as
        they are in the data set, in 0..255, where that is how they are seen.

        With `order` the images are shuffled; with `augment` each image is changed at random. Both are CPU
        generators, drawn from in this process only: equal seeds give equal batches on every device and for any
        number of workers. `drop_last` leaves out an incomplete last batch.
        """
        index = torch.arange(len(self)) if order is None else torch.randperm(len(self), generator=order)
        if drop_last:
            index = index[: len(self) - len(self) % batch_size]
        # split makes one empty batch of nothing
        for images, labels in self._read(index, batch_size) if len(index) else ():
            changed = augment is not None and not self._still
            images = self._augmented(images, augment) if changed and augment else self._crop(images)
            yield self.as_seen(images), labels

    @property
    def draws_ahead(self) -> bool:
        """Whether the batches of an epoch can be drawn beforehand."""
        return False

    def ahead(self, batch_size: int, steps: int, *, order: Generator, augment: Generator) -> Ahead | None:
        """The first batches of an epoch of training, whole ones, drawn beforehand; None where that cannot be.

        Afterwards the generators are as if `batches` had been asked for as many.
        """
        return None

    def as_seen(self, images: Tensor) -> Tensor:
        """Images of the data set's own pixels, (n, c, h, w) in 0..255, as a network sees them; it passes gradients."""
        return (self._preprocess or self.spec.preprocessing)(images)

    @property
    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """Black and white as a network sees them, (1, channels, 1, 1) each."""
        if self._preprocess is _as_they_are:
            return tuple(torch.full((1, 1, 1, 1), value, device=self.device) for value in (0.0, 255.0))  # pyright: ignore
        preprocessing = self._preprocess or self.spec.preprocessing
        assert isinstance(preprocessing, Preprocessing)
        mean, std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        return (0 - mean) / std, (1 - mean) / std

    def unaugmented(self) -> "Split":
        """The same images, which nobody changes at random."""
        other = copy.copy(self)
        other._still = True
        return other

    @property
    def by_class(self) -> bool:
        """Whether images of a class stand together, as the files of a folder do, so that a part is no fair sample."""
        if self.labels.dim() > 1 or len(self) < 2:
            return False
        shares = self.labels.bincount().double() / len(self)
        by_chance = float(shares.square().sum())
        alike = float((self.labels[1:] == self.labels[:-1]).double().mean())
        return alike > (1 + by_chance) / 2

    @abstractmethod
    def take(self, index: Tensor) -> "Split":
        """A split of the images at these indices (kept,), in that order."""

    def with_preprocessing(self, preprocessing: Preprocessing | None) -> "Split":
        """The same images as a network of that preprocessing sees them; None: as they are, (n, c, h, w) in 0..255."""
        other = copy.copy(self)
        other._preprocess = preprocessing or _as_they_are
        return other

    def relabelled(self, labels: Tensor) -> "Split":
        """A split of the same images with other labels."""
        other = copy.copy(self)
        other.labels = labels.to(self.device)
        return other

    def digest(self) -> str:
        """SHA-256 of what the split holds: images (of files their names and sizes) and labels."""
        digest = hashlib.sha256(self._contents())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def _contents(self) -> Any:
        """What tells the images apart from others, as bytes."""

    @abstractmethod
    def _read(self, index: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield batches of the raw uint8 images and the labels at these indices, on the device."""

    def _crop(self, images: Tensor) -> Tensor:
        return images

    def _augmented(self, images: Tensor, generator: Generator) -> Tensor:
        return self.spec.augment(images, generator)


def _as_they_are(images: Tensor) -> Tensor:
    return images


class MemorySplit(Split):
    """A split small enough to live on the device as one tensor of bytes."""

    def __init__(self, spec: DatasetSpec, images: Tensor, labels: Tensor) -> None:
        super().__init__(spec, labels, images.device)
        self.images = images

    def _contents(self) -> Any:
        return self.images.cpu().contiguous().numpy()

    def take(self, index: Tensor) -> "MemorySplit":
        other = copy.copy(self)
        other.images, other.labels = (values[index.to(self.device)] for values in (self.images, self.labels))
        return other

    @property
    def draws_ahead(self) -> bool:
        return type(self) is MemorySplit and (self._still or change_of(self) is not None)

    def ahead(self, batch_size: int, steps: int, *, order: Generator, augment: Generator) -> Ahead | None:
        if not self.draws_ahead:
            return None
        return Ahead(self, batch_size, steps, order, None if self._still else augment)

    def _read(self, index: Tensor, batch_size: int) -> Iterator[Batch]:
        # all at once: a copy for each batch would make a GPU finish the last one first
        for part in index.to(self.device).split(batch_size):
            yield self.images.index_select(0, part), self.labels[part]


class PairedImagesSplit(Split):
    """A split whose images have another one of the same split beside them: (n, 2 * channels, size, size).

    The first half of the channels is the image that the label belongs to, the second its partner, the same in each
    pass. Both are changed alike where they are changed at random.
    """

    def __init__(self, split: Split, partners: Tensor) -> None:
        """`partners`: for each image the index of the one that stands beside it, (images,)."""
        super().__init__(split.spec, split.labels, split.device)
        self.images, self.places, self.partners = split, torch.arange(len(split)), partners
        self._one = split._preprocess or split.spec.preprocessing
        self._preprocess, self._still = self._both, split._still

    def _both(self, images: Tensor) -> Tensor:
        return torch.cat([self._one(half) for half in images.chunk(2, 1)], 1)

    def take(self, index: Tensor) -> "PairedImagesSplit":
        """Each of these images keeps its partner, which may be none of them."""
        other = copy.copy(self)
        other.places, other.partners = self.places[index], self.partners[index]
        other.labels = self.labels[index.to(self.device)]
        return other

    def _contents(self) -> Any:
        return self.images.digest().encode() + self.places.numpy().tobytes() + self.partners.numpy().tobytes()

    def _read(self, index: Tensor, batch_size: int) -> Iterator[Batch]:
        both = (self.images._read(places[index], batch_size) for places in (self.places, self.partners))
        for (images, labels), (partners, _) in zip(*both, strict=True):
            yield torch.cat([images, partners], 1), labels

    def _crop(self, images: Tensor) -> Tensor:
        return self.images._crop(images)

    def _augmented(self, images: Tensor, generator: Generator) -> Tensor:
        return self.images._augmented(images, generator)


class MarkedSplit(Split):
    """A split whose images tell what they are: (n, channels + MARKS, ...), the last ones their label and their place.

    Labels are whole numbers, one an image; places count from `first`.
    """

    def __init__(self, split: Split, first: int = 0) -> None:
        super().__init__(split.spec, split.labels, split.device)
        self.images = split
        self.places = torch.arange(first, first + len(split), device=split.device)
        self._preprocess, self._still = split._preprocess, split._still

    def batches(
        self,
        batch_size: int,
        *,
        order: Generator | None = None,
        augment: Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        for images, told in super().batches(batch_size, order=order, augment=augment, drop_last=drop_last):
            marks = told.float()[:, :, None, None].expand(-1, -1, *images.shape[2:])
            yield torch.cat([images, marks], 1), told[:, 0]

    def take(self, index: Tensor) -> "MarkedSplit":
        other = copy.copy(self)
        other.images, other.places = self.images.take(index), self.places[index.to(self.device)]
        other.labels = other.images.labels
        return other

    def _contents(self) -> Any:
        return self.images.digest().encode() + self.places.cpu().numpy().tobytes()

    def _read(self, index: Tensor, batch_size: int) -> Iterator[Batch]:
        places = self.places[index.to(self.device)].split(batch_size)
        for (images, labels), place in zip(self.images._read(index, batch_size), places, strict=True):
            yield images, torch.stack([labels, place], 1)

    def _crop(self, images: Tensor) -> Tensor:
        return self.images._crop(images)

    def _augmented(self, images: Tensor, generator: Generator) -> Tensor:
        return self.images._augmented(images, generator)


class FolderSplit(Split):
    """A split whose images are decoded from files by worker processes, once where the decoded ones can be kept."""

    def __init__(
        self,
        spec: DatasetSpec,
        files: Sequence[Path],
        labels: Tensor,
        *,
        device: torch.device | str,
        num_workers: int | None,
        keep: CacheOptions | None = None,
    ) -> None:
        super().__init__(spec, labels.to(device), torch.device(device))
        self.files = files
        self.num_workers = decoders_of() if num_workers is None else num_workers
        self._kept = Kept(files, spec.target, keep or CacheOptions())

    def _contents(self) -> Any:
        names = [(file.name, file.stat().st_size) for file in self.files]
        return repr(names).encode() + (repr(self.spec.target).encode() if self.spec.exact else b"")

    def take(self, index: Tensor) -> "FolderSplit":
        other = copy.copy(self)
        chosen = index.tolist()
        other.files = self.files.take(chosen) if isinstance(self.files, Files) else [self.files[i] for i in chosen]
        other.labels = self.labels[index.to(self.device)]
        other._kept = self._kept.other(other.files)
        return other

    def _read(self, index: Tensor, batch_size: int) -> Iterator[Batch]:
        parts, rows = index.split(batch_size), self._kept.rows()
        missing = list(parts) if rows is None else _unknown(parts, rows.known, batch_size)
        wanted = [part.tolist() for part in missing if len(part)]
        pin = self.device.type == "cuda"
        decoded = decode_batches(self.files, self.spec.target, wanted, num_workers=self.num_workers, pin=pin)
        read = self._pixels(parts, missing, decoded, rows)
        places = index.to(self.device).split(batch_size)
        for images, place in zip(on_device(read, self.device), places, strict=True):
            yield images, self.labels[place]

    @staticmethod
    def _pixels(
        parts: Sequence[Tensor], missing: Sequence[Tensor], decoded: Iterator[Tensor], rows: Any
    ) -> Iterator[Tensor]:
        """The images of each batch, those that are kept from there."""
        for part, new in zip(parts, missing, strict=True):
            images = next(decoded) if len(new) else None
            if rows is not None:
                if images is not None:
                    rows.put(new, images)
                images = rows.get(part)
            assert images is not None
            yield images

    def _crop(self, images: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional  # slow to import, and needed for images in folders only

        return functional.center_crop(images, [self.spec.size] * 2)

    def _augmented(self, images: Tensor, generator: Generator) -> Tensor:
        return self.spec.augment(images, generator, size=self.spec.size)


def _unknown(parts: Sequence[Tensor], known: Tensor, batch_size: int) -> list[Tensor]:
    """Of each batch the images that are still to be decoded.

    The few that a pass over all but an incomplete last batch leaves out are taken with its last batch, so that no later
    epoch decodes anything.
    """
    missing = [part[~known[part]] for part in parts]
    left = ~known
    left[torch.cat(list(parts))] = False
    rest = left.nonzero().flatten()
    if len(rest) < batch_size:
        missing[-1] = torch.cat([missing[-1], rest])
    return missing
