"""The images of a study: read once a process, or handed over by one who has read them for all."""

import warnings
from typing import Any

import numpy as np
import torch

from src.dataset import Split
from src.dataset.split import MemorySplit
from src.networks import opening as sources
from src.networks.feature_networks import FeaturePair, open_sides, place_of
from src.networks.presentation import NetworksOnDataset, put_on_dataset
from src.networks.source_spec import is_features
from src.studies.jobs import Bundle

Arrays = dict[tuple, tuple[np.ndarray, np.ndarray]]  # images and labels, by what they are of
_READ: dict[tuple, Split] = {}
_HANDED_OVER: Arrays = {}


def sides_of(bundle: Bundle) -> NetworksOnDataset | FeaturePair:
    """The sides of a comparison: networks in front of a data set, or files."""
    if not any(map(is_features, bundle.pair)):
        return networks_on_data(bundle)[0]
    settings = bundle.settings
    return open_sides(bundle.networks, place_of(bundle.pair, settings.dataset), size=settings.image_size)


def networks_on_data(bundle: Bundle) -> tuple[NetworksOnDataset, NetworksOnDataset]:
    """The networks of a bundle in front of its data set, and of the one on which stitches are scored."""
    settings = bundle.settings
    pair = sources.open_pair(bundle.networks, dataset=settings.dataset, size=settings.image_size)
    on_data = put_on_dataset(pair, settings.dataset, size=settings.image_size)
    if not settings.evaluate_on:
        return on_data, on_data
    return on_data, on_data.elsewhere(settings.evaluate_on, size=settings.image_size)


def split_of(
    on_data: NetworksOnDataset | FeaturePair,
    name: str,
    device: torch.device,
    images: int | None = None,
    *,
    decoders: int | None = None,
) -> Split:
    """The images of a split, or so many, read once a process: bundles of one study come one after the other."""
    if isinstance(on_data, FeaturePair):
        return on_data.split(name, device=device)
    key = *_key(on_data, name, images), str(device)
    if key not in _READ:
        if len(_READ) > 4:
            _READ.clear()
        held = _handed_over(on_data, name, device, images)
        how = {"device": device, "images": images, "num_workers": decoders}
        _READ[key] = on_data.split(name, **how) if held is None else held
    return _READ[key].with_preprocessing(on_data.shared)


def _key(on_data: NetworksOnDataset, name: str, images: int | None) -> tuple[Any, ...]:
    return on_data.spec.name, on_data.spec.size, on_data.answers, name, images


def _handed_over(on_data: NetworksOnDataset, name: str, device: torch.device, images: int | None) -> Split | None:
    if (arrays := _HANDED_OVER.get(_key(on_data, name, images))) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is shared cannot be written, and nobody here writes to images
        pixels, labels = (torch.from_numpy(array).to(device) for array in arrays)
    return MemorySplit(on_data.spec, pixels, labels)


def arrays_of(bundle: Bundle) -> Arrays:
    """All images of a bundle that are held in memory, to be handed over; those in files are for each to decode."""
    if any(map(is_features, bundle.pair)):
        return {}
    (on_data, scored), images = networks_on_data(bundle), bundle.settings.images
    splits = {}
    for one, name in ((on_data, "train"), (on_data, "val"), (scored, "val")):
        splits[_key(one, name, images)] = split_of(one, name, torch.device("cpu"), images)
    return {
        key: (split.images.numpy(), split.labels.numpy())
        for key, split in splits.items()
        if isinstance(split, MemorySplit)
    }


def hand_over(arrays: Arrays) -> None:
    """Have images that somebody else has read; they are not copied."""
    _HANDED_OVER.update({key: value for key, value in arrays.items() if key not in _HANDED_OVER})
