"""The one training loop, for a whole network and for any number of stitch layers side by side."""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from src.core.errors import UserError
from src.core.files import read_bytes
from src.core.precision import full_precision, products
from src.core.progress import bar
from src.core.records import ANY, ARRAY, LINES, NATURAL, NUMBER, Each, Maybe, Several, check
from src.core.tensor_files import parse_tensors, write_tensors
from src.core.text import in_line
from src.dataset import Split
from src.training.train_state import History, Losses, TrainState, steps_ahead

_LEARNER = {
    "trained": Each(ARRAY),
    "optimizer": Each(ANY),
    "history": {"epochs": Several(Each(NUMBER)), "snapshots": Each(Each(ARRAY), int)},
    "failure": Maybe(LINES),
}
KEPT = {
    "order": ARRAY,
    "augment": ARRAY,
    "dropout": Several(ARRAY, 2),
    "epochs": NATURAL,
    "learners": Several(_LEARNER),
}  # what a state of a training holds beside what run it is of
DEBUG_STEPS = 4  # batches an epoch with --debug
DEAR = 50  # times as long as a state takes to be written, training goes on before the next one, where states are rare
Validate = Callable[[Sequence[TrainState]], Sequence[dict[str, float] | None]]


@dataclass(frozen=True, slots=True)
class Resume:
    """Where the state of a training is kept after each epoch, and what run it belongs to.

    Where training goes on, `told` hears once how many epochs are done: the interruption may have come before it did.
    With `every` a state is kept after an epoch only when that many seconds have gone by since the last one, or since
    the start, and no more often than costs a fiftieth of the time.
    """

    file: Path
    identity: dict[str, Any]
    told: Callable[[int], None] | None = None
    every: float = 0.0

    def pause(self, took: float = 0.0) -> float:
        """Seconds until the next state, when writing the last one took so many."""
        return max(self.every, DEAR * took) if self.every else 0.0


@full_precision()
def fit(
    train_states: Sequence[TrainState],
    split: Split,
    *,
    seed: int,
    validate: Validate,
    share: Callable[[Tensor], Any] = lambda images: None,
    after_epoch: Callable[[int], None] | None = None,
    resume: Resume | None = None,
    max_steps: int | None = None,
    title: str = "training",
    held_out: Split | None = None,
    tf32: bool = False,
) -> None:
    """Train learners side by side on the same batches; what became of each stands in its history, or its failure.

    Their recipes agree in epochs and batch size. `seed` decides the order of the images, their augmentation and
    what dropout leaves out.
    `share` gives what all of them need of a batch of images; each then takes its own step, so that only one of their
    graphs is alive at a time, and trains as it would alone, to the last bit on a CPU. `validate` gives `loss` and `acc`
    of each learner after an epoch, None for one that nobody watches. A loss that is not finite stops its learner alone:
    on a processor at once, on a GPU some steps later, but before anybody is shown the parameters.
    With `resume` the state is kept after each epoch (see there), and training goes on from it if the file exists: the
    result equals, bit for bit on one CPU, that of an uninterrupted run. `max_steps` bounds the iterations of an epoch;
    `after_epoch` is told the number of epochs done. Images that are `held_out` are those at which the `watch` of a
    learner looks: one that has learnt enough stops, and each ends in its best state. With `tf32` a GPU rounds the
    factors of products in the steps of training, and nowhere else.

    Raises UserError where fewer images than one batch are left and where the file is another run's.
    """
    epochs, batch_size = _in_common(train_states)
    steps = len(split) // batch_size
    if steps == 0 and epochs:
        raise UserError(f"batch size {batch_size} exceeds the {len(split)} training images; lower --batch-size")
    steps = min(steps, max_steps or steps)
    with _randomness(seed, split.device):
        run = _Run(train_states, Generator().manual_seed(seed), Generator().manual_seed(seed + 1), split.device)
        run.begin(resume)
        if run.epochs == 0:
            _look(train_states, held_out, share, 0)
        due = time.monotonic() + (resume.pause() if resume else 0.0)
        with bar(epochs * steps, title, unit="batch", initial=run.epochs * steps) as progress:
            for epoch in range(run.epochs, epochs):
                if not run.alive():
                    break  # all have learnt enough, which a resumed run begins with
                for train_state in run.alive():
                    train_state.enter(epoch)
                with products(tf32=tf32):
                    rows = _train_epoch(run, split, share, epoch, steps, batch_size, progress.update)
                _add_scores(train_states, rows, validate, f"after epoch {epoch + 1}, step {steps} of {steps}")
                run.epochs += 1
                alive = run.alive()
                if not alive:
                    break  # the file is that of the last epoch that somebody came through
                _look(alive, held_out, share, run.epochs)
                if run.epochs == epochs:
                    _take_snapshots(alive, epochs * steps)
                progress.set_postfix({key: f"{value:.4f}" for key, value in alive[0].history.epochs[-1].items()})
                if resume and (start := time.monotonic()) >= due:
                    run.save(resume)
                    due = time.monotonic() + resume.pause(time.monotonic() - start)
                if after_epoch:
                    after_epoch(run.epochs)
    for train_state in train_states:
        if train_state.watch and not train_state.failure:
            train_state.watch.restore(train_state.trained)


@torch.no_grad()
def _look(
    train_states: Sequence[TrainState], held_out: Split | None, share: Callable[[Tensor], Any], epoch: int
) -> None:
    """Show held-out images, as they are, to those that are watched, after so many epochs."""
    watched = [(train_state, train_state.watch) for train_state in train_states if train_state.watch]
    if held_out is None or not watched:
        return
    totals = [0.0] * len(watched)
    for train_state, _ in watched:
        train_state.trained.eval()
    for images, labels in held_out.batches(watched[0][0].recipe.batch_size):
        shared = share(images)
        for number, (train_state, _) in enumerate(watched):
            totals[number] += float(train_state.objective(shared, images, labels)[0]) * len(images)
    for total, (train_state, watch) in zip(totals, watched, strict=True):
        watch.look(train_state.trained, epoch, total / len(held_out))


def _take_snapshots(train_states: Sequence[TrainState], iteration: int) -> None:
    for train_state in train_states:
        if train_state.snapshot_every:
            train_state.take_snapshot(iteration)


@contextlib.contextmanager
def _randomness(seed: int, device: torch.device) -> Iterator[None]:
    """What modules such as dropout draw follows from the seed, and torch's global generators stay as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(2**63 - 1 - seed)  # no other generator's
        yield


def fit_one(
    train_state: TrainState,
    split: Split,
    *,
    validate: Callable[[], dict[str, float]],
    after_epoch: Any = None,
    **options: Any,
) -> History:
    """Train one learner, as `fit` does; raises FloatingPointError where it stopped early."""

    told = after_epoch and (lambda _: after_epoch(train_state.history))
    fit([train_state], split, validate=lambda _: [validate()], after_epoch=told, **options)
    if train_state.failure:
        raise FloatingPointError(train_state.failure)
    return train_state.history


def _in_common(train_states: Sequence[TrainState]) -> tuple[int, int]:
    """Epochs, of all stages, and batch size of all learners."""
    kinds = {(train_state.lengths, train_state.recipe.batch_size) for train_state in train_states}
    if len(kinds) != 1:
        raise UserError(f"what trains together has one number of epochs and one batch size, not {sorted(kinds)}")
    lengths, batch_size = kinds.pop()
    return sum(lengths), batch_size


def _add_scores(
    train_states: Sequence[TrainState],
    rows: dict[int, dict[str, float]],
    validate: Validate,
    where: str,
) -> None:
    """Validate those that learn still and close their rows of the epoch."""
    alive = [number for number, train_state in enumerate(train_states) if train_state.learns]
    for number, scores in zip(
        alive, validate([train_states[number] for number in alive]) if alive else (), strict=True
    ):
        train_state = train_states[number]
        if scores is None:
            train_state.history.epochs.append(rows[number])
        elif not math.isfinite(scores["loss"]):  # the last step's damage, which no training loss has shown
            train_state.failure = f"the validation loss is {scores['loss']} {where}; lower the rate with --lr"
        else:
            scored = {"val_loss": scores["loss"], "val_accuracy": scores["acc"]}
            train_state.history.epochs.append(rows[number] | scored)


def _train_epoch(
    run: "_Run",
    split: Split,
    share: Callable[[Tensor], Any],
    epoch: int,
    steps: int,
    batch_size: int,
    tell: Callable[[], Any],
) -> dict[int, dict[str, float]]:
    """Train all that learn still for an epoch; the row of each that came through, by its number."""
    losses = {}
    for number, train_state in enumerate(run.train_states):
        if train_state.learns:
            losses[number] = Losses(f"in epoch {epoch + 1}, step {{}} of {steps}", steps_ahead(split.device))
            train_state.trained.train()
    batches = split.batches(batch_size, order=run.order, augment=run.augment, drop_last=True)
    for step, (images, labels) in zip(range(1, steps + 1), batches, strict=False):
        shared = share(images)
        for number in list(losses):
            run.train_states[number].set_rate(epoch, (step - 1) / steps)
            _step(run.train_states[number], losses[number], shared, images, labels, epoch * steps + step)
            if run.train_states[number].failure:
                del losses[number]
        tell()
        if not losses:
            break
    rows = {}
    for number, kept in losses.items():
        with _stopping(run.train_states[number]):
            mean_loss, accuracy = kept.means()
            rows[number] = {"train_loss": mean_loss, "train_accuracy": accuracy}
    return rows


def _step(train_state: TrainState, losses: Losses, shared: Any, images: Tensor, labels: Tensor, iteration: int) -> None:
    with _stopping(train_state):
        train_state.step(shared, images, labels, losses)
        copies = train_state.snapshot_every > 0 and iteration % train_state.snapshot_every == 0
        told = train_state.after_step if iteration % train_state.after_step_every == 0 else None
        if copies or told:
            losses.check()
        if copies:
            train_state.take_snapshot(iteration)
        if told:
            told(iteration)


@contextlib.contextmanager
def _stopping(train_state: TrainState) -> Iterator[None]:
    """A loss that is not finite stops this learner, and no other."""
    try:
        yield
    except FloatingPointError as error:
        train_state.failure = str(error)


def _are_same(before: Any, now: Any) -> bool:
    """Whether a file's value is ours; one that cannot be compared, such as a tensor, is not."""
    try:
        return bool(before == now)
    except Exception:  # of kinds of their own
        return False


def _short(value: Any) -> str:
    """A value for a message, of digests the beginning."""
    if isinstance(value, list | tuple) and len(value) > 1:
        return f"{len(value)} ({_short(value[0])} ...)"
    text = in_line(str(value))
    return re.sub(r"[0-9a-f]{64}", lambda found: found[0][:8], text)


@dataclass(slots=True)
class _Run:
    """Everything that changes during training, so everything that a resumed run needs."""

    train_states: Sequence[TrainState]
    order: Generator
    augment: Generator
    device: torch.device
    epochs: int = 0

    def alive(self) -> list[TrainState]:
        return [train_state for train_state in self.train_states if train_state.learns]

    def _drawn(self) -> list[Tensor]:
        """The states of torch's global generators: the processor's, and that of a GPU where training is there."""
        on_gpu = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpu]

    def _set_drawn(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)

    def save(self, resume: Resume) -> None:
        record = {
            "identity": resume.identity,
            "order": self.order.get_state(),
            "augment": self.augment.get_state(),
            "dropout": self._drawn(),
            "epochs": self.epochs,
            "learners": [train_state.state() for train_state in self.train_states],
        }
        write_tensors(resume.file, record)

    def begin(self, resume: Resume | None) -> None:
        """Go on from the state that is kept, or note how everything starts."""
        if resume and resume.file.is_file():
            self.load(resume)
            if resume.told and self.epochs:
                resume.told(self.epochs)
        else:
            _take_snapshots(self.train_states, 0)

    def load(self, resume: Resume) -> None:
        broken = f"cannot resume from {resume.file}: {{}}; without that file training starts anew"
        try:
            record = parse_tensors(read_bytes(resume.file))
        except ValueError as error:
            raise UserError(broken.format(error)) from None
        if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
            raise UserError(broken.format("it is no state of a training"))
        for key in sorted(map(str, record["identity"].keys() | resume.identity.keys())):
            before, now = record["identity"].get(key), resume.identity.get(key)
            if not _are_same(before, now):
                differ = f"{in_line(key, 60)} {_short(before)}, not {_short(now)}"
                raise UserError(f"cannot resume from {resume.file}: it was started with {differ}")
        try:
            check(record, KEPT, required=KEPT)
            self.epochs = int(record["epochs"])
            for train_state in self.train_states:
                train_state.enter(self.epochs - 1)
            for train_state, state in zip(self.train_states, record["learners"], strict=True):
                train_state.load(state)
            self.order.set_state(record["order"])
            self.augment.set_state(record["augment"])
            for set_state, state in zip((torch.set_rng_state, self._set_drawn), record["dropout"], strict=False):
                set_state(state)
        except UserError as error:
            raise UserError(broken.format(f"it does not fit this training: {in_line(str(error))}")) from None
        except Exception as error:  # torch raises anything at all for what it did not write
            raise UserError(broken.format(f"it does not fit this training ({type(error).__name__})")) from None
