"""A whole network trained: where it starts, what it is shown, and what is kept of it. No options, no printing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.precision import mixed_precision
from src.core.task import Task
from src.cutting.structure import no_logits
from src.dataset import DatasetSpec, Split, dataset_of, is_known, load_split, measured, shuffle_labels, take_fraction
from src.dataset.preprocessing import Preprocessing
from src.evaluation.adversarial import attacked
from src.evaluation.evaluate import evaluate
from src.networks import checkpoints
from src.networks.architectures import (
    architecture,
    own_preprocessing,
    own_size,
    seen_as_asked,
    source_sha256,
    split_model,
)
from src.networks.opening import start_from
from src.networks.source_spec import Named
from src.networks.state_dicts import head_of, leave_out, optional_heads
from src.training.folder import LOG, weight_file, write_log
from src.training.loop import DEBUG_STEPS, fit_one
from src.training.network_spec import TrainSpec
from src.training.run_state import Resume
from src.training.train_state import History, Objective, TrainState

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Start:
    """A network before training: what it does to images, if not what its data set asks for, what the recipe says of
    the weights it starts from, if any, and the SHA-256 of the Python file that made it, if one did; and its classes."""

    network: nn.Module
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    origin: dict[str, str]
    source_sha256: str | None


def initial_network(spec: TrainSpec, images: DatasetSpec, on_message: Notice) -> Start:
    """The network before training, its head sized for the data set.

    The random weights depend on the seed alone; torch's global generator is left as it was.
    """
    model, asked = split_model(spec.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.init_noise)
        size = asked.get("size") or own_size(model, images)
        made = architecture(Named(model), channels=images.channels, classes=images.classes, size=size)
    preprocessing = own_preprocessing(made, spec.model, asked)
    if auxiliary := optional_heads(made.network):
        leave_out(made.network, auxiliary)
        on_message(f"note: {spec.model} is trained without its auxiliary heads ({', '.join(auxiliary)})")
    channels, seen = images.channels, preprocessing.size if preprocessing else size or images.size
    with torch.no_grad():
        output = made.network.eval()(torch.zeros(2, preprocessing.channels if preprocessing else channels, seen, seen))
    made.network.train()
    if text := no_logits(output):
        raise UserError(f"{spec.model} returns {text}, not logits (images, classes)")
    if output.shape[1] != images.classes:
        raise UserError(
            f"{spec.model} decides between {output.shape[1]} classes, and {images.name} has {images.classes}"
        )
    if spec.freeze_body:
        head = head_of(made.network)  # before anything is downloaded
        on_message(f"training {head}, the last linear layer, alone")
    if spec.init_weights is None:
        return Start(made.network, preprocessing, images.labels, {}, source_sha256(model))
    digest, head, seen = start_from(
        made.network, Named(spec.init_weights), model=model, dataset=images.name, on_message=on_message
    )
    if seen and preprocessing and seen.channels == preprocessing.channels:  # what the weights are used to
        numbers = {key: getattr(seen, key) for key in ("mean", "std", "order") if key not in asked}
        preprocessing = replace(preprocessing, **numbers)
    if head:
        on_message(f"the head {head} starts at random: it has another size in {spec.init_weights}")
    return Start(made.network, preprocessing, images.labels, {"init_weights": digest}, source_sha256(model))


def images_for(spec: TrainSpec) -> DatasetSpec:
    """The data set, at the size that is asked for: of image files also at the one that the network is given."""
    images, (_, asked) = dataset_of(spec.dataset, spec.image_size), split_model(spec.model)
    return dataset_of(images, asked.get("size")) if images.exact and not spec.image_size else images


def open_images(
    spec: TrainSpec, images: DatasetSpec, start: Start, how: dict[str, Any], on_message: Notice
) -> tuple[Start, Split, Split]:
    """The start, with what the network does to images; the images to train on and to validate on, as it sees them.

    `how` is what `load_split` is told of device and reading.
    """
    preprocessing, (_, asked) = start.preprocessing, split_model(spec.model)
    if preprocessing and images.exact and not spec.image_size:
        images = dataset_of(images, preprocessing.size)
    if preprocessing or "resize" in asked:
        plain = Preprocessing(images.size, (0.5,) * images.channels, (0.5,) * images.channels)
        images = images.decoded_for([preprocessing or seen_as_asked(plain, {"resize": asked["resize"]}, spec.model)])
    train = load_split(images, "train", **how)
    if not preprocessing:
        known = measured(images, train)
        if not images.mean:
            on_message(f"training images of {images.name}: mean {known.mean}, deviation {known.std}")
        preprocessing = seen_as_asked(known.preprocessing, asked, spec.model)
    val = load_split(images, spec.validate_on, **how)
    return (
        replace(start, preprocessing=preprocessing),
        _chosen(train.with_preprocessing(preprocessing), spec, on_message),
        val.with_preprocessing(preprocessing),
    )


def _chosen(train: Split, spec: TrainSpec, on_message: Notice) -> Split:
    """The images to train on: fewer, or with shuffled labels, where the spec says so."""
    if spec.train_fraction < 1:
        everything = len(train)
        train = take_fraction(train, spec.train_fraction, seed=spec.gradient_noise)
        how = "alike of each class" if train.labels.dim() == 1 else "whatever their labels, of which each has many"
        on_message(f"training on {len(train)} of {everything} images, {how}")
    if spec.shuffle_labels:
        train = shuffle_labels(train, spec.shuffle_labels, seed=spec.gradient_noise)
        on_message(f"the labels of {round(spec.shuffle_labels * len(train))} of them are shuffled among these")
    return train


def iterations(spec: TrainSpec, train: Split) -> int:
    """How many steps the whole training takes."""
    steps = len(train) // spec.batch_size
    return spec.epochs * (min(steps, DEBUG_STEPS) if spec.debug else steps)


def train_network(
    spec: TrainSpec,
    start: Start,
    train: Split,
    val: Split,
    *,
    resume_file: Path,
    epoch_done: Callable[[History], None],
    resumed: Callable[[int], None],
) -> History:
    """Train in the folder of `resume_file`, which gets a log and snapshots of the weights.

    `epoch_done` hears of each epoch, `resumed` of how many were done before.
    """
    network, folder, facts = start.network, resume_file.parent, spec.facts() | start.origin
    trained = network
    if spec.freeze_body:  # the rest is never trained: its parameters stay, and so do the statistics of its norms
        network.eval().requires_grad_(False)
        trained = network.get_submodule(head_of(network)).requires_grad_()

    def log_epoch(history: History) -> None:
        write_log(folder / LOG, history.epochs)
        epoch_done(history)

    def log_resumed(epochs: int) -> None:
        write_log(folder / LOG, train_state.history.epochs)
        resumed(epochs)

    train_state = TrainState(
        trained,
        _objective(spec, network, train.spec.task, train.pixel_range if spec.adversarial else None),
        spec.recipe,
        after_step=lambda iteration: save_weights(spec, start, weight_file(folder, iteration)),
        after_step_every=spec.save_frequency,
    )
    return fit_one(
        train_state,
        train,
        seed=spec.gradient_noise,
        validate=lambda: evaluate(network, val),
        after_epoch=log_epoch,
        resume=Resume(resume_file, spec.identity() | facts | _given(start, train), log_resumed),
        max_steps=DEBUG_STEPS if spec.debug else None,
        tf32=spec.tf32,
        title=f"{folder.parts[-3]} on {folder.parts[-2]}",
    )


def _changed(
    network: nn.Module, images: Tensor, labels: Tensor, task: Task, pixels: tuple[Tensor, Tensor], bound: float
) -> Tensor:
    """Images changed against the network as it is, whose statistics do not learn from it."""
    was = network.training
    network.eval()
    try:  # of torch's global generator, whose state a resumed run goes on with
        start = 2 * torch.rand_like(images) - 1
        return attacked(network, images, labels, task, *pixels, bound=bound, start=start)
    finally:
        network.train(was)


def _objective(
    spec: TrainSpec, network: nn.Module, task: Task, pixels: tuple[Tensor, Tensor] | None = None
) -> Objective:
    """The loss of a network's logits on a batch, and which decisions are right.

    `pixels` are black and white as it sees them, where it is trained on images that are changed against it.
    """
    bounds = pixels if spec.adversarial else None

    def objective(shared: None, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if bounds:
            images = _changed(network, images, labels, task, bounds, spec.adversarial)
        with mixed_precision(images.device, enabled=spec.amp):
            logits = network(images)
        if text := no_logits(logits):
            raise UserError(f"in training {spec.model} returns {text}, not logits (images, classes)")
        logits = logits.float()
        return task.loss(logits, labels), task.correct(logits, labels)

    return objective


def _given(start: Start, train: Split) -> dict[str, Any]:
    """What a resumed run must agree in beside its options: the code that made the network, and the images."""
    code = {"code of the network": start.source_sha256} if start.source_sha256 else {}
    return code | {"training images": train.digest()}


def save_weights(spec: TrainSpec, start: Start, path: Path) -> None:
    known = dataset_of(spec.dataset).preprocessing if is_known(spec.dataset) else None
    checkpoints.save(
        path,
        start.network,
        model=split_model(spec.model)[0],
        dataset=spec.dataset,
        init_seed=spec.init_noise,
        gradient_seed=spec.gradient_noise,
        iteration=int(path.stem),
        recipe=spec.facts() | start.origin,
        preprocessing=None if start.preprocessing == known else start.preprocessing,
        labels=None if known else start.labels,
        source_sha256=start.source_sha256,
    )
