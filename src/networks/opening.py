"""Where networks come from: a spec string -> a network, with what it does to images and what its classes are."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from src.core.errors import UserError
from src.cutting.structure import no_logits
from src.dataset import DatasetSpec, dataset_of, measured
from src.dataset.preprocessing import Preprocessing
from src.models import canonical_name
from src.networks import checkpoints
from src.networks.architectures import (
    architecture,
    canonical_model,
    files_of,
    own_preprocessing,
    rows_of_head,
    seen_as_asked,
    source_sha256,
)
from src.networks.checkpoints import Checkpoint, weights_digest
from src.networks.source_spec import Asker, Named, NetworkSpec, parse_spec
from src.networks.sources.library import LibraryModel, NotHere, Source, check_forward
from src.networks.sources.offline import offline

UNKNOWN = Asker()
WEIGHT_FILES = (".pt", ".pth", ".safetensors")
HELP = "a weight file, tiny10#SEED, torchvision:NAME@FILE, timm:NAME@FILE, hf:FOLDER or FILE.py:FUNCTION@FILE"


def open_network(
    text: str | Named,
    *,
    model: str | Named | None = None,
    dataset: str | None = None,
    size: int | None = None,
    on_message: Callable[[str], None] = lambda line: None,
    asker: Asker = UNKNOWN,
    bare: bool = False,
) -> Checkpoint:
    """The network that a spec names, on the CPU, in eval mode.

    `model` and `dataset` fill in what a plain state dict and its path lack; untrained networks are for the classes and
    channels of `dataset`, and for its size or `size`. A Python file runs, and weights are downloaded, for a spec or
    model that is `Named`, alone; for others `asker` is said to have asked. `on_message` hears where such a file is not
    that of the training. `bare` says that an architecture may be named alone: it is then untrained, of seed 0, for
    CIFAR-10 where no data set is named. Raises UserError or FileNotFoundError with one line.
    """
    with contextlib.nullcontext() if isinstance(text, Named) else offline():
        return _open(text, model, dataset, size, on_message, asker, bare)


def _open(
    text: str | Named,
    model: str | Named | None,
    dataset: str | None,
    size: int | None,
    on_message: Callable[[str], None],
    asker: Asker,
    bare: bool,
) -> Checkpoint:
    spec, is_named = parse_spec(str(text)), isinstance(text, Named)
    if bare:
        spec, dataset = _untrained(spec), dataset or ("cifar10" if not spec.is_trained else None)
    for_images = dataset_of(dataset, size) if dataset and spec.record and spec.record.build else None
    if bare and for_images and not for_images.mean:  # of no matter for layers, and all images would have to be read
        for_images = replace(for_images, mean=(0.5,) * for_images.channels, std=(0.5,) * for_images.channels)
    if spec.record is None:
        found = _open_file(spec, model, dataset, on_message, asker)
    elif spec.record.open:
        found = _open_trained(spec, spec.record.open, is_named, asker)
    else:
        found = _open_architecture(spec, spec.record, for_images, is_named, on_message, asker)
    return _seen_as_asked(found, spec)


def _untrained(spec: NetworkSpec) -> NetworkSpec:
    """The spec itself where it names weights; else that of a network of seed 0 of the architecture."""
    if spec.is_trained or spec.seed is not None:
        return spec
    if spec.record is None and Path(spec.name).suffix in WEIGHT_FILES:
        raise FileNotFoundError(f"no weight file {spec.name}")
    own = {} if spec.record else {"source": "own", "name": canonical_name(spec.name)}
    return replace(spec, seed=0, **own)


def open_pair(
    texts: tuple[str | Named, str | Named],
    *,
    models: tuple[str | Named | None, str | Named | None] = (None, None),
    dataset: str | None = None,
    size: int | None = None,
    on_message: Callable[[str], None] = lambda line: None,
    opener: Callable[..., Checkpoint] | None = None,
) -> tuple[Checkpoint, Checkpoint]:
    """The two networks that specs name; without a `dataset`, an untrained one is for that of the other.

    `opener` stands in for `open_network`, such as one that remembers what it opened.
    """
    found: dict[int, Checkpoint] = {}
    for number in sorted((0, 1), key=lambda number: not parse_spec(str(texts[number])).is_trained):
        others = next((one.dataset for one in found.values()), None)
        found[number] = (opener or open_network)(
            texts[number], model=models[number], dataset=dataset or others, size=size, on_message=on_message
        )
    return found[0], found[1]


def names_file(text: str) -> bool:
    """Whether a spec names a weight file, and nothing more than that."""
    spec = parse_spec(text)
    return spec.record is None and not spec.view


def start_from(
    network: nn.Module,
    text: str | Named,
    *,
    model: str,
    dataset: str | None = None,
    on_message: Callable[[str], None] = lambda line: None,
) -> tuple[str, str | None]:
    """Start a network of an architecture from what a spec names, whose head may differ in size, and nothing else.

    Returns the SHA-256 of its weights and the name of the head where it stayed as it was, else None.
    """
    spec = parse_spec(str(text))
    if spec.record is None:
        return checkpoints.fill_from(network, Path(spec.name), model=model, canonical=canonical_model)
    found = open_network(text, dataset=dataset, on_message=on_message)
    if found.model != model:
        raise UserError(f"{text} is for the model {found.model}, not {model}")
    return found.sha256, checkpoints.fill_body(network, found.network.state_dict(), f"{text} does not fit {model}")


def _open_file(
    spec: NetworkSpec, model: str | Named | None, dataset: str | None, on_message: Callable[[str], None], asker: Asker
) -> Checkpoint:
    def build(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
        sizes = {"channels": channels, "classes": classes, "size": size}
        record = parse_spec(name).record
        if isinstance(model, Named):  # which is the name that the file says, if it says one
            if record and record.runs:
                _tell_changed(name, spec.name, on_message)
            return architecture(Named(name), **sizes).network
        if record and record.runs:
            raise replace(asker, file=spec.name).no_run(name, f"{name}@{spec.text}")
        with offline():
            return architecture(name, **sizes).network

    size, given = spec.view.get("size"), model and str(model)
    return checkpoints.load(spec.name, model=given, dataset=dataset, size=size, build=build, canonical=canonical_model)


def _tell_changed(name: str, weights: str, on_message: Callable[[str], None]) -> None:
    """Say that a Python file is not the one that weights were trained with, where they say which that was."""
    if checkpoints.source_digest(weights) not in (None, source_sha256(name)):
        on_message(f"note: {files_of(name)[0]} is not what it was when {weights} was trained")


def _open_trained(spec: NetworkSpec, opened: Callable[..., LibraryModel], is_named: bool, asker: Asker) -> Checkpoint:
    """A network of a source that has trained ones alone."""
    try:
        made = opened(spec.name, said=spec.view, download=is_named)
    except NotHere:
        raise asker.no_download(spec) from None
    preprocessing = own_preprocessing(made, spec.text, spec.view)
    assert preprocessing
    check_forward(made.network, spec.text, channels=preprocessing.channels, size=preprocessing.size)
    return _checkpoint(spec, replace(made, preprocessing=preprocessing), made.labels)


def _open_architecture(
    spec: NetworkSpec,
    source: Source,
    images: DatasetSpec | None,
    is_named: bool,
    on_message: Callable[[str], None],
    asker: Asker,
) -> Checkpoint:
    """A network of a named architecture: untrained, with a file's weights, or with those that its source offers."""
    if source.runs and not is_named:
        raise asker.no_run(spec.text)
    if spec.weights is None and spec.seed is None and not source.runs:
        raise UserError(
            f"{spec.text} names no weights: {spec.text}#0 is untrained, {spec.text}@FILE or @{source.word} is not"
        )
    if not source.foreign and images is None:
        raise UserError(f"{spec.text} is untrained; name the data set for whose classes it is with -d")
    digest, facts, state = "", {}, None
    if spec.weights and spec.weights == source.word:
        assert source.published
        if not is_named and source.cached(spec.name) is None:
            raise asker.no_download(spec)
        state = source.published(spec.name, None if is_named else source.cached(spec.name))
    elif spec.weights:
        digest, facts, state = checkpoints.read(Path(spec.weights))
        if source.runs:
            _tell_changed(spec.name, spec.weights, on_message)
    record = checkpoints.preprocessing_of(facts.get("preprocessing"), f"{spec.weights} does not say what it sees")
    trained_on = checkpoints.remembered(spec.weights or "", facts) if facts.get("dataset") else None
    size = spec.view.get("size") or (images.size if images and not source.foreign else None)
    size = size or (record.size if record else None)
    images = trained_on or images
    channels, classes = (images.channels, len(images.labels)) if images else (3, None)
    if source.for_images and images:
        size = size or images.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed or 0)
        if state is not None and not trained_on:
            classes = _classes_of(spec, source, state, channels, size)
        model = Named(spec.model) if is_named else spec.model
        made = architecture(model, channels=channels, classes=classes, size=size)
    if state is not None:
        checkpoints.fill(made.network, state, f"{spec.weights} does not fit {spec.name}")
    labels = images.labels if images and (state is None or trained_on) else None
    if labels and source.runs and _outputs(made.network, channels, size or 0) != len(labels):
        labels = None  # it decides between others, or gives no logits
    preprocessing = record or own_preprocessing(made, spec.text, spec.view)
    preprocessing = preprocessing or (measured(images).preprocessing if images else None)
    found = _checkpoint(spec, LibraryModel(made.network, preprocessing), labels, digest=digest)
    known = {key: facts[key] for key in checkpoints.TRAINING if facts.get(key) is not None}
    return replace(found, dataset=trained_on.name if trained_on else None, **known)


def _outputs(network: nn.Module, channels: int, size: int) -> int | None:
    """Between how many classes a network decides; None where it gives no logits."""
    with torch.no_grad():
        output = network.eval()(torch.zeros(2, channels, size, size))
    return None if no_logits(output) else output.shape[1]


def _classes_of(
    spec: NetworkSpec, source: Source, state: dict[str, torch.Tensor], channels: int, size: int | None
) -> int | None:
    """How many classes weights are for: the rows of the last linear layer; None leaves it to the architecture."""
    if source.runs:  # it may ask for the number
        return rows_of_head(state)
    assert source.build
    with torch.random.fork_rng(devices=[]):
        network = source.build(spec.name, channels=channels, classes=None, size=size).network
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    weight = state.get(f"{heads[-1]}.weight") if heads else None
    own = network.get_parameter(f"{heads[-1]}.weight").shape[0] if heads else None
    return None if weight is None or weight.shape[0] == own else weight.shape[0]


def _checkpoint(
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


def _seen_as_asked(found: Checkpoint, spec: NetworkSpec) -> Checkpoint:
    """The network with what stands behind the `?` of its spec, which wins over what its source says."""
    if not spec.view:
        return found
    seen = seen_as_asked(found.preprocessing, spec.view, spec.text)
    return replace(found, path=spec.text, preprocessing=seen, layout=spec.view.get("layout"))
