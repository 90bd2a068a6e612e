"""One or two networks in front of the images of a data set, each with its own preprocessing."""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.task import SINGLE_LABEL
from src.cutting.structure import no_logits
from src.dataset import DatasetSpec, Split, dataset_of, first_difference, load_split
from src.dataset.labels import is_numbered
from src.dataset.preprocessing import Preprocessing, resize_text, wrap_preprocessing
from src.networks.checkpoints import Checkpoint
from src.networks.class_names import is_nameless, order_text, with_names
from src.networks.source_spec import parse_spec


@dataclass(frozen=True, slots=True)
class NetworksOnDataset:
    """Networks that look at the same images.

    Where all of them preprocess alike, the images are handed out that way, once for all; else as they are, and each of
    `networks` preprocesses what it gets. `answers` are the classes in the order of their logits, for which the networks
    have been arranged and the labels are: those of the data set, or more. `assumed` says what was taken for granted of
    classes without names. Raises UserError, which says what differs, where a network cannot take images of this data
    set.
    """

    spec: DatasetSpec
    networks: tuple[Checkpoint, ...]
    answers: tuple[str, ...]
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for network in self.networks:
            _check_fit(network, self.spec)

    @property
    def dataset(self) -> str:
        return self.spec.name

    @property
    def dataset_param(self) -> dict[str, str]:
        """The data set, where a network does not say it: a result must, to be opened again."""
        return {"dataset": self.dataset} if any(network.dataset is None for network in self.networks) else {}

    @property
    def shared(self) -> Preprocessing | None:
        """What all networks do to images; None where they differ."""
        preprocessing = {network.preprocessing for network in self.networks}
        return preprocessing.pop() if len(preprocessing) == 1 else None

    @property
    def shares_classes(self) -> list[bool]:
        """Of each network whether its classes are those of the labels, or these and others."""
        return [_same_names(network.labels, self.answers) for network in self.networks]

    @property
    def shares_part(self) -> bool:
        """Whether the data set has a part of the classes that the networks decide between."""
        return len(self.answers) > len(self.spec.labels)

    @property
    def labelled(self) -> bool:
        """Whether the labels of the images are of these networks' classes."""
        return all(self.shares_classes)

    @property
    def end_labelled(self) -> bool:
        """Whether they are of those of the last network, which a stitched one decides between."""
        return self.shares_classes[-1]

    @property
    def comparable(self) -> bool:
        """Whether the networks say something about the same classes in the same order, as far as these are known."""
        names = {
            self.answers if one else tuple(two.labels or ())
            for one, two in zip(self.shares_classes, self.networks, strict=True)
        }
        outputs = [self._said(network) for network in self.networks]
        return len(names - {()}) <= 1 and not any(map(no_logits, outputs)) and len({x.shape[1] for x in outputs}) == 1

    @property
    def classes_known(self) -> dict[str, bool]:
        """What measures of the outputs need: labels of the networks' classes, or at least one set of classes."""
        return {"labelled": self.labelled, "comparable": self.labelled or self.comparable}

    @property
    def part(self) -> list[int] | None:
        """Where the classes of the data set stand among those that the networks decide between; None: all are."""
        return [self.answers.index(name) for name in self.spec.labels] if self.shares_part else None

    @property
    def reordered(self) -> list[bool]:
        """Of each network whether its classes are these, in another order."""
        return [order_of(network.labels, self.answers) is not None for network in self.networks]

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know of it, a line each."""
        lines = list(self.assumed)
        for network in {str(network.path): network for network in self.networks}.values():
            lines += _notes(network, self.spec, self.answers)
        if self.shares_part and any(self.shares_classes):
            part = f"{len(self.spec.labels)} of {len(self.answers)} classes"
            lines.append(f"{self.dataset} has {part}; decisions are among all {len(self.answers)}")
        return lines

    @property
    def missing_columns(self) -> list[str]:
        """Which figures of a stitch have no value, a line each."""
        (front, end), (front_shares, end_shares) = self.networks, self.shares_classes
        if not self.comparable:
            return [f"{front.path} does not decide between the classes of {end.path}: its own row stays empty"]
        unknown = f"{front.path} is not known to decide between the classes of {self.dataset}: it has no accuracy there"
        return [unknown] * (end_shares and not front_shares)

    def require_decisions(self, *, labelled: bool = True) -> None:
        """Raise UserError where the last network, which a stitched one ends in, returns no logits (images, classes).

        `labelled`: or where the labels of the images say nothing about its decisions.
        """
        network = self.networks[-1]
        if text := no_logits(self._said(network)):
            raise UserError(f"{network.path} returns {text}, not logits (images, classes)")
        if labelled and not self.end_labelled:
            raise UserError(other_classes(network, self.spec))

    def require_for(self, teachers: Mapping[str, Sequence[str]], *, batch_dependent: bool = False) -> None:
        """Raise UserError where the networks, a front and an end, do not decide what stitches to some targets ask.

        batch_dependent: allow those whose answers depend on the rest of a batch.
        teachers: by the name of a target the networks that teach, "front" or "end"; where none does, the labels do.
        """
        self.require_decisions(labelled=not all(teachers.values()))
        for network in self.networks:
            if network.by_batch and not batch_dependent:
                raise UserError(
                    f"{network.path} says of an image what the others of its batch make of it, by {network.by_batch}, "
                    "so a stitch of it depends on -b; stitch_nets.py --batch-dependent stitches it all the same"
                )
        taught = sorted(name for name, networks in teachers.items() if "front" in networks)
        if taught and not self.comparable:
            front, end = (network.path for network in self.networks)
            raise UserError(f"{front} does not decide between the classes of {end}, so it cannot teach: {taught[0]}")

    def _said(self, network: Checkpoint) -> Any:
        """What a network returns for two blank images."""
        return _outputs(network, self.sample)

    def elsewhere(self, dataset: str, *, size: int | None = None) -> "NetworksOnDataset":
        """The same networks, as they are here, in front of other images of the same classes.

        Raises UserError, with the first difference, where the classes are others.
        """
        spec = _sized(dataset_of(dataset), self.networks, size)
        spec = with_names(spec, self.networks, [len(network.labels or ()) for network in self.networks])
        if not set(spec.labels) <= set(self.answers) or spec.task is not self.spec.task:
            differs = first_difference(self.spec.labels, spec.labels) or "one label an image against several"
            raise UserError(
                f"{self.dataset} and {spec.name} have different classes: {differs} (both in alphabetical order)"
            )
        return NetworksOnDataset(spec, self.networks, self.answers, self.assumed)

    def with_preprocessing(self, network: nn.Module, like: Checkpoint) -> nn.Module:
        """A network that preprocesses and orders its classes as one of these does, for the images of `split`."""
        order = order_of(like.labels, self.answers)
        if self.shared and order is None:
            return network
        return wrap_preprocessing(network, None if self.shared else like.preprocessing, order)

    def split(self, name: str, **options: Any) -> Split:
        """The images of a split as these networks and their parts take them; `options` are those of `load_split`."""
        split = load_split(self.spec, name, **options).with_preprocessing(self.shared)
        if self.spec.labels == self.answers:
            return split
        if split.labels.dim() == 2:
            return split.relabelled(split.labels[:, [self.spec.labels.index(name) for name in self.answers]])
        place = torch.tensor([self.answers.index(name) for name in self.spec.labels])
        split = split.relabelled(place.to(split.device)[split.labels])
        split.spec = replace(split.spec, labels=self.answers)
        return split

    @property
    def sample(self) -> Tensor:
        """Two blank images as `split` hands them out."""
        preprocessing = self.shared
        size, channels = (
            (preprocessing.size, preprocessing.channels) if preprocessing else (self.spec.size, self.spec.channels)
        )
        return torch.zeros(2, channels, size, size)


def put_on_dataset(
    networks: Sequence[Checkpoint], dataset: str | None, *, size: int | None = None
) -> NetworksOnDataset:
    """The networks in front of a data set: the named one, else the one that they were trained on.

    Image files are decoded to `size`, else to the largest that a network sees. Raises UserError where the data set is
    none, or not one.
    """
    if dataset is None:
        trained_on = {str(network.path): network.dataset for network in networks}
        names = set(trained_on.values())
        if len(names) > 1 and None not in names:
            told = ", ".join(f"{path} for {name}" for path, name in trained_on.items())
            raise UserError(f"the networks are for different data sets: {told}; name one with -d")
        dataset = next((name for name in trained_on.values() if name), None)
        if dataset is None:
            raise UserError(f"{networks[0].path} is for no data set of ours; name one with -d")
    on_data = with_classes(_sized(dataset_of(dataset), networks, size), networks)
    seen = (replace(one, network=on_data.with_preprocessing(one.network, one)) for one in on_data.networks)
    return replace(on_data, networks=tuple(seen))


def with_classes(spec: DatasetSpec, networks: Sequence[Checkpoint]) -> NetworksOnDataset:
    """The networks with the classes of a data set where one side only counts them, and what they decide among.

    That is what the last network decides among where the data set has a part of it.
    """
    counts = [_count(network, spec) for network in networks]
    named = with_names(spec, networks, counts)
    assumed = []
    if named.labels != spec.labels:
        assumed.append(f"{spec.name} names no classes; its {order_text(spec.labels)} are {order_text(named.labels)}")
    matched = []
    for network, count in zip(networks, counts, strict=True):
        if count == len(named.labels) and is_nameless(network) and not _same_names(network.labels, named.labels):
            order = sorted(named.labels, key=int) if is_numbered(named.labels) else named.labels
            assumed.append(
                f"{network.path} does not say what its {count} classes are; they are taken for those of {spec.name}, "
                f"in this order: {order_text(order)}; ?classes= says another"
            )
            network = replace(network, labels=tuple(order))
        matched.append(network)
    answers = named.labels
    for network in matched:
        larger = network.labels and set(named.labels) < set(network.labels) and named.task is SINGLE_LABEL
        answers = tuple(network.labels) if larger and network.labels else answers
    return NetworksOnDataset(named, tuple(matched), answers, tuple(dict.fromkeys(assumed)))


def _count(network: Checkpoint, spec: DatasetSpec) -> int | None:
    """Between how many classes a network decides, which is tried where its names do not say it."""
    if network.labels is not None:
        return len(network.labels)
    output = _outputs(network, network.sample)
    return None if no_logits(output) else output.shape[1]


@torch.no_grad()
def _outputs(network: Checkpoint, images: Tensor) -> Any:
    """What a network returns for some images, wherever it is."""
    values = itertools.chain(network.network.parameters(), network.network.buffers())
    place = next((value.device for value in values), images.device)
    return network.network(images.to(place))


def other_classes(network: Checkpoint, spec: DatasetSpec) -> str:
    """Why a network has no accuracy on a data set, and what mends that."""
    count, differs = "", ""
    if network.labels:
        count = f"{len(network.labels)} "
        differs = f" (in alphabetical order {first_difference(network.labels, spec.labels)})"
    text = f"{network.path} decides between {count}other classes than those of {spec.name}{differs}, so it has no "
    record = parse_spec(network.model).record
    if record and not record.build:
        return f"{text}accuracy there"
    model, weights = (shlex.quote(str(value)) for value in (network.model, network.path))
    command = f"train_model.py -m {model} --init-weights {weights} --freeze-body -d {shlex.quote(spec.name)}"
    same = f"if they are the same, say so: ?classes={spec.name}; else " * (len(network.labels or ()) == spec.classes)
    return f"{text}accuracy there; {same}train a head for them: {command}"


def order_of(labels: Sequence[str] | None, wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Where each wanted class stands among others; None where they stand alike, or are other classes."""
    if labels is None or tuple(labels) == tuple(wanted) or not _same_names(labels, wanted):
        return None
    return tuple(labels.index(name) for name in wanted)


def _same_names(one: Sequence[str] | None, other: Sequence[str]) -> bool:
    return one is not None and sorted(one) == sorted(other)


def _sized(spec: DatasetSpec, networks: Sequence[Checkpoint], size: int | None) -> DatasetSpec:
    if size is None and spec.exact:
        size = max(network.preprocessing.size for network in networks)
    return dataset_of(spec, size).decoded_for(network.preprocessing for network in networks)


def _notes(network: Checkpoint, spec: DatasetSpec, answers: Sequence[str]) -> list[str]:
    lines, preprocessing = _shown(network, spec), network.preprocessing
    if network.dataset not in (None, spec.name):
        lines.append(f"{network.path} was trained on {network.dataset}, and is shown {spec.name}")
    if preprocessing.size != spec.size:
        how = "enlarged" if preprocessing.size > spec.size else "reduced"
        lines.append(f"{network.path} sees images {how} from {spec.size} to {preprocessing.size}")
    if preprocessing.channels > spec.channels:
        lines.append(f"{network.path} takes colour, and is shown the grey of {spec.name} as all of its channels")
    if preprocessing.channels < spec.channels:
        lines.append(f"{network.path} takes grey, and is shown the brightness of {spec.name}")
    if order_of(network.labels, answers):
        lines.append(f"{network.path} has the classes of {spec.name} in another order; they are matched by name")
    return lines


def _shown(network: Checkpoint, spec: DatasetSpec) -> list[str]:
    """What a network of another origin is shown, which nobody here has trained; and what it is not shown."""
    eyes, record = network.preprocessing, parse_spec(network.model).record
    asked, used = eyes.rule, (spec.resize, spec.shorter, spec.interpolation)
    decoded = spec.exact and spec.own_size != spec.size
    lines = []
    if record and record.foreign:
        how = resize_text(*used, spec.size) if decoded else f"whole images, {eyes.interpolation}"
        numbers = f"mean {_numbers(eyes.mean)}, deviation {_numbers(eyes.std)}"
        order = ", blue first" if eyes.order == "bgr" else ""
        lines.append(f"{network.path} is shown {eyes.size} x {eyes.size}, {numbers}{order}; resize: {how}")
        if record.runs and network.dataset is None and network.init_seed is None:
            lines[-1] += "; if it was trained on others, say so: ?size=, ?mean=, ?std=, ?resize="
    if network.by_chance:
        lines.append(f"{network.path} says another thing of an image each time: {network.by_chance} draws at random")
    if network.by_batch:
        lines.append(f"{network.path} says of an image what the others of its batch make of it, by {network.by_batch}")
    if decoded and asked != used:
        own = resize_text(*asked, eyes.size)
        lines.append(f"{network.path} asks for another resize than its partner: {own}; ?resize= behind both says which")
    return lines


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _check_fit(network: Checkpoint, spec: DatasetSpec) -> None:
    channels = network.preprocessing.channels
    if channels != spec.channels and {channels, spec.channels} != {1, 3}:
        raise UserError(
            f"{network.path} takes images of {channels} channels, and those of {spec.name} have {spec.channels}"
        )
