"""One or two networks in front of the images of a data set, each with its own preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from src.checkpoints import Checkpoint
from src.dataset import DATASETS, DatasetSpec, Split, load_split
from src.preprocessing import Preprocessing, sighted


@dataclass(frozen=True, slots=True)
class Viewing:
    """Networks that look at the same images.

    Where all of them preprocess alike, the images are handed out that way, once for all; else as they are, and each of
    `networks` preprocesses what it gets. Raises ValueError, which says what differs, where a network cannot take images
    of this data set.
    """

    dataset: str
    networks: tuple[Checkpoint, ...]

    def __post_init__(self) -> None:
        for network in self.networks:
            _check_fit(network, self.spec)

    @property
    def spec(self) -> DatasetSpec:
        return DATASETS[self.dataset]

    @property
    def shared(self) -> Preprocessing | None:
        """What all networks do to images; None where they differ."""
        eyes = {network.preprocessing for network in self.networks}
        return eyes.pop() if len(eyes) == 1 else None

    @property
    def labelled(self) -> bool:
        """Whether the labels of the images are of these networks' classes."""
        return all(network.labels == self.spec.labels for network in self.networks)

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know of it, a line each."""
        lines = []
        for network in {str(network.path): network for network in self.networks}.values():
            if network.dataset not in (None, self.dataset):
                lines.append(f"{network.path} was trained on {network.dataset}, and is shown {self.dataset}")
            if network.preprocessing.size != self.spec.size:
                lines.append(
                    f"{network.path} sees images enlarged from {self.spec.size} to {network.preprocessing.size}"
                )
        return lines

    def require_labels(self) -> None:
        """Raise ValueError where the labels of the images say nothing about a network's decisions."""
        for network in self.networks:
            if network.labels != self.spec.labels:
                count = f"{len(network.labels)} " if network.labels else ""
                raise ValueError(
                    f"{network.path} decides between {count}other classes than those of {self.dataset}, so it has no "
                    f"accuracy there; train a head for them: train_model.py --freeze-body -d {self.dataset}"
                )

    def seen(self, network: nn.Module, like: Checkpoint) -> nn.Module:
        """A network that preprocesses as one of these does, for the images that `split` hands out."""
        return network if self.shared else sighted(network, like.preprocessing)

    def split(self, name: str, *, device: torch.device | str = "cpu", num_workers: int | None = None) -> Split:
        """The images of a split as these networks and their parts take them."""
        return load_split(self.dataset, name, device=device, num_workers=num_workers).seen_by(self.shared)

    @property
    def sample(self) -> Tensor:
        """Two blank images as `split` hands them out."""
        size = self.shared.size if self.shared else self.spec.size
        return torch.zeros(2, self.spec.channels, size, size)


def look(networks: Sequence[Checkpoint], dataset: str | None) -> Viewing:
    """The networks in front of a data set: the named one, else the one that they were trained on.

    Raises ValueError where that is none, or not one.
    """
    if dataset is None:
        trained_on = {str(network.path): network.dataset for network in networks}
        names = set(trained_on.values())
        if len(names) > 1 and None not in names:
            told = ", ".join(f"{path} for {name}" for path, name in trained_on.items())
            raise ValueError(f"the networks are for different data sets: {told}; name one with -d")
        dataset = next((name for name in trained_on.values() if name), None)
        if dataset is None:
            raise ValueError(f"{networks[0].path} is for no data set of ours; name one with -d")
    viewing = Viewing(dataset, tuple(networks))
    if viewing.shared:
        return viewing
    return Viewing(dataset, tuple(replace(one, network=viewing.seen(one.network, one)) for one in networks))


def _check_fit(network: Checkpoint, spec: DatasetSpec) -> None:
    eyes = network.preprocessing
    if eyes.channels != spec.channels:
        raise ValueError(
            f"{network.path} takes images of {eyes.channels} channels, and those of {spec.name} have {spec.channels}"
        )
    if eyes.size != spec.size and not network.resizes:
        raise ValueError(
            f"{network.path} takes images of {eyes.size} x {eyes.size}, and those of {spec.name} are {spec.size} x "
            f"{spec.size}"
        )
