"""Where networks come from: a spec string -> a network, with what it does to images and what its classes are."""

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.core.errors import UserError
from src.cutting.structure import no_logits
from src.dataset import DatasetSpec, dataset_of, measured
from src.dataset.preprocessing import Preprocessing
from src.models import build_model, canonical_name
from src.networks import checkpoints
from src.networks.checkpoints import Checkpoint, model_folder
from src.networks.source_spec import Asker, Named, NetworkSpec, parse_spec
from src.networks.sources import python, timm, torchvision
from src.networks.sources.library import LibraryModel, NotHere, Source, check_forward
from src.networks.sources.offline import offline
from src.networks.sources.transformers import Logits, open_classifier

SOURCES: dict[str, Source] = {
    "torchvision": torchvision.SOURCE,
    "timm": timm.SOURCE,
    "python": python.SOURCE,
}
UNKNOWN = Asker()
WEIGHT_FILES = (".pt", ".pth", ".safetensors")
PREFIXES = ("torchvision", "timm", "hf")
HELP = "a weight file, tiny10#SEED, torchvision:NAME@FILE, timm:NAME@FILE, hf:FOLDER or FILE.py:FUNCTION@FILE"

__all__ = [
    "HELP",
    "SOURCES",
    "Asker",
    "Named",
    "architecture",
    "canonical_model",
    "code_of",
    "files_of",
    "model_folder",
    "names_file",
    "open_network",
    "open_pair",
    "own_size",
    "source_sha256",
    "split_model",
    "start_from",
]


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
    spec, is_named = parse_spec(str(text), PREFIXES), isinstance(text, Named)
    if bare:
        spec, dataset = _untrained(spec), dataset or ("cifar10" if not _is_trained(spec) else None)
    for_images = dataset_of(dataset, size) if dataset and spec.source not in ("file", "hf") else None
    if bare and for_images and not for_images.mean:  # of no matter for layers, and all images would have to be read
        for_images = replace(for_images, mean=(0.5,) * for_images.channels, std=(0.5,) * for_images.channels)
    if spec.source == "file":
        found = _open_file(spec, model, dataset, on_message, asker)
    elif spec.source == "hf":
        try:
            made, labels = open_classifier(spec.name, size=spec.view.get("size"), download=is_named)
        except NotHere:
            raise asker.no_download(spec) from None
        assert made.preprocessing
        check_forward(made.network, spec.text, channels=made.preprocessing.channels, size=made.preprocessing.size)
        found = _checkpoint(spec, made, labels)
    else:
        found = _open_architecture(spec, for_images, is_named, on_message, asker)
    return _seen_as_asked(found, spec)


def _is_trained(spec: NetworkSpec) -> bool:
    return spec.weights is not None or spec.source == "hf" or (spec.source == "file" and Path(spec.name).is_file())


def _untrained(spec: NetworkSpec) -> NetworkSpec:
    """The spec itself where it names weights; else that of a network of seed 0 of the architecture."""
    if _is_trained(spec) or spec.seed is not None:
        return spec
    if spec.source == "file" and Path(spec.name).suffix in WEIGHT_FILES:
        raise FileNotFoundError(f"no weight file {spec.name}")
    own = {"source": "own", "name": canonical_name(spec.name)} if spec.source == "file" else {}
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
    for number in sorted((0, 1), key=lambda number: not _is_trained(parse_spec(str(texts[number]), PREFIXES))):
        others = next((one.dataset for one in found.values()), None)
        found[number] = (opener or open_network)(
            texts[number], model=models[number], dataset=dataset or others, size=size, on_message=on_message
        )
    return found[0], found[1]


def names_file(text: str) -> bool:
    """Whether a spec names a weight file, and nothing more than that."""
    spec = parse_spec(text, PREFIXES)
    return spec.source == "file" and not spec.view


def canonical_model(name: str) -> str:
    """A model's name in its canonical spelling: one of ours, or the spec of a foreign architecture, without weights.

    Raises UserError for what is neither.
    """
    spec = parse_spec(name, PREFIXES)
    if spec.source not in SOURCES:
        return canonical_name(name)
    if spec.weights or spec.seed is not None or spec.view:
        raise UserError(f"{name} names more than an architecture; start from weights with --init-weights")
    return spec.name if spec.source == "python" else f"{spec.source}:{spec.name}"


def split_model(name: str) -> tuple[str, dict[str, Any]]:
    """A model that a network is to be trained of: its canonical name, and what stands behind the `?`, in values."""
    spec = parse_spec(name, PREFIXES)
    if spec.weights or spec.seed is not None or spec.source == "hf":
        raise UserError(f"{name} names more than an architecture; start from weights with --init-weights")
    if "layout" in spec.view:
        raise UserError(f"{name}: training does not ask how outputs are laid out; leave out layout")
    return canonical_model(re.sub(r"[?&]\w+=.*", "", name) if spec.view else name), spec.view


def own_size(model: str, images: DatasetSpec) -> int | None:
    """The size of images that a fresh network of ours, or of the user's, is made for; None: its source knows."""
    return images.size if parse_spec(model, PREFIXES).source in ("file", "own", "python") else None


def source_sha256(model: str) -> str | None:
    """The SHA-256 of the Python file that makes a model; None for models that none makes."""
    spec = parse_spec(model, PREFIXES)
    return python.digest_of(spec.name) if spec.source == "python" else None


def code_of(network: Checkpoint) -> str | None:
    """What decides a network beside its weights: the name of an architecture, of whatever library, or a function with
    the SHA-256 of its file. None for ours, of which no two share the shapes of their weights.
    """
    spec = parse_spec(network.model, PREFIXES)
    if spec.source == "hf":  # its folder may lie anywhere
        return hashlib.sha256(repr(network.network).encode()).hexdigest()
    if spec.source == "python":
        return f"{python.split_name(spec.name)[1]} {python.digest_of(spec.name)}"
    return network.model if spec.source in SOURCES else None


def files_of(text: str) -> list[Path]:
    """The files that the network of a spec is made of, as far as the spec tells, whether they are there or not."""
    spec = parse_spec(text, PREFIXES)
    files = [spec.name] if spec.source in ("file", "hf") else []
    files += [str(python.split_name(spec.name)[0])] if spec.source == "python" else []
    files += [spec.weights] if spec.weights else []
    return [part for file in map(Path, files) for part in (sorted(file.iterdir()) if file.is_dir() else [file])]


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
    spec = parse_spec(str(text), PREFIXES)
    if spec.source == "file":
        return checkpoints.fill_from(network, Path(spec.name), model=model, canonical=canonical_model)
    found = open_network(text, dataset=dataset, on_message=on_message)
    if found.model != model:
        raise UserError(f"{text} is for the model {found.model}, not {model}")
    return found.sha256, checkpoints.fill_body(network, found.network.state_dict(), f"{text} does not fit {model}")


def architecture(name: str | Named, *, channels: int, classes: int | None, size: int | None) -> LibraryModel:
    """A fresh network of any architecture, ours or foreign, drawn from torch's global generator.

    Raises UserError for a Python file's that the user has not `Named`.
    """
    spec = parse_spec(str(name), PREFIXES)
    if spec.source == "python" and not isinstance(name, Named):
        raise UNKNOWN.no_run(spec.text)
    if spec.source in SOURCES:
        made = SOURCES[spec.source].build(spec.name, channels=channels, classes=classes, size=size)
        seen = made.preprocessing.size if made.preprocessing else size
        if seen:
            check_forward(made.network, spec.text, channels=channels, size=seen)
        return made
    return LibraryModel(build_model(spec.text, channels=channels, classes=classes or 0, size=size or 0))


def untrained(like: Checkpoint, seed: int) -> nn.Module:
    """A fresh network of a checkpoint's architecture, for the same images and classes, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(like.network, Logits):
            return like.network.fresh().eval()
        preprocessing, classes = like.preprocessing, len(like.labels) if like.labels else None
        if classes is None and parse_spec(like.model, PREFIXES).source == "python":
            classes = _rows_of_head(like.network.state_dict())
        model = Named(like.model)  # it was when the network was opened, or there would be none
        return architecture(
            model, channels=preprocessing.channels, classes=classes, size=preprocessing.size
        ).network.eval()


def _open_file(
    spec: NetworkSpec, model: str | Named | None, dataset: str | None, on_message: Callable[[str], None], asker: Asker
) -> Checkpoint:
    def build(name: str, *, channels: int, classes: int, size: int) -> nn.Module:
        sizes = {"channels": channels, "classes": classes, "size": size}
        if isinstance(model, Named):  # which is the name that the file says, if it says one
            if parse_spec(name, PREFIXES).source == "python":
                _tell_changed(name, spec.name, on_message)
            return architecture(Named(name), **sizes).network
        if parse_spec(name, PREFIXES).source == "python":
            raise replace(asker, file=spec.name).no_run(name, f"{name}@{spec.text}")
        with offline():
            return architecture(name, **sizes).network

    size, given = spec.view.get("size"), model and str(model)
    return checkpoints.load(spec.name, model=given, dataset=dataset, size=size, build=build, canonical=canonical_model)


def _tell_changed(name: str, weights: str, on_message: Callable[[str], None]) -> None:
    """Say that a Python file is not the one that weights were trained with, where they say which that was."""
    if checkpoints.source_digest(weights) not in (None, python.digest_of(name)):
        on_message(f"note: {python.split_name(name)[0]} is not what it was when {weights} was trained")


def _open_architecture(
    spec: NetworkSpec, images: DatasetSpec | None, is_named: bool, on_message: Callable[[str], None], asker: Asker
) -> Checkpoint:
    """A network of a named architecture: untrained, with a file's weights, or with those that its source offers."""
    if spec.source == "python" and not is_named:
        raise asker.no_run(spec.text)
    if spec.weights is None and spec.seed is None and spec.source != "python":
        word = SOURCES[spec.source].word
        raise UserError(f"{spec.text} names no weights: {spec.text}#0 is untrained, {spec.text}@FILE or @{word} is not")
    if spec.source == "own" and images is None:
        raise UserError(f"{spec.text} is untrained; name the data set for whose classes it is with -d")
    digest, facts, state = "", {}, None
    if spec.weights and spec.weights == SOURCES[spec.source].word:
        published, cached = SOURCES[spec.source].published, SOURCES[spec.source].cached
        assert published
        if not is_named and cached(spec.name) is None:
            raise asker.no_download(spec)
        state = published(spec.name, None if is_named else cached(spec.name))
    elif spec.weights:
        digest, facts, state = checkpoints.read(Path(spec.weights))
        if spec.source == "python":
            _tell_changed(spec.name, spec.weights, on_message)
    size = spec.view.get("size")
    if spec.source == "own" and images:
        size = size or images.size
    record = checkpoints.preprocessing_of(facts.get("preprocessing"), f"{spec.weights} does not say what it sees")
    size = size or (record.size if record else None)
    trained_on = checkpoints.remembered(spec.weights or "", facts) if facts.get("dataset") else None
    images = trained_on or images
    channels, classes = (images.channels, len(images.labels)) if images else (3, None)
    if spec.source == "python" and images:
        size = size or images.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed or 0)
        if state is not None and not trained_on:
            classes = _classes_of(spec, state, channels, size)
        name = spec.name if spec.source in ("own", "python") else f"{spec.source}:{spec.name}"
        made = architecture(Named(name) if is_named else name, channels=channels, classes=classes, size=size)
    if state is not None:
        checkpoints.fill(made.network, state, f"{spec.weights} does not fit {spec.name}")
    labels = images.labels if images and (state is None or trained_on) else None
    if labels and spec.source == "python" and _outputs(made.network, channels, size or 0) != len(labels):
        labels = None  # it decides between others, or gives no logits
    preprocessing = record or made.preprocessing or (measured(images).preprocessing if images else None)
    found = _checkpoint(spec, LibraryModel(made.network, preprocessing), labels, digest=digest)
    known = {key: facts[key] for key in checkpoints.TRAINING if facts.get(key) is not None}
    return replace(found, dataset=trained_on.name if trained_on else None, **known)


def _outputs(network: nn.Module, channels: int, size: int) -> int | None:
    """Between how many classes a network decides; None where it gives no logits."""
    with torch.no_grad():
        output = network.eval()(torch.zeros(2, channels, size, size))
    return None if no_logits(output) else output.shape[1]


def _classes_of(spec: NetworkSpec, state: dict[str, torch.Tensor], channels: int, size: int | None) -> int | None:
    """How many classes weights are for: the rows of the last linear layer; None leaves it to the architecture."""
    if spec.source == "python":  # which may ask for the number
        return _rows_of_head(state)
    with torch.random.fork_rng(devices=[]):
        network = SOURCES[spec.source].build(spec.name, channels=channels, classes=None, size=size).network
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    weight = state.get(f"{heads[-1]}.weight") if heads else None
    own = network.get_parameter(f"{heads[-1]}.weight").shape[0] if heads else None
    return None if weight is None or weight.shape[0] == own else weight.shape[0]


def _rows_of_head(state: dict[str, torch.Tensor]) -> int | None:
    """The rows of the last matrix, which is nearly always that of the head."""
    matrices = [value for value in state.values() if value.dim() == 2]
    return len(matrices[-1]) if matrices else None


def _checkpoint(
    spec: NetworkSpec, made: LibraryModel, labels: tuple[str, ...] | None, *, digest: str = ""
) -> Checkpoint:
    network = made.network.eval()
    preprocessing = made.preprocessing or Preprocessing(spec.view.get("size", 224), (0.5,) * 3, (0.5,) * 3)
    return Checkpoint(
        network=network,
        model=spec.name if spec.source in ("own", "python") else f"{spec.source}:{spec.name}",
        dataset=None,
        path=spec.text,
        preprocessing=preprocessing,
        labels=labels,
        init_seed=spec.seed,
        sha256=digest or _digest(network),
    )


def _digest(network: nn.Module) -> str:
    """A digest of all that a network holds: of an untrained one it stands in for that of its file."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()


def _seen_as_asked(found: Checkpoint, spec: NetworkSpec) -> Checkpoint:
    """The network with what stands behind the `?` of its spec, which wins over what its source says."""
    if not spec.view:
        return found
    preprocessing = {key: value for key, value in spec.view.items() if key != "layout"}
    seen = replace(found.preprocessing, **preprocessing)
    if seen.channels != found.preprocessing.channels:
        raise UserError(f"{spec.text}: the network takes {found.preprocessing.channels} channels, not {seen.channels}")
    return replace(found, path=spec.text, preprocessing=seen, layout=spec.view.get("layout"))
