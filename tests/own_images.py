"""Data sets as users keep them: folders of images and files of arrays, made of the embedded digits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from src.dataset import load_split
from src.dataset.split import MemorySplit

SPLITS = ("train", "val")


def digits_of(split: str, each: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `each` digits of every class: images (n, 32, 32) and labels (n,), class by class."""
    data = load_split("digits", split)
    assert isinstance(data, MemorySplit)
    chosen = torch.cat([(data.labels == label).nonzero().flatten()[:each] for label in range(10)])
    return data.images[chosen, 0].numpy(), data.labels[chosen].numpy()


def write_folder(
    root: Path, each: int = 3, *, names: str = "0123456789", kind: str = "png", colour: bool = False
) -> Path:
    """A folder a class in train/ and val/; `names` has the name of each digit's folder."""
    for split in SPLITS:
        for number, (image, label) in enumerate(zip(*digits_of(split, each), strict=True)):
            home = root / split / names[label]
            home.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image)
            (picture.convert("RGB") if colour else picture).save(home / f"{number:04}.{kind}")
    return root


def write_table(root: Path, each: int = 3) -> Path:
    """Images beside a labels.csv: even, small, round."""
    for split in SPLITS:
        rows = ["file,even,small,round"]
        (root / split).mkdir(parents=True, exist_ok=True)
        for number, (image, label) in enumerate(zip(*digits_of(split, each), strict=True)):
            Image.fromarray(image).save(root / split / f"{number:04}.png")
            rows.append(f"{number:04}.png,{int(label % 2 == 0)},{int(label < 5)},{int(label in (0, 6, 8, 9))}")
        (root / split / "labels.csv").write_text("\n".join(rows))
    return root


def write_arrays(path: Path, each: int = 3, **others: Any) -> Path:
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        arrays[f"x_{split}"], arrays[f"y_{split}"] = digits_of(split, each)
    np.savez(path, **(arrays | others))
    return path


def photo(seed: int, width: int = 60, height: int = 45) -> Image.Image:
    """A smooth colour image with some noise."""
    draw = np.random.default_rng(seed)
    rough = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(rough, dtype=np.int16) + draw.integers(-8, 9, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_photos(root: Path, each: int = 4, *, kind: str = "jpg", classes: str = "ab") -> Path:
    """JPEGs of many sizes and shapes, some of them grey."""
    for place, (split, name) in enumerate((split, name) for split in SPLITS for name in classes):
        home = root / split / name
        home.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            seed = 100 * place + number
            image = photo(seed, 60 + 7 * number, 45 + 30 * (seed % 3))
            (image.convert("L") if number == 2 else image).save(home / f"{number}.{kind}")
    return root
