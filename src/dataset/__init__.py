"""Where images come from."""

from src.dataset.cache import CacheOptions
from src.dataset.dataset_spec import SPLITS, DatasetSpec
from src.dataset.folder import first_difference
from src.dataset.lookup import (
    canonical_dataset,
    dataset_folder,
    dataset_of,
    file_part,
    is_known,
    known_datasets,
    load_split,
    measured,
)
from src.dataset.registry import DATASETS
from src.dataset.split import MARKS, MarkedSplit, PairedImagesSplit, Split
from src.dataset.subset import hold_out, shuffle_labels, take_fraction, take_images

__all__ = [
    "DATASETS",
    "MARKS",
    "SPLITS",
    "MarkedSplit",
    "PairedImagesSplit",
    "DatasetSpec",
    "CacheOptions",
    "Split",
    "canonical_dataset",
    "dataset_folder",
    "dataset_of",
    "file_part",
    "first_difference",
    "hold_out",
    "is_known",
    "known_datasets",
    "load_split",
    "measured",
    "shuffle_labels",
    "take_fraction",
    "take_images",
]
