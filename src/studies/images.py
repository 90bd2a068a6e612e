"""The images of a study: read once a process, or handed over by one who has read them for all."""

import warnings
from typing import Any

import numpy as np
import torch

from src.dataset import Split
from src.dataset.split import MemorySplit
from src.networks import opening as sources
from src.networks.presentation import Viewing, look
from src.studies.jobs import Bundle

Arrays = dict[tuple, tuple[np.ndarray, np.ndarray]]  # images and labels, by what they are of
_READ: dict[tuple, Split] = {}
_HANDED_OVER: Arrays = {}


def viewings(bundle: Bundle) -> tuple[Viewing, Viewing]:
    """The networks of a bundle in front of its data set, and of the one on which stitches are scored."""
    settings = bundle.settings
    pair = sources.open_pair(bundle.networks, dataset=settings.dataset, size=settings.image_size)
    viewing = look(pair, settings.dataset, size=settings.image_size)
    if not settings.evaluate_on:
        return viewing, viewing
    return viewing, viewing.elsewhere(settings.evaluate_on, size=settings.image_size)


def split_of(viewing: Viewing, name: str, device: torch.device) -> Split:
    """The images of a split, read once a process: bundles of one study come one after the other."""
    key = *_key(viewing, name), str(device)
    if key not in _READ:
        if len(_READ) > 4:
            _READ.clear()
        held = _handed_over(viewing, name, device)
        _READ[key] = viewing.split(name, device=device) if held is None else held
    return _READ[key].seen_by(viewing.shared)


def _key(viewing: Viewing, name: str) -> tuple[Any, ...]:
    return viewing.spec.name, viewing.spec.size, viewing.answers, name


def _handed_over(viewing: Viewing, name: str, device: torch.device) -> Split | None:
    if (arrays := _HANDED_OVER.get(_key(viewing, name))) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is shared cannot be written, and nobody here writes to images
        images, labels = (torch.from_numpy(array).to(device) for array in arrays)
    return MemorySplit(viewing.spec, images, labels)


def arrays_of(bundle: Bundle) -> Arrays:
    """All images of a bundle that are held in memory, to be handed over; those in files are for each to decode."""
    viewing, scored = viewings(bundle)
    splits = {}
    for one, name in ((viewing, "train"), (viewing, "val"), (scored, "val")):
        splits[_key(one, name)] = split_of(one, name, torch.device("cpu"))
    return {
        key: (split.images.numpy(), split.labels.numpy())
        for key, split in splits.items()
        if isinstance(split, MemorySplit)
    }


def hand_over(arrays: Arrays) -> None:
    """Have images that somebody else has read; they are not copied."""
    _HANDED_OVER.update({key: value for key, value in arrays.items() if key not in _HANDED_OVER})
