"""Saved activations in the place of a network: `features:PATH`, beside a network or another file."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from src.core.errors import UserError
from src.core.task import SINGLE_LABEL
from src.core.text import in_line
from src.cutting.layout import RANKS
from src.dataset import DATASETS, DatasetSpec, Split
from src.dataset.feature_files import FeatureFile, Saved, parts_of, read_features
from src.dataset.preprocessing import Preprocessing
from src.networks.checkpoints import Checkpoint
from src.networks.opening import open_network
from src.networks.presentation import put_on_dataset
from src.networks.source_spec import PREFIX, Named, is_features, split_view

NONE = "none"  # in the place of a data set, where both sides are files
Side = tuple[FeatureFile, Mapping[str, str]]  # a file, and the layout of each layer
ROWS = "rows"  # the attribute of a batch of images that says which rows of a file belong to it


class _Layer(nn.Module):
    """Images -> the rows of an array that belong to them; blank ones where nobody says which these are."""

    def __init__(self, saved: Saved, layout: str, order: Tensor | None) -> None:
        super().__init__()
        self.saved, self.layout, self.order = saved, layout, order

    def forward(self, images: Tensor) -> Tensor:
        if not self._forward_hooks:  # nobody asks for it
            return images
        return rows_of(self.saved, images, self.order)


def rows_of(saved: Saved, images: Tensor, order: Tensor | None) -> Tensor:
    """The rows of a batch in float32, on its device."""
    rows = getattr(images, ROWS, None)
    if rows is None:
        return torch.zeros(len(images), *saved.shape[1:], device=images.device)
    rows = rows if order is None else order[rows]
    first, last = int(rows[0]), int(rows[-1])
    in_a_row = last - first + 1 == len(rows) and torch.equal(rows, torch.arange(first, last + 1))
    index: Any = slice(first, last + 1) if in_a_row else rows.numpy()
    try:
        with np.errstate(over="raise"):
            values = np.ascontiguousarray(saved.read(index), dtype=np.float32)
    except FloatingPointError:
        raise UserError(f"{saved.place}: values beyond those of float32, in which metrics take activations") from None
    return torch.from_numpy(values.copy() if not values.flags.writeable else values).to(images.device)


class FeatureNetwork(nn.Module):
    """The layers of a file as those of a network, by their names, dots and all; it gives the file's outputs."""

    reads_files = True

    def __init__(self, file: FeatureFile, layouts: Mapping[str, str], order: Tensor | None = None) -> None:
        super().__init__()
        self._output, self._order, self._names = file.output, order, list(file.layers)
        self.layouts = dict(layouts)
        for name, saved in sorted(file.layers.items()):  # a layer comes before those within it
            *homes, last = name.split(".")
            home: nn.Module = self
            try:
                for part in homes:
                    if part not in home._modules:
                        home.add_module(part, nn.Module())
                    home = home.get_submodule(part)
                home.add_module(last, _Layer(saved, layouts[name], order))
            except KeyError:  # which torch needs itself, or that is empty
                raise UserError(f"{saved.place}: no layer can have the name {in_line(name)!r}") from None
        self.eval()

    @property
    def order_of_images(self) -> Tensor | None:
        """Where the images of the other side are in this file; None: at the same places."""
        return self._order

    def forward(self, images: Tensor) -> Tensor | None:
        if isinstance(images, fx.Proxy):
            raise TypeError("files are read by hooks")
        for name in self._names:
            self.get_submodule(name)(images)
        return None if self._output is None else rows_of(self._output, images, self._order)


class RowsSplit(Split):
    """The images of a split, or none, by the rows of files that belong to them."""

    def __init__(
        self,
        spec: DatasetSpec,
        labels: Tensor,
        device: torch.device,
        inner: Split | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """ids: of the images, where a file says them."""
        super().__init__(spec, labels, device)
        self.inner, self.rows, self.ids = inner, torch.arange(len(labels)), ids

    def take(self, index: Tensor) -> "RowsSplit":
        other = copy.copy(self)
        other.rows, other.labels = self.rows[index], self.labels[index]
        other.inner = self.inner.take(index) if self.inner else None
        other.ids = [self.ids[place] for place in index.tolist()] if self.ids else None
        return other

    def as_seen(self, images: Tensor) -> Tensor:
        return images  # the inner split's own view already

    def _crop(self, images: Tensor) -> Tensor:
        return images

    def _read(self, index: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        parts = index.split(batch_size)
        for part, (images, labels) in zip(parts, self._images(index, batch_size), strict=True):
            setattr(images, ROWS, self.rows[part])
            yield images, labels

    def _images(self, index: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self.inner is None:
            for part in index.split(batch_size):
                yield torch.zeros(len(part), 1, 1, 1, device=self.device), self.labels[part]
            return
        for images, labels in self.inner._read(index, batch_size):
            yield self.inner.as_seen(self.inner._crop(images)), labels

    def _contents(self) -> Any:
        return self.rows.numpy().tobytes()


@dataclass(frozen=True, slots=True)
class FeaturePair:
    """Two sides, at least one of which is a file, as `NetworksOnDataset` has two networks; `notes` say what was taken
    for granted."""

    networks: tuple[Checkpoint, Checkpoint]
    files: tuple[FeatureFile | None, FeatureFile | None]
    sample: Tensor
    dataset: str
    spec: DatasetSpec
    notes: tuple[str, ...]
    shown: Any = None  # the network in front of the images, as NetworksOnDataset, where one side is one

    @property
    def classes_known(self) -> dict[str, bool]:
        outputs = [file.output for file in self.files if file]
        known = all(saved is not None and len(saved.shape) == 2 for saved in outputs)
        widths = {saved.shape[1] for saved in outputs if saved is not None and len(saved.shape) == 2}
        if self.shown:
            widths.add(self.shown.spec.classes)
        has_labels = bool(self.shown and self.shown.labelled) or any(file.labels for file in self.files if file)
        alike = known and len(widths) == 1
        return {"labelled": alike and has_labels, "comparable": alike}

    def split(self, name: str, *, device: torch.device, **reading: Any) -> RowsSplit:
        """All images of both sides, in the order of the first file, or of the data set."""
        inner = self.shown.split(name, device=device, **reading) if self.shown else None
        files = [file for file in self.files if file]
        self.require_count(name, None if inner is None else len(inner))
        labels = inner.labels.cpu() if inner is not None else self._labels(files)
        return RowsSplit(self.spec, labels, device, inner, next((file.ids for file in files if file.ids), None))

    def require_count(self, name: str, images: int | None) -> int:
        """How many images both sides have; `images` are those of the data set's split. UserError where they differ."""
        files = [file for file in self.files if file]
        where = str(files[0].path) if images is None else f"{self.dataset} ({name})"
        images = files[0].images if images is None else images
        for file in files:
            if file.images != images:
                raise UserError(f"{file.path} has {file.images} images, {where} {images}; they are to be the same ones")
        return images

    def _labels(self, files: Sequence[FeatureFile]) -> Tensor:
        labelled = next((file for file in files if file.labels), None)
        if labelled is None or labelled.labels is None:
            return torch.zeros(files[0].images, dtype=torch.int64)
        values = labelled.labels.read(slice(None))
        if values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 0:
            raise UserError(f"{labelled.labels.place}: labels are whole numbers from 0, one an image")
        labels = torch.from_numpy(values.astype(np.int64))
        order = getattr(self.networks[self.files.index(labelled)].network, "order_of_images", None)
        return labels if order is None else labels[order]


def path_of(spec: str) -> Path:
    """The file or folder that a spec names."""
    path = spec.removeprefix(PREFIX)
    return Path(path if Path(path).exists() else path.partition("?")[0])


def features_files(spec: str) -> list[Path]:
    """The files that a spec stands for, whether they are there or not."""
    path = path_of(spec)
    return parts_of(path) if path.exists() else [path]


def place_of(specs: Sequence[str | Named], dataset: str | None) -> str | None:
    """The data set of two sides of which one or both are files: none, where both are."""
    return NONE if all(map(is_features, specs)) else dataset


def open_features(spec: str) -> tuple[FeatureFile, dict[str, str]]:
    """The file that a spec names, and the layout of each layer. UserError where axes could be read in several ways."""
    path = spec.removeprefix(PREFIX)
    body, view = (path, {}) if Path(path).exists() else split_view(path)
    if odd := view.keys() - {"layout"}:
        raise UserError(f"{spec}: {min(odd)} says nothing of saved activations; only layout does")
    file = read_features(Path(body))
    return file, layouts_in(file, view.get("layout"), spec)


def layouts_in(
    file: FeatureFile, asked: str | None, called: str, remedy: str = "?layout=tokens behind it"
) -> dict[str, str]:
    """The layout of each layer, given the one asked for; UserError, with a remedy, where axes are ambiguous."""
    return {name: _layout(called, name, saved, asked, remedy) for name, saved in file.layers.items()}


def _layout(spec: str, name: str, saved: Saved, asked: str | None, remedy: str) -> str:
    rank = len(saved.shape)
    if rank == RANKS["features"]:
        return "features"
    if asked and RANKS[asked] == rank:
        return asked
    if rank == RANKS["maps"] and asked in (None, "tokens"):
        return "maps"
    if rank == RANKS["tokens"]:
        raise UserError(
            f"{spec}: {in_line(name)} gives {saved.shape[1:]} for an image, which may be tokens or channels; say it "
            f"with {remedy}, or save it with four axes"
        )
    raise UserError(
        f"{spec}: {in_line(name)} gives {saved.shape[1:]} for an image: neither maps nor tokens nor features"
    )


def matched(first: FeatureFile, second: FeatureFile) -> tuple[Tensor | None, str]:
    """Where the images of the first file are in the second, None for the same places; and what to say of it.

    Raises UserError where ids differ, with the first that does.
    """
    if first.ids is None or second.ids is None:
        who = "neither file says" if first.ids is None and second.ids is None else "one file does not say"
        return None, f"{who} which images it is of; they are taken to be the same ones in the same order"
    if first.ids == second.ids:
        return None, ""
    places = {name: number for number, name in enumerate(second.ids)}
    if missing := next((name for name in first.ids if name not in places), None):
        raise UserError(f"{second.path} has no image {in_line(missing)!r}, which {first.path} has")
    if len(second.ids) > len(first.ids):
        more = next(name for name in second.ids if name not in set(first.ids))
        raise UserError(f"{first.path} has no image {in_line(more)!r}, which {second.path} has")
    order = torch.tensor([places[name] for name in first.ids])
    return order, f"the images of {second.path} are in another order; they are matched by their ids"


def checkpoint_of(spec: str, file: FeatureFile, layouts: Mapping[str, str], order: Tensor | None) -> Checkpoint:
    network = FeatureNetwork(file, layouts, order)
    plain = Preprocessing(1, (0.0,), (1.0,))
    return Checkpoint(network, file.path.stem, None, spec, plain)


def spec_of_files(files: Sequence[FeatureFile]) -> DatasetSpec:
    """What stands for the data set of files alone: as many classes as their outputs are wide."""
    widths = [file.output.shape[1] for file in files if file.output is not None and len(file.output.shape) == 2]
    labels = tuple(map(str, range(widths[0] if widths else 1)))
    return replace(DATASETS["digits"], name=NONE, folder="", labels=labels, task=SINGLE_LABEL)


def pair_of_files(specs: tuple[str, str], sides: Sequence[Side]) -> FeaturePair:
    """Two files, each with its layouts, whose images are matched; `specs` name them in results."""
    files = sides[0][0], sides[1][0]
    order, note = matched(*files)
    first, second = (
        checkpoint_of(spec, *side, moved) for spec, side, moved in zip(specs, sides, (None, order), strict=True)
    )
    notes = (note,) * bool(note)
    return FeaturePair((first, second), files, torch.zeros(2, 1, 1, 1), NONE, spec_of_files(files), notes)


def open_sides(
    specs: tuple[str | Named, str | Named],
    dataset: str | None,
    *,
    size: int | None = None,
    on_message: Callable[[str], None] = lambda line: None,
    opener: Callable[..., Checkpoint] = open_network,
) -> FeaturePair:
    """Two sides of which one or both are files; the network among them sees the images of the data set, in order.

    dataset: NONE where both are files, None for that of the network. `opener` stands in for `open_network`.
    """
    opened = [open_features(str(spec)) if is_features(spec) else None for spec in specs]
    files_found = [side for side in opened if side]
    if len(files_found) == len(specs):
        if dataset != NONE:
            raise UserError(f"both sides are files, which see no images: say {NONE} in the place of {dataset}")
        return pair_of_files((str(specs[0]), str(specs[1])), files_found)
    if dataset == NONE:
        raise UserError(f"the network sees the images of a data set: name it in the place of {NONE}")
    text = next(spec for spec in specs if not is_features(spec))
    network = opener(text, dataset=dataset, size=size, on_message=on_message)
    shown = put_on_dataset([network], dataset, size=size)
    notes = *shown.notes, f"{files_found[0][0].path} is taken to be of the images of {shown.dataset}, in their order"
    first, second = (
        checkpoint_of(str(spec), *side, None) if side else shown.networks[0]
        for spec, side in zip(specs, opened, strict=True)
    )
    files = opened[0] and opened[0][0], opened[1] and opened[1][0]
    return FeaturePair((first, second), files, shown.sample, shown.dataset, shown.spec, notes, shown)
