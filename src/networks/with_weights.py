"""A named architecture with weights: a file's, those that its source offers, or random ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.cutting.structure import no_logits
from src.dataset import DatasetSpec, measured
from src.dataset.preprocessing import Preprocessing
from src.networks.architectures import architecture, files_of, own_preprocessing, rows_of_head, source_sha256
from src.networks.checkpoints import Checkpoint, preprocessing_of, remembered, weights_digest
from src.networks.source_spec import Asker, Named, NetworkSpec
from src.networks.sources.library import LibraryModel, Source
from src.networks.state_dicts import fill, matched
from src.networks.weight_files import TRAINING, WeightFile, read_weights

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a fresh network is made for; None where its source knows."""

    channels: int
    classes: int | None
    size: int | None


def open_architecture(
    spec: NetworkSpec,
    source: Source,
    images: DatasetSpec | None,
    *,
    is_named: bool,
    on_message: Tell,
    asker: Asker,
    file: WeightFile | None = None,
) -> Checkpoint:
    """A network of a named architecture. `images` are those that an untrained one is for; `file` is read already.

    Raises UserError as `open_network` does.
    """
    _require_named(spec, source, images, is_named, asker)
    averaged = spec.view.get("weights") == "ema"
    published = _published(spec, source, is_named, asker)
    if spec.weights and published is None:
        file = file or read_weights(Path(spec.weights), averaged=averaged)
        for line in file.notes:
            on_message(f"note: {line}")
        tell_changed(source, spec.model, file, on_message)
    state = file.state if file else published
    facts = file.facts if file and file.has_metadata else {}  # a path in our layout is that of a network of ours
    record = preprocessing_of(facts.get("preprocessing"), f"{spec.weights} does not say what it sees")
    trained_on = remembered(spec.weights or "", facts) if facts.get("dataset") else None
    sizes = _sizes(spec, source, trained_on or images, record, None if trained_on else state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed or 0)
        model = Named(spec.model) if is_named else spec.model
        made = architecture(model, channels=sizes.channels, classes=sizes.classes, size=sizes.size)
    if state is not None:
        fill(made.network, state, f"{spec.weights} does not fit {spec.name}", on_message=on_message, averaged=averaged)
    labels = trained_on.labels if trained_on else made.labels if state is not None else images and images.labels
    if labels and source.runs and outputs_of(made.network, sizes.channels, sizes.size or 0) != len(labels):
        labels = None  # it decides between others, or gives no logits
    preprocessing = record or own_preprocessing(made, spec.text, spec.view)
    if preprocessing and not record and (published or (file and source.is_published(spec.name, file.sha256))):
        preprocessing = source.as_published(spec.name, made.network, preprocessing)
    if preprocessing is None and (shown := trained_on or images):
        preprocessing = _of_channels(measured(shown).preprocessing, sizes.channels)
    digest = file.sha256 if file else ""
    found = found_checkpoint(spec, LibraryModel(made.network, preprocessing), labels, digest=digest)
    known = {key: facts[key] for key in TRAINING if facts.get(key) is not None}
    return replace(found, dataset=trained_on.name if trained_on else None, **known)


def _require_named(spec: NetworkSpec, source: Source, images: DatasetSpec | None, is_named: bool, asker: Asker) -> None:
    if source.runs and not is_named:
        raise asker.no_run(spec.text)
    if spec.weights is None and spec.seed is None and not source.runs:
        raise UserError(
            f"{spec.text} names no weights: {spec.text}#0 is untrained, {spec.text}@FILE or @{source.word} is not"
        )
    if not source.foreign and images is None:
        raise UserError(f"{spec.text} is untrained; name the data set for whose classes it is with -d")


def _published(spec: NetworkSpec, source: Source, is_named: bool, asker: Asker) -> dict[str, Tensor] | None:
    """The weights that the source itself offers, where these are asked for."""
    if not spec.weights or spec.weights != source.word:
        return None
    assert source.published
    if not is_named and source.cached(spec.name) is None:
        raise asker.no_download(spec)
    return source.published(spec.name, None if is_named else source.cached(spec.name))


def _sizes(
    spec: NetworkSpec,
    source: Source,
    images: DatasetSpec | None,
    record: Preprocessing | None,
    state: dict[str, Tensor] | None,
) -> _Sizes:
    """What a network is made for: its images and, where they are not of its training, what its weights show."""
    size = spec.view.get("size") or (images.size if images and not source.foreign else None)
    size = size or (record.size if record else None)
    channels, classes = (images.channels, len(images.labels)) if images else (3, None)
    if source.for_images and images:
        size = size or images.size
    if state is not None:
        channels = _channels_of(state) or channels
        classes = rows_of_head(state) or classes if source.runs else _classes_of(spec, source, state, channels, size)
    return _Sizes(channels, classes, size)


def _channels_of(state: dict[str, Tensor]) -> int | None:
    """The channels that the first convolution takes, where these can be those of images."""
    first = next((value.shape[1] for value in state.values() if value.dim() == 4), None)
    return first if first in (1, 3) else None


def _classes_of(
    spec: NetworkSpec, source: Source, state: dict[str, Tensor], channels: int, size: int | None
) -> int | None:
    """How many classes weights are for: the rows of the last linear layer; None leaves it to the architecture."""
    assert source.build
    with torch.random.fork_rng(devices=[]):
        network = source.build(spec.name, channels=channels, classes=None, size=size).network
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    weight = matched(network.state_dict(), state).get(f"{heads[-1]}.weight") if heads else None
    own = network.get_parameter(f"{heads[-1]}.weight").shape[0] if heads else None
    return None if weight is None or weight.shape[0] == own else weight.shape[0]


def _of_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """What images of a data set go through, for a network of other channels."""
    if channels == preprocessing.channels:
        return preprocessing
    mean, std = ((sum(values) / len(values),) * channels for values in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=mean, std=std)


def outputs_of(network: nn.Module, channels: int, size: int) -> int | None:
    """Between how many classes a network decides; None where it gives no logits."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        output = network.eval()(torch.zeros(2, channels, size, size))
    return None if no_logits(output) else output.shape[1]


def tell_changed(source: Source | None, model: str, file: WeightFile, on_message: Tell) -> None:
    """Say that a Python file is not the one that weights were trained with, where they say which that was."""
    if source and source.runs and file.source_sha256 not in (None, source_sha256(model)):
        on_message(f"note: {files_of(model)[0]} is not what it was when {file.path} was trained")


def found_checkpoint(
    spec: NetworkSpec, made: LibraryModel, labels: tuple[str, ...] | None, *, digest: str = ""
) -> Checkpoint:
    network = made.network.eval()
    preprocessing = made.preprocessing or Preprocessing(spec.view.get("size", 224), (0.5,) * 3, (0.5,) * 3)
    return Checkpoint(
        network=network,
        model=spec.model,
        dataset=None,
        path=spec.text,
        preprocessing=preprocessing,
        labels=labels,
        init_seed=spec.seed,
        sha256=digest or weights_digest(network),
    )
