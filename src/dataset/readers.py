"""Whole data sets as one tensor of bytes: torchvision's small sets, and the embedded digits."""

import contextlib
import gzip
import http.client
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.errors import UserError, first_line
from src.core.files import naming
from src.dataset.cifar import FILES, read_cifar

DIGITS_FILE = Path(__file__).with_name("digits.csv.gz")
PATIENCE = 30  # seconds without a byte until a download has failed
Arrays = tuple[Tensor, Tensor]
_CHANNELS_FIRST = ("SVHN", "STL10")  # which torchvision made in another way: `split`, `labels`, (n, c, h, w)


def read_torchvision(kind: str, root: Path, split: str, *, pad: int = 0) -> Arrays:
    """Images (n, channels, height, width) uint8 and labels (n,) int64 of one of torchvision's sets.

    A set that is not below `root` is downloaded. `pad` adds rows and columns of zeros on all sides.
    Raises FileNotFoundError, with the remedies, where it is neither there nor to be had, and UserError for files
    that are cut.
    """
    if kind in FILES and not pad and (straight := read_cifar(kind, root, split)):
        return straight
    dataset = _open_torchvision(kind, root, split == "train")
    images = torch.as_tensor(np.asarray(dataset.data))
    if kind not in _CHANNELS_FIRST:
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    images = F.pad(images, (pad,) * 4) if pad else images  # without padding, pad would copy all of them
    targets = dataset.labels if kind in _CHANNELS_FIRST else dataset.targets
    return images.contiguous(), torch.as_tensor(targets).long()


def _open_torchvision(kind: str, root: Path, train: bool) -> Any:
    import torchvision  # takes 2 seconds and 170 MB, which no one pays who has the digits or asks for help

    reader = getattr(torchvision.datasets, kind)
    split = {"split": "train" if train else "test"} if kind in _CHANNELS_FIRST else {"train": train}
    try:
        with naming(root / kind):
            return reader(root, **split)
    except (RuntimeError, ValueError, AssertionError) as error:
        if "not found" not in str(error):  # torchvision looks at the names of MNIST's files, not at what is in them
            raise UserError(
                f"the files of {kind} in {root} are damaged ({first_line(error)}); remove {root / kind}, and they "
                "are downloaded again"
            ) from None
    try:
        with _no_empty_folders_left(root, kind), _on_stderr(), _patience(PATIENCE):
            return reader(root, **split, download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"no {kind} in {root} and its download failed ({first_line(error)}); point pytorch in "
            "config/default.env or DATASET_ROOT_PYTORCH to a folder that has it, or try the embedded set: -d digits"
        ) from None


@contextlib.contextmanager
def _no_empty_folders_left(root: Path, kind: str) -> Iterator[None]:
    """Take back the folders that a failed download made, unless something is in them."""
    made = [folder for folder in (root / kind / "raw", root / kind, root, *root.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _on_stderr() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stdout(sys.stderr)  # stdout is for results


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Torchvision sets no limit, and would wait for ever on a network that swallows what it is sent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_digits(split: str) -> Arrays:
    """The 1,797 handwritten 8x8 digits of the UCI repository, (n, 1, 32, 32): every fifth image is for validation.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    with gzip.open(DIGITS_FILE, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    held_out = torch.arange(len(table)) % 5 == 4
    table = table[~held_out if split == "train" else held_out]
    images = table[:, :64].view(-1, 1, 8, 8) * (255 / 16)  # 17 grey levels, 0 to 16
    images = F.interpolate(images, scale_factor=4, mode="bilinear", align_corners=False)
    return images.round().to(torch.uint8), table[:, 64].long()
