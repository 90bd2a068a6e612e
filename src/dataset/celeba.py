"""CelebA's lists: the official text files, or the published scripts' train.csv and test.csv."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

ATTRIBUTES = 40
TRAIN, TEST = 0, 2  # partitions of the official list; the published scripts evaluate on the test images
_LISTS = ("list_attr_celeba.txt", "list_eval_partition.txt")


def read_celeba(root: Path, train: bool) -> tuple[list[Path], Tensor]:
    """Image files of a split and their attributes (images, 40), 0.0 or 1.0.

    `root` holds `img_align_celeba/` with the official lists, or with `train.csv` and `test.csv` (a column `img`
    and 40 columns of -1 and 1). Raises FileNotFoundError for whatever is missing, ValueError for lists that do
    not fit.
    """
    attributes = _published(root, train) if (root / "train.csv").is_file() else _official(root, train)
    if attributes.shape[1] != ATTRIBUTES:
        raise ValueError(f"the CelebA lists in {root} give {attributes.shape[1]} attributes instead of {ATTRIBUTES}")
    folder = root / "img_align_celeba"
    if not folder.is_dir():
        raise FileNotFoundError(f"the CelebA images are missing: no folder {folder}")
    files = [folder / Path(name).name for name in attributes.index]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images of the CelebA list are missing, the first is {missing[0]}")
    return files, torch.from_numpy((attributes.to_numpy() > 0).astype("float32"))


def _official(root: Path, train: bool) -> pd.DataFrame:
    for name in _LISTS:
        if not (root / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {root}; point celeba in config/default.env or DATASET_ROOT_CELEBA to the folder "
                "with CelebA's lists and img_align_celeba/"
            )
    attributes = pd.read_csv(root / _LISTS[0], sep=r"\s+", skiprows=1)
    partition = pd.read_csv(root / _LISTS[1], sep=r"\s+", names=["img", "part"])
    chosen = pd.Index(partition["img"][partition["part"] == (TRAIN if train else TEST)])
    unknown = chosen[~chosen.isin(attributes.index)]
    if len(unknown):
        raise ValueError(f"{len(unknown)} images of {root / _LISTS[1]} have no attributes, the first is {unknown[0]}")
    return attributes.loc[chosen]


def _published(root: Path, train: bool) -> pd.DataFrame:
    file = root / ("train.csv" if train else "test.csv")
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {root}, though there is a train.csv")
    table = pd.read_csv(file)
    if "img" not in table.columns:
        raise ValueError(f"{file} has no column img")
    return table.set_index("img").filter(regex=r"^(?!Unnamed)")
