"""A weight file <-> a network, its architecture, its data set and its seeds."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.records import PREPROCESSING, check
from src.core.task import SINGLE_LABEL
from src.core.tensor_files import write_tensors
from src.dataset import DatasetSpec, canonical_dataset, dataset_folder, dataset_of, measured
from src.dataset.preprocessing import Preprocessing
from src.models import build_model, canonical_name, folder_name
from src.networks.state_dicts import fill, require_shape, silent
from src.networks.weight_facts import FORMAT
from src.networks.weight_files import WeightFile, read_weights

SPARE = 10**6  # numbers that a network may lack beside what is stored: which it lacks is said later


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network with what its file says of itself; seeds, iteration and recipe are None where it does not.

    `model` is the name of an architecture, or the network spec of a foreign one; `dataset` is what it was trained on
    (folder:PATH and arrays:PATH are where that was), None where that is none of ours. `preprocessing` is what it does
    to images, `labels` names its classes, if known; `path` is its file, or the spec where there is none. `layout` is
    how the outputs of its layers are to be read, where the user says so.
    `by_chance` and `by_batch` name the module that makes its answers depend on chance, and on the rest of the batch.
    `train_fraction` is the share of the training images that it saw, `shuffle_labels` that of wrong labels among them,
    `adversarial` the bound within which images were changed against it in training.
    """

    network: nn.Module
    model: str
    dataset: str | None
    path: Path | str
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    layout: str | None = None
    init_seed: int | None = None
    gradient_seed: int | None = None
    iteration: int | None = None
    recipe: dict[str, Any] | None = None
    train_fraction: float = 1.0
    shuffle_labels: float = 0.0
    adversarial: float = 0.0
    sha256: str = ""
    by_chance: str | None = None
    by_batch: str | None = None

    @property
    def seeds(self) -> str:
        """What its weight folder is called; "" where the seeds are not known."""
        if self.init_seed is None or self.gradient_seed is None:
            return ""
        how = self.train_fraction, self.shuffle_labels, self.adversarial
        return seeds_name(self.init_seed, self.gradient_seed, *how)

    @property
    def stem(self) -> str:
        """The name of its file without the ending, or its spec, as it may stand in the name of another file."""
        path = Path(self.path)
        return path.stem if path.is_file() else re.sub(r"[^\w.-]", "_", path.name)

    @property
    def sample(self) -> Tensor:
        """Two blank images as the network sees them: enough to learn the shapes of its layers."""
        preprocessing = self.preprocessing
        return torch.zeros(2, preprocessing.channels, preprocessing.size, preprocessing.size)

    def facts(self) -> dict[str, Any]:
        """What a result says of the network: architecture, data set, weight file, seeds, and the file's digest."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "path": str(self.path),
            "preprocessing": self.preprocessing.facts(),
            "init_seed": self.init_seed,
            "gradient_seed": self.gradient_seed,
            "train_fraction": self.train_fraction,
            "shuffle_labels": self.shuffle_labels,
            **({"adversarial": self.adversarial} if self.adversarial else {}),
            "sha256": self.sha256,
        }


def seeds_name(
    init_seed: int,
    gradient_seed: int,
    train_fraction: float = 1.0,
    shuffle_labels: float = 0.0,
    adversarial: float = 0.0,
) -> str:
    """What tells trainings of one network on one data set apart: in<i>-gn<j>[-f<fraction>][-s<share>][-adv<bound>]."""
    name = f"in{init_seed}-gn{gradient_seed}"
    # repr: two numbers that differ have names that differ
    name += f"-f{float(train_fraction)!r}".removesuffix(".0") if train_fraction != 1 else ""
    name += f"-s{float(shuffle_labels)!r}".removesuffix(".0") if shuffle_labels else ""
    return name + (f"-adv{float(adversarial)!r}".removesuffix(".0") if adversarial else "")


def model_folder(model: str) -> str:
    """The name of the weight folder of an architecture: of a foreign one, what is left of its spec in a file name."""
    try:
        return folder_name(model)
    except ValueError:
        return re.sub(r"[^\w.-]", "_", re.sub(r"\?\w+=.*", "", model).rpartition("/")[2])


def weight_folder(out_dir: Path, model: str, dataset: str, seeds: str) -> Path:
    """Where the weights of one training run belong: <out>/<Model>/<Dataset>/<seeds>, the last as of `seeds_name`."""
    return out_dir / model_folder(model) / dataset_folder(dataset) / seeds


def save(
    path: Path,
    network: nn.Module,
    *,
    model: str,
    dataset: str,
    init_seed: int,
    gradient_seed: int,
    iteration: int,
    recipe: dict[str, Any],
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] | None = None,
    source_sha256: str | None = None,
) -> None:
    """Write the network's state with its metadata, atomically; readable with `weights_only=True`.

    `recipe` holds the options that the network was trained with, as built-in values; `train_fraction` and
    `shuffle_labels` only where they differ from 1 and 0. `preprocessing` is the network's, where not the data set's,
    `labels` its classes, where the data set has no name by which they are known; `source_sha256` is of the Python file
    that builds it, where one does.
    """
    record = {
        "format": FORMAT,
        "model": model,
        "dataset": dataset,
        "init_seed": init_seed,
        "gradient_seed": gradient_seed,
        "iteration": iteration,
        "recipe": recipe,
        **({"preprocessing": preprocessing.facts()} if preprocessing else {}),
        **({"labels": list(labels)} if labels else {}),
        **({"source_sha256": source_sha256} if source_sha256 else {}),
        "state_dict": {name: _plain(value) for name, value in network.state_dict().items()},
    }
    write_tensors(path, record)


def _plain(value: Tensor) -> Tensor:
    # a copy, since contiguous() keeps the odd strides that channels last gives to a single channel
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's state: names, kinds, shapes and bytes, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        plain = _plain(value)
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(
    file: WeightFile | Path | str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    size: int | None = None,
    build: Callable[..., nn.Module] = build_model,
    canonical: Callable[[str], str] = canonical_name,
    on_message: Callable[[str], None] = silent,
    averaged: bool = False,
) -> Checkpoint:
    """Rebuild the network of a weight file, on the CPU, in eval mode.

    The metadata in the file say which architecture and data set it is for; for a plain state dict its path does
    (<Model>/<Dataset>/in<i>-gn<j>/<iteration>.pt), and `model` and `dataset` fill in what the path lacks. `size` is of
    the images, where not of the data set's. `build` and `canonical` make a network of a model's name; `on_message` and
    `averaged` as in `fill`. Raises FileNotFoundError, or UserError with one line on what is wrong or missing.
    """
    if not isinstance(file, WeightFile):
        file = read_weights(Path(file), averaged=averaged)
    path, known = file.path, dict(file.facts)
    record, labels = known.pop("preprocessing"), known.pop("labels", None)
    model = agree(path, "model", known.pop("model"), model, canonical)
    # another data set may be looked at by a network, which its file says better than an option
    found = known.pop("dataset")
    dataset = agree(path, "dataset", found, None if found is not None else dataset, canonical_dataset)
    spec = remembered(path, {"dataset": dataset, "labels": labels, "preprocessing": record})
    preprocessing = preprocessing_of(record, f"{path} says what it does to images, but not in a way known here")
    preprocessing = preprocessing or measured(spec).preprocessing
    preprocessing = replace(preprocessing, size=size) if size else preprocessing
    sizes = {"channels": preprocessing.channels, "classes": spec.classes, "size": preprocessing.size}
    _require_shapes(model, sizes, file.state, f"{path} does not fit {model} on {dataset}")
    network = build(model, **sizes)
    for line in file.notes:
        on_message(f"note: {line}")
    fill(network, file.state, f"{path} does not fit {model} on {dataset}", on_message=on_message, averaged=averaged)
    said: dict[str, Any] = {key: value for key, value in known.items() if value is not None}
    return Checkpoint(network.eval(), model, dataset, path, preprocessing, spec.labels, sha256=file.sha256, **said)


def remembered(path: Path | str, facts: dict[str, Any]) -> DatasetSpec:
    """The data set that the metadata of a weight file name, known by its name or by what the metadata say of it.

    One that a path named need no longer be there. Raises UserError where they say too little.
    """
    name, labels = facts["dataset"], facts.get("labels")
    if labels is None:
        return dataset_of(name)
    complaint = f"{path} says what its classes are, but not in a way known here"
    preprocessing = preprocessing_of(facts.get("preprocessing"), complaint)
    fit = isinstance(labels, list | tuple) and labels and all(isinstance(label, str) for label in labels)
    if not preprocessing or not fit or len(set(labels)) < len(labels):
        raise UserError(complaint)
    return DatasetSpec(
        name=canonical_dataset(name),
        folder=dataset_folder(name),
        channels=preprocessing.channels,
        labels=tuple(labels),
        size=preprocessing.size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        task=SINGLE_LABEL,
        root=None,
        read=_forgotten,
        augment=_forgotten,
    )


def _forgotten(*_: Any, **__: Any) -> Any:
    raise UserError("only the name of this data set is known")


def preprocessing_of(record: Any, complaint: str) -> Preprocessing | None:
    """What a weight file's metadata say that its network does to images; None where they say nothing."""
    if record is None:
        return None
    try:
        check(record, PREPROCESSING, required=PREPROCESSING)
        return Preprocessing.from_facts(record)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{complaint}: {error}") from None


def _require_shapes(model: str, sizes: dict[str, int], state: dict[str, Tensor], complaint: str) -> None:
    """Refuse a network of ours that stored tensors are too small for, before it is made: its name may say any width."""
    try:
        canonical_name(model)
    except UserError:
        return
    try:
        with torch.device("meta"):
            wanted = build_model(model, **sizes).state_dict()
    except (RuntimeError, OverflowError):  # numbers that torch cannot multiply
        raise UserError(f"{complaint}: no network is as large as that") from None
    for name, value in wanted.items():
        if name in state:
            require_shape(name, state[name], value, complaint)
    stored = sum(value.numel() for value in state.values())
    if sum(value.numel() for value in wanted.values()) > 10 * stored + SPARE:
        raise UserError(f"{complaint}: it holds too few numbers")


def agree(path: Path, what: str, stored: Any, given: str | None, canonical: Callable[[str], str]) -> str:
    """The canonical name of the model or data set that a weight file and the user, or one of them, name."""
    if stored is not None:
        try:
            stored = canonical(stored)
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path} is for the {what} {stored!r}, which is unknown here") from None
    given = given and canonical(given)
    if stored and given and stored != given:
        raise UserError(f"{path} is for the {what} {stored}, not {given}")
    if not (stored or given):
        raise UserError(
            f"{path} does not say its {what}; keep it below <Model>/<Dataset>/in<i>-gn<j>/ or name the {what}"
        )
    return stored or given or ""
