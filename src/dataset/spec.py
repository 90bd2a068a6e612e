"""What is known about a data set."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

from src.preprocessing import Preprocessing
from src.task import Task

SPLITS = ("train", "val")  # what every data set has


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One data set: what its images and labels are, and who reads and augments them.

    `mean` and `std` of its pixels, scaled to 0..1, a value a channel, are what networks trained on it normalise by.
    `labels` names the classes, in the order of the logits; sets whose names agree can judge each other's networks.
    `read` gets the data root (None for an embedded set) and the name of one of `splits`, and returns what `Split`
    needs of it.
    """

    name: str
    folder: str
    channels: int
    labels: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task
    root: str | None
    read: Callable
    augment: Callable[[Tensor, Generator], Tensor]
    in_memory: bool = True
    splits: tuple[str, ...] = SPLITS

    @property
    def classes(self) -> int:
        return len(self.labels)

    @property
    def preprocessing(self) -> Preprocessing:
        """What a network trained on these images does to them."""
        return Preprocessing(self.size, self.mean, self.std)
