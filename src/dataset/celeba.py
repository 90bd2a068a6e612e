"""CelebA's lists: the official text files, these as CSV, or the published scripts' train.csv and test.csv."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.files import naming

ATTRIBUTES = 40
# as in the published scripts `val` is the official test set, so the official validation set is `valid`
_PARTITIONS = {"train": 0, "valid": 1, "val": 2}
_CSV = {"train": "train.csv", "valid": "valid.csv", "val": "test.csv"}
_LIST_FOLDERS = ("", "Anno", "Eval")  # beside the images, or as in the official download
_IMAGE_FOLDERS = ("img_align_celeba", "Img/img_align_celeba", "img_align_celeba/img_align_celeba", "img", "Img", "")


def read_celeba(root: Path, split: str) -> tuple[list[Path], Tensor]:
    """Image files of a split and their attributes (images, 40), 0.0 or 1.0.

    `root` holds the images and either the official lists, .txt or .csv with a head, or `train.csv` and `test.csv` (a
    column `img` and 40 columns of -1 and 1). Raises FileNotFoundError for whatever is missing, UserError for lists that
    do not fit.
    """
    published = any((root / name).is_file() for name in _CSV.values())
    attributes = _read_published(root, split) if published else _read_official(root, split)
    if attributes.shape[1] != ATTRIBUTES:
        raise UserError(f"the CelebA lists in {root} give {attributes.shape[1]} attributes instead of {ATTRIBUTES}")
    attributes = attributes.apply(pd.to_numeric, errors="coerce")
    names = [str(name) for name in attributes.index]
    right = attributes.isin([-1, 0, 1]).to_numpy().all(axis=1)
    if not right.all():
        wrong = names[int(right.argmin())]
        raise UserError(f"an attribute of {wrong} is neither 1 nor -1 in the CelebA lists in {root}")
    return _find_images(root, names), torch.from_numpy((attributes.to_numpy() > 0).astype("float32"))


def _read_official(root: Path, split: str) -> pd.DataFrame:
    attribute_file, partition_file = (_find_list(root, name) for name in ("list_attr_celeba", "list_eval_partition"))
    attributes, partition = _read_list(attribute_file), _read_list(partition_file, ["part"])
    attributes = attributes.set_index("img")
    chosen = pd.Index(partition["img"][partition["part"] == _PARTITIONS[split]])
    unknown = chosen[~chosen.isin(attributes.index)]
    if len(unknown):
        raise UserError(f"{len(unknown)} images of {partition_file} have no attributes, the first is {unknown[0]}")
    return attributes.loc[chosen]


def _read_list(file: Path, names: list[str] | None = None) -> pd.DataFrame:
    """A column `img` and others: by commas with a head, or as official by spaces, below their names if not given."""
    if file.suffix == ".csv":
        table = _table(file)
        return table.set_axis(["img", *(names or table.columns[1:])], axis=1).astype({"img": str})
    if names:
        return _table(file, sep=r"\s+", names=["img", *names])
    with naming(file), file.open(encoding="utf-8") as lines:
        next(lines, "")  # the number of images
        names = next(lines, "").split()
    return _table(file, sep=r"\s+", skiprows=2, names=["img", *names])


def _find_list(root: Path, name: str) -> Path:
    places = [root / folder / f"{name}{suffix}" for folder in _LIST_FOLDERS for suffix in (".txt", ".csv")]
    if found := next(filter(Path.is_file, places), None):
        return found
    raise FileNotFoundError(
        f"no {name}.txt in {root}; point celeba in config/default.env or DATASET_ROOT_CELEBA to the folder with "
        "CelebA's lists and img_align_celeba/, or try the embedded set: -d digits"
    )


def _read_published(root: Path, split: str) -> pd.DataFrame:
    file = root / _CSV[split]
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {root}, which has other lists of the published scripts")
    table = _table(file)
    if "img" not in table.columns:
        raise UserError(f"{file} has no column img")
    return table.set_index("img").filter(regex=r"^(?!Unnamed)")


def _table(file: Path, **options: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype={"img": str}, **options)
    except ValueError as error:  # pandas' own errors are ValueErrors too, and name no file
        raise UserError(f"{file} is no list of CelebA images: {error}") from None


def _find_images(root: Path, names: list[str]) -> list[Path]:
    """The file of each name; a name may have folders, right ones or such as were right elsewhere."""
    folders = [folder for folder in (os.path.join(root, name) for name in _IMAGE_FOLDERS) if os.path.isdir(folder)]
    files, missing = [], []
    for name in names:
        places = [os.path.join(root, name), *(os.path.join(folder, os.path.basename(name)) for folder in folders)]
        file = next(filter(os.path.isfile, places), None)
        (missing if file is None else files).append(Path(file or name))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images of the CelebA list are missing, the first is {missing[0]}; "
            f"they belong in {root / _IMAGE_FOLDERS[0]}"
        )
    return files
