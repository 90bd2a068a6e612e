"""Images and labels in one .npz file of numpy arrays."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.files import is_failing, naming
from src.core.task import SINGLE_LABEL
from src.core.text import in_line
from src.dataset import augment
from src.dataset.dataset_spec import SPLITS, DatasetSpec

MOST = 100_000  # classes
# what numpy and zipfile raise for what is no archive of arrays, or is packed or locked in ways unknown to them
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError)


def arrays_spec(name: str, path: Path) -> DatasetSpec:
    """What is known of an .npz file with x_train, y_train, x_val, y_val, of which one split may be missing.

    Images are uint8 (n, h, w) or (n, h, w, c) with 1 or 3 channels, labels whole numbers from 0; `classes` names them,
    else the numbers do. Raises FileNotFoundError, or UserError with the file and what is wrong in it.
    """
    with _opened(path) as file:
        splits = tuple(split for split in SPLITS if {f"x_{split}", f"y_{split}"} & set(file))
        if not splits:
            raise UserError(f"{path} has neither x_train and y_train nor x_val and y_val; it has: {_names(file)}")
        shapes = {split: _shape(file, split, path) for split in splits}
        if len(set(shapes.values())) > 1:
            one, other = shapes.values()
            raise UserError(f"{path}: images of x_train are {one}, those of x_val {other} (height, width, channels)")
        labels = {split: _labels(file, split, path) for split in splits}
        classes = _classes(file, labels, path)
    height, width, channels = shapes[splits[0]]
    return DatasetSpec(
        name=name,
        folder="",
        channels=channels,
        labels=classes,
        size=min(height, width),
        mean=(),
        std=(),
        task=SINGLE_LABEL,
        root=None,
        read=lambda _, split: (_images(path, split), torch.from_numpy(labels[split].astype(np.int64))),
        augment=augment.of_known_size,
        splits=splits,
    )


class _opened:
    """The arrays of a file, which runs nothing; UserError for whatever is damaged in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        with naming(self.path):
            return self._open()

    def _open(self) -> Any:
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {self.path}")
        self.bytes = self.path.open("rb")  # by us: numpy leaves a damaged file open
        try:
            if self.bytes.read(2) != b"PK":
                raise UserError(f"{self.path} is no .npz file")
            self.bytes.seek(0)
            return np.load(self.bytes, allow_pickle=False)
        except (*DAMAGED, ValueError) as error:  # of numpy: it is taken for a pickle
            self.bytes.close()
            if isinstance(error, UserError) or is_failing(error):
                raise
            raise UserError(f"{self.path} is a damaged .npz file: {in_line(str(error))}") from None
        except BaseException:
            self.bytes.close()
            raise

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.bytes.close()
        if isinstance(error, OSError) and is_failing(error):
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if isinstance(error, DAMAGED):
            raise UserError(f"{self.path} is a damaged .npz file: {in_line(str(error))}") from None


def _array(file: Any, name: str, path: Path) -> np.ndarray:
    if name not in file:
        raise UserError(f"{path} has no {name}; it has: {_names(file)}")
    try:
        return file[name]
    except ValueError as error:
        text = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise UserError(f"{path}: {name} cannot be read: {in_line(text)}") from None
    except (MemoryError, OverflowError):
        raise UserError(f"{path}: {name} cannot be read: it says that it is larger than memory") from None


def _names(file: Any) -> str:
    return in_line(", ".join(file))


def _shape(file: Any, split: str, path: Path) -> tuple[int, int, int]:
    """Height, width and channels of a split's images, which are checked."""
    images = _array(file, f"x_{split}", path)
    where = f"{path}: x_{split}"
    if images.dtype != np.uint8:
        nan = images.dtype.kind == "f" and bool(np.isnan(images).any())
        raise UserError(f"{where} is {images.dtype}{', with NaN in it' * nan}, not uint8 from 0 to 255")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UserError(f"{where} has the shape {images.shape}, not (n, h, w), (n, h, w, 1) or (n, h, w, 3)")
    if images.size == 0:
        raise UserError(f"{where} has the shape {images.shape}, so it holds no image")
    return images.shape[1], images.shape[2], 1 if images.ndim == 3 else images.shape[3]


def _labels(file: Any, split: str, path: Path) -> np.ndarray:
    labels, count = _array(file, f"y_{split}", path), len(_array(file, f"x_{split}", path))
    where = f"{path}: y_{split}"
    if labels.shape != (count,):
        raise UserError(f"{where} has the shape {labels.shape}, and x_{split} has {count} images")
    if labels.dtype.kind not in "iu":
        nan = labels.dtype.kind == "f" and bool(np.isnan(labels).any())
        raise UserError(f"{where} is {labels.dtype}{', with NaN in it' * nan}, not whole numbers")
    if labels.min() < 0:
        raise UserError(f"{where}: the label {labels.min()} of image {labels.argmin()} is below 0")
    return labels


def _classes(file: Any, labels: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    """The names of the classes; every label has one, and every class images to learn from."""
    if "classes" in file:
        names = _array(file, "classes", path)
        classes = tuple(str(name) for name in names.tolist()) if names.ndim == 1 and names.dtype.kind == "U" else ()
        if not classes or len(set(classes)) < len(classes):
            raise UserError(f"{path}: classes is no list of names that differ")
    else:
        numbers = labels.get("train", labels[next(iter(labels))])
        if numbers.max() >= MOST:
            split = next(split for split in labels if labels[split] is numbers)
            raise UserError(
                f"{path}: y_{split}: the label {numbers.max()} of image {numbers.argmax()} is {MOST} or more"
            )
        classes = tuple(map(str, range(int(numbers.max()) + 1)))
    for split, numbers in labels.items():
        if numbers.max() >= len(classes):
            raise UserError(
                f"{path}: y_{split}: the label {numbers.max()} of image {numbers.argmax()} is above "
                f"{len(classes) - 1}, the last of {len(classes)} classes"
            )
    if "train" in labels and len(absent := np.setdiff1d(np.arange(len(classes)), labels["train"])):
        raise UserError(f"{path}: the class {classes[absent[0]]} has no image in y_train")
    return classes


def _images(path: Path, split: str) -> Tensor:
    """(n, channels, h, w) uint8."""
    with _opened(path) as file:
        images = torch.from_numpy(_array(file, f"x_{split}", path))
    return (images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)).contiguous()
