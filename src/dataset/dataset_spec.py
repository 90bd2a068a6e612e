"""What is known about a data set."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from src.core.errors import UserError
from src.core.task import Task
from src.dataset.decode import Target
from src.dataset.preprocessing import SHORTER, Preprocessing

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
    `resize`, `shorter` and `interpolation` say how they are decoded, as in a Preprocessing.
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
    resize: str = "crop"
    shorter: float = SHORTER
    interpolation: str = "bilinear"

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
        """What image files are decoded to: where not alike, to more than the size, of which a crop is taken."""
        shorter = round(self.size * self.shorter)
        side = self.size if self.own_size == self.size else shorter
        kept = self.size if self.exact else None
        return Target(self.channels, shorter, side, kept, self.resize == "squash", self.interpolation)

    def decoded_for(self, networks: Iterable[Preprocessing]) -> "DatasetSpec":
        """The same files decoded as networks ask for it, where they agree; else, and of other data sets, as usual."""
        rules = {one.rule for one in networks}
        if not self.exact or len(rules) != 1:
            return self
        resize, shorter, interpolation = rules.pop()
        return replace(self, resize=resize, shorter=shorter, interpolation=interpolation)
