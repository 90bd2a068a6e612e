"""What networks decide between: names that say something, and what stands for names where there are none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.core.errors import UserError
from src.core.files import read_bytes
from src.dataset import DATASETS, DatasetSpec, dataset_of
from src.dataset.labels import is_numbered
from src.networks.checkpoints import Checkpoint

SHOWN = 4  # names of an order


def classes_of(text: str) -> tuple[str, ...]:
    """The names behind `?classes=`: those of a data set, or the lines of a file.

    Raises UserError for what is neither, and for a file whose lines are no names that differ.
    """
    try:
        return dataset_of(text).labels
    except UserError:
        if not Path(text).is_file():
            raise UserError(f"?classes={text} is neither a data set nor a file with a name a line") from None
    try:
        names = tuple(line.strip() for line in read_bytes(Path(text)).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise UserError(f"{text} is no text of a name a line") from None
    names = names[: len(names) - next((i for i, name in enumerate(reversed(names)) if name), len(names))]
    if not names or "" in names or len(set(names)) < len(names):
        raise UserError(f"{text}: its lines are no names of classes that differ")
    return names


def is_nameless(network: Checkpoint) -> bool:
    """Whether a network only counts its classes; the digits are called by numbers, and these are names."""
    return network.labels is None or (network.dataset not in DATASETS and is_numbered(network.labels))


def with_names(spec: DatasetSpec, networks: Sequence[Checkpoint], outputs: Sequence[int | None]) -> DatasetSpec:
    """A data set whose classes are only counted, with the names of the last network that has as many."""
    if spec.name in DATASETS or not is_numbered(spec.labels):
        return spec
    for network, count in zip(reversed(networks), reversed(outputs), strict=True):
        if network.labels and not is_nameless(network) and count == len(spec.labels) == len(network.labels):
            if sorted(network.labels) == sorted(spec.labels):
                return spec
            return replace(spec, labels=tuple(network.labels[int(number)] for number in spec.labels))
    return spec


def order_text(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
