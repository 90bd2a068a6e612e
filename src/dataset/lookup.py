"""A text -> the data set that it names: a line of the table, a folder of images, or a file of arrays."""

import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from src.core import config
from src.core.errors import UserError
from src.core.text import close_to
from src.dataset.arrays import arrays_spec
from src.dataset.cache import CacheOptions
from src.dataset.dataset_spec import DatasetSpec
from src.dataset.folder import folder_spec
from src.dataset.registry import DATASETS
from src.dataset.split import FolderSplit, MemorySplit, Split
from src.dataset.subset import take_images

KINDS = {"folder": folder_spec, "arrays": arrays_spec}
_FOLDER_ALIASES = {"celebagenerator": "celeba"}
_AT_ONCE = 1000  # images that are resized together


def canonical_dataset(text: str) -> str:
    """A data set's name, given by that name or by its folder, in any case; folder:PATH and arrays:PATH as they are.

    Raises UserError for what is neither; whether PATH exists is not asked.
    """
    kind, _, path = text.partition(":")
    if kind in KINDS:
        if not path:
            raise UserError(f"{text} names no path behind the colon")
        return text
    lower = text.lower()
    known = {spec.folder.lower(): spec.name for spec in DATASETS.values()} | {n: n for n in DATASETS} | _FOLDER_ALIASES
    if lower not in known:
        raise UserError(f"unknown data set {text!r}{close_to(text, known)}; choose from {', '.join(known_datasets())}")
    return known[lower]


def known_datasets() -> list[str]:
    """What may stand where a data set is named."""
    return [*sorted(DATASETS), *(f"{kind}:PATH" for kind in KINDS)]


def dataset_folder(text: str) -> str:
    """What weights of a data set are filed under; of one that a path names, what is left of it in a file name."""
    kind, _, path = text.partition(":")
    if kind in KINDS:
        return re.sub(r"[^\w.-]", "_", os.path.basename(os.path.abspath(path)))
    return DATASETS[canonical_dataset(text)].folder


def file_part(text: str) -> str:
    """A data set in the name of a result file."""
    kind = text.partition(":")[0]
    return f"{kind}_{dataset_folder(text)}" if kind in KINDS else text


def is_known(text: str | None) -> bool:
    """Whether a data set is one of the table, of which all is known without a look at its files."""
    return text in DATASETS


def dataset_of(text: str | DatasetSpec, size: int | None = None) -> DatasetSpec:
    """All that is known of the data set that a text names, whose images are brought to size x size, if that is given.

    Raises UserError for a name that is none, OSError or UserError for a path with something else than images.
    """
    if isinstance(text, DatasetSpec):
        spec = text
    else:
        kind, _, path = canonical_dataset(text).partition(":")
        if path:
            spec = replace(KINDS[kind](text, Path(path).expanduser()), folder=dataset_folder(text))
        else:
            spec = DATASETS[kind]
    return replace(spec, size=size) if size else spec


def load_split(
    name: str | DatasetSpec,
    split: str,
    *,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    num_workers: int | None = None,
    keep: CacheOptions | None = None,
    images: int | None = None,
) -> Split:
    """Open the `train` or `val` images of a data set, or its `valid` ones where it has such (CelebA).

    `root` overrides the configured folder. In-memory sets live on `device`; `num_workers` processes decode the
    images of the others (None: one a core, at most 8), and `keep` says where decoded ones stay. `images` is how many
    are taken, as `take_images` does. Raises UserError for unknown names and FileNotFoundError, with the remedy, for
    data that are not there.
    """
    spec = dataset_of(name)
    if split not in spec.splits:
        raise UserError(f"{spec.name} has no split {split!r}; choose from {', '.join(spec.splits)}")
    if spec.root and root is None:
        root = config.data_root(spec.root)
    pixels, targets = spec.read(root, split)
    if len(targets) == 0:
        raise UserError(f"the {split} split of {spec.name} in {root} is empty")
    if spec.in_memory:
        whole = MemorySplit(spec, _of_size(pixels, spec.size).to(device), targets.to(device))
    else:
        whole = FolderSplit(spec, pixels, targets, device=device, num_workers=num_workers, keep=keep)
    return take_images(whole, images) if images else whole


def _of_size(images: Tensor, size: int) -> Tensor:
    """Images (n, c, h, w) as they are, or their shorter side brought to `size` and the middle taken."""
    if images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.v2 import functional

    parts = [functional.resize(part, [size], antialias=True) for part in images.split(_AT_ONCE)]
    return torch.cat([functional.center_crop(part, [size, size]) for part in parts])


def measured(spec: DatasetSpec, train: Split | None = None) -> DatasetSpec:
    """The data set with the mean and the deviation of its training images, where these are not known yet.

    Those of all pixels, a value a channel, to 6 decimals; sums are exact. `train` is its train split, if that is open.
    Raises UserError where a channel is constant: nothing can be learnt of it.
    """
    if spec.mean:
        return spec
    total, pixels = torch.zeros(2, spec.channels, dtype=torch.int64), 0
    for images, _ in (train or load_split(spec, "train")).with_preprocessing(None).batches(256):
        values = images.cpu().to(torch.int64)
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        pixels += images[:, 0].numel()
    first, squares = (total.double() / pixels).unbind()
    mean, std = first / 255, (squares - first.square()).clamp(min=0).sqrt() / 255
    if std.min() < 1e-6:
        raise UserError(f"the training images of {spec.name} are all of one brightness; there is nothing to learn")
    return replace(spec, mean=_rounded(mean), std=_rounded(std))


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values.tolist())
