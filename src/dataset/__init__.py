"""Where images come from."""

from src.dataset.change import shuffle_labels, take_fraction
from src.dataset.folder import first_difference
from src.dataset.kept import Keep
from src.dataset.named import (
    canonical_dataset,
    dataset_folder,
    dataset_of,
    file_part,
    is_known,
    known_datasets,
    load_split,
    measured,
)
from src.dataset.spec import SPLITS, DatasetSpec
from src.dataset.split import Coupled, Split
from src.dataset.table import DATASETS

__all__ = [
    "DATASETS",
    "SPLITS",
    "Coupled",
    "DatasetSpec",
    "Keep",
    "Split",
    "canonical_dataset",
    "dataset_folder",
    "dataset_of",
    "file_part",
    "first_difference",
    "is_known",
    "known_datasets",
    "load_split",
    "measured",
    "shuffle_labels",
    "take_fraction",
]
