"""What is known about a data set."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from src.core.errors import UserError
from src.core.task import Task
from src.dataset.decode import Target
from src.dataset.preprocessing import Preprocessing

SPLITS = ("train", "val")  # what every data set has


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One data set: what its images and labels are, and who reads and augments them.

    `mean` and `std` of its pixels, scaled to 0..1, a value a channel, are what networks trained on it normalise by; ()
    where `measured` is still to find them. `labels` names the classes, in the order of the logits; sets whose names
    agree can judge each other's networks. `read` gets the data root (None where there is none to configure) and the
    name of one of `splits`, and returns what `Split` needs of it. `folder` is what weights are filed under.

    Of images that are files (not `in_memory`), `augment` also gets the `size`; `exact` says that those of size x size
    are taken as they are, and any `size` can be asked for; `own_size` is that of all of them, where they are alike.
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
    augment: Callable[..., Tensor]
    in_memory: bool = True
    splits: tuple[str, ...] = SPLITS
    exact: bool = False
    own_size: int | None = None

    @property
    def classes(self) -> int:
        return len(self.labels)

    @property
    def preprocessing(self) -> Preprocessing:
        """What a network trained on these images does to them."""
        if not self.mean:
            raise UserError(f"mean and deviation of {self.name} are not known; measure them first")
        return Preprocessing(self.size, self.mean, self.std)

    @property
    def target(self) -> Target:
        """What image files are decoded to: 8/7 of the size, of which a crop is taken, where they are not alike."""
        shorter = round(self.size * 8 / 7)
        side = self.size if self.own_size == self.size else shorter
        return Target(self.channels, shorter, side, self.size if self.exact else None)
