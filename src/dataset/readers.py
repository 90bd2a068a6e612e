"""Whole data sets as one tensor of bytes: torchvision's small sets, and the embedded digits."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

DIGITS_FILE = Path(__file__).with_name("digits.csv.gz")
Arrays = tuple[Tensor, Tensor]


def read_torchvision(kind: str, root: Path, train: bool, *, pad: int = 0) -> Arrays:
    """Images (n, channels, height, width) uint8 and labels (n,) int64 of one of torchvision's sets.

    A set that is not below `root` is downloaded. `pad` adds rows and columns of zeros on all sides.
    Raises FileNotFoundError, with the remedies, where it is neither there nor to be had.
    """
    dataset = _open_torchvision(kind, root, train)
    images = torch.as_tensor(np.asarray(dataset.data))
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return F.pad(images, (pad,) * 4).contiguous(), torch.as_tensor(dataset.targets)


def _open_torchvision(kind: str, root: Path, train: bool) -> Any:
    reader = getattr(torchvision.datasets, kind)
    try:
        return reader(root, train=train)
    except RuntimeError:  # torchvision's way to say that the files are absent or damaged
        pass
    existed = root.is_dir()
    try:
        return reader(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        _remove_empty_folders(root, kind, keep_root=existed)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"no {kind} in {root} and its download failed ({reason}); point pytorch in config/default.env or "
            "DATASET_ROOT_PYTORCH to a folder that has it, or try the embedded set: -d digits"
        ) from None


def _remove_empty_folders(root: Path, kind: str, *, keep_root: bool) -> None:
    """Take back the folders that a failed download made."""
    for folder in (root / kind / "raw", root / kind, *(() if keep_root else (root,))):
        try:
            folder.rmdir()
        except OSError:  # absent, or something is in it
            continue


def read_digits(train: bool) -> Arrays:
    """The 1,797 handwritten 8x8 digits of the UCI repository, (n, 1, 32, 32): every fifth image is for validation.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    with gzip.open(DIGITS_FILE, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    held_out = torch.arange(len(table)) % 5 == 4
    table = table[~held_out if train else held_out]
    images = table[:, :64].view(-1, 1, 8, 8) * (255 / 16)  # 17 grey levels, 0 to 16
    images = F.interpolate(images, scale_factor=4, mode="bilinear", align_corners=False)
    return images.round().to(torch.uint8), table[:, 64].long()
