"""Where networks come from: a spec string -> a network, with what it does to images and what its classes are."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from src.core.errors import UserError
from src.dataset import dataset_of
from src.dataset.preprocessing import Preprocessing
from src.models import canonical_name
from src.networks import checkpoints
from src.networks.architectures import architecture, canonical_model, own_preprocessing, seen_as_asked
from src.networks.checkpoints import Checkpoint
from src.networks.class_names import classes_of
from src.networks.source_spec import Asker, Named, NetworkSpec, is_features, parse_spec
from src.networks.sources.library import LibraryModel, NotHere, check_forward
from src.networks.sources.offline import offline
from src.networks.state_dicts import fill_body
from src.networks.steadiness import tried
from src.networks.weight_files import read_weights
from src.networks.with_weights import found_checkpoint, open_architecture, outputs_of, tell_changed

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
    if is_features(text):
        raise UserError(f"{text}: saved activations are for compare_nets.py, and no network")
    spec, is_named = parse_spec(str(text)), isinstance(text, Named)
    if "weights" in spec.view and spec.record and not (spec.weights and spec.weights != spec.record.word):
        raise UserError(f"{spec.text} names no file with weights of two kinds; leave out ?weights=")
    if bare:
        spec, dataset = _untrained(spec), dataset or ("cifar10" if not spec.is_trained else None)
    for_images = dataset_of(dataset, size) if dataset and spec.record and spec.record.build else None
    if bare and for_images and not for_images.mean:  # of no matter for layers, and all images would have to be read
        for_images = replace(for_images, mean=(0.5,) * for_images.channels, std=(0.5,) * for_images.channels)
    if spec.record is None:
        network = _open_file(spec, model, dataset, size, on_message, asker)
    elif spec.record.open:
        network = _open_trained(spec, spec.record.open, is_named, asker)
    else:
        network = open_architecture(
            spec, spec.record, for_images, is_named=is_named, on_message=on_message, asker=asker
        )
    network = _seen_as_asked(network, spec)
    record = parse_spec(network.model).record
    if bare or record is None or not record.foreign:
        return network
    by_chance, by_batch = tried(
        network.network, channels=network.preprocessing.channels, size=network.preprocessing.size
    )
    return replace(network, by_chance=by_chance, by_batch=by_batch)


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
    networks: dict[int, Checkpoint] = {}
    for number in sorted((0, 1), key=lambda number: not parse_spec(str(texts[number])).is_trained):
        others = next((one.dataset for one in networks.values()), None)
        networks[number] = (opener or open_network)(
            texts[number], model=models[number], dataset=dataset or others, size=size, on_message=on_message
        )
    return networks[0], networks[1]


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
) -> tuple[str, str | None, Preprocessing | None]:
    """Start a network of an architecture from what a spec names, whose head may differ in size, and nothing else.

    Returns the SHA-256 of its weights, the name of the head where it stayed as it was, else None, and what the weights
    were shown, where the spec tells it.
    """
    spec, seen = parse_spec(str(text)), None
    if spec.record is None:
        file = read_weights(Path(spec.name), averaged=spec.view.get("weights") == "ema")
        if (own := file.facts["model"]) is not None and (file.has_metadata or not _is_foreign(model)):
            checkpoints.agree(file.path, "model", own, model, canonical_model)
        for line in file.notes:
            on_message(f"note: {line}")
        digest, state = file.sha256, file.state
    else:
        found = open_network(text, dataset=dataset, on_message=on_message)
        if found.model != model:
            raise UserError(f"{text} is for the model {found.model}, not {model}")
        digest, state, seen = found.sha256, found.network.state_dict(), found.preprocessing
    return digest, fill_body(network, state, f"{text} does not fit {model}", on_message=on_message), seen


def _is_foreign(model: str) -> bool:
    record = parse_spec(model).record
    return bool(record and record.foreign)


def _open_file(
    spec: NetworkSpec,
    model: str | Named | None,
    dataset: str | None,
    size: int | None,
    on_message: Callable[[str], None],
    asker: Asker,
) -> Checkpoint:
    averaged = spec.view.get("weights") == "ema"
    file = read_weights(Path(spec.name), averaged=averaged)
    named = parse_spec(str(model)) if model else None
    if named and named.record and named.record.foreign and not file.has_metadata:  # as if it stood behind the @
        canonical_model(named.text)
        if named.record.runs and not isinstance(model, Named):
            raise replace(asker, file=spec.name).no_run(named.text, f"{named.text}@{spec.text}")
        whole = replace(named, weights=spec.name, view=spec.view, text=spec.text)
        images = dataset_of(dataset, size) if dataset else None
        how = {"is_named": isinstance(model, Named), "on_message": on_message, "asker": asker, "file": file}
        return replace(open_architecture(whole, named.record, images, **how), path=Path(spec.name))

    def build(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
        sizes = {"channels": channels, "classes": classes, "size": size}
        record = parse_spec(name).record
        if isinstance(model, Named):  # which is the name that the file says, if it says one
            tell_changed(record, name, file, on_message)
            return architecture(Named(name), **sizes).network
        if record and record.runs:
            raise replace(asker, file=spec.name).no_run(name, f"{name}@{spec.text}")
        with offline():
            return architecture(name, **sizes).network

    return checkpoints.load(
        file,
        model=model and str(model),
        dataset=dataset,
        size=spec.view.get("size"),
        build=build,
        canonical=canonical_model,
        on_message=on_message,
        averaged=averaged,
    )


def _open_trained(spec: NetworkSpec, opened: Callable[..., LibraryModel], is_named: bool, asker: Asker) -> Checkpoint:
    """A network of a source that has trained ones alone."""
    try:
        made = opened(spec.name, asked=spec.view, download=is_named)
    except NotHere:
        raise asker.no_download(spec) from None
    preprocessing = own_preprocessing(made, spec.text, spec.view)
    assert preprocessing
    check_forward(made.network, spec.text, channels=preprocessing.channels, size=preprocessing.size)
    return found_checkpoint(spec, replace(made, preprocessing=preprocessing), made.labels)


def _seen_as_asked(network: Checkpoint, spec: NetworkSpec) -> Checkpoint:
    """The network with what stands behind the `?` of its spec, which wins over what its source says."""
    if not spec.view:
        return network
    seen = seen_as_asked(network.preprocessing, spec.view, spec.text)
    network = replace(network, path=spec.text, preprocessing=seen, layout=spec.view.get("layout"))
    if "classes" not in spec.view:
        return network
    labels, count = classes_of(spec.view["classes"]), outputs_of(network.network, seen.channels, seen.size)
    if count != len(labels):
        decides = f"decides between {count}" if count else "gives no logits"
        raise UserError(f"{spec.text}: classes has {len(labels)} names, and the network {decides}")
    return replace(network, labels=labels)
