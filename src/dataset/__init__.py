"""Where images come from."""

from src.dataset.change import shuffle_labels, take_fraction
from src.dataset.spec import DatasetSpec
from src.dataset.split import Coupled, Split
from src.dataset.table import DATASETS, SPLITS, canonical_dataset, load_split

__all__ = [
    "DATASETS",
    "SPLITS",
    "Coupled",
    "DatasetSpec",
    "Split",
    "canonical_dataset",
    "load_split",
    "shuffle_labels",
    "take_fraction",
]
