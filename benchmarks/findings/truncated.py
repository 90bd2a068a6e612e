"""Least-squares maps of a study cut to lower ranks, and what they are right on."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from src import results
from src.core.files import atomic_write
from src.dataset import Split
from src.dataset.subset import take_images
from src.evaluation.evaluate import evaluate
from src.evaluation.passes import batch_of
from src.results.saved_stitch import SavedStitch, load_stitch
from src.stitching import from_arrays


def cut(w: Tensor, b: Tensor, mean: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of a rank (Eckart and Young 1936), and the bias that leaves the mean of what is given alone.

    w: (out, in), b: (out,), mean: (in,), of what is mapped.
    """
    left, values, right = torch.linalg.svd(w.double(), full_matrices=False)
    nearest = (left[:, :rank] * values[:rank]) @ right[:rank]
    return nearest, w.double() @ mean.double() + b.double() - nearest @ mean.double()


def front_mean(saved: SavedStitch, split: Split) -> Tensor:
    """The mean activation of each channel of the front layer, over images and positions."""
    total, images = torch.zeros(()), 0
    with torch.no_grad():
        for batch, _ in split.batches(batch_of(split)):
            activation = saved.pair.front_head(batch)
            total = total + activation.double().flatten(2).mean(2).sum(0)
            images += len(batch)
    return total / images


def accuracies(path: Path, ranks: Sequence[int]) -> dict[int, float]:
    """Of the map that a stitch begins with, cut to each rank: the share of validation images that it is right on."""
    saved, result = load_stitch(path, "before"), results.read(path)
    images = result["params"]["images"]
    train, val = (
        saved.split(name) if images is None else take_images(saved.split(name), images) for name in ("train", "val")
    )
    arrays = result["trans_m"]["before"]
    w, b = torch.as_tensor(arrays["w"]).flatten(1), torch.as_tensor(arrays["b"])
    mean = front_mean(saved, train)
    found = {}
    for rank in ranks:
        nearest, bias = (part.float().numpy() for part in cut(w, b, mean, rank))
        stitch = from_arrays({"w": nearest, "b": bias}, saved.pair.geometry)
        found[rank] = evaluate(saved.pair.stitched(stitch), val)["acc"]
    return found


def kept_accuracies(path: Path, ranks: Sequence[int], file: Path) -> dict[int, float]:
    """The same, taken from a file where they are known, and put there where not."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if any(str(rank) not in known.get(path.stem, {}) for rank in ranks):
        known[path.stem] = {str(rank): share for rank, share in accuracies(path, ranks).items()}
        with atomic_write(file) as out:
            out.write(json.dumps(known).encode())
    return {rank: known[path.stem][str(rank)] for rank in ranks}
