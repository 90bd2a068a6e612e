"""The one training loop, for a whole network and for any number of stitch layers side by side."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.precision import full_precision, products, repeatable
from src.core.progress import bar
from src.dataset import Split
from src.training.run_state import Course, Resume, Run, take_snapshots
from src.training.side_by_side import Asked, batches_of, drawn_ahead
from src.training.stacked import Member, Stacked
from src.training.train_state import History, Losses, Share, TrainState, steps_ahead

DEBUG_STEPS = 4  # batches an epoch with --debug
Validate = Callable[[Sequence[TrainState]], Sequence[dict[str, float] | None]]
Rows = dict[int, dict[str, float]]  # of an epoch, by the id of the learner
# learners with their courses, and what these share -> those that step together; None where nobody does
Stack = Callable[[Sequence[Member], Sequence[Share]], Stacked | None]


def fit(
    train_states: Sequence[TrainState],
    split: Split,
    *,
    seed: int,
    validate: Validate,
    share: Share = lambda images: None,
    after_epoch: Callable[[int], None] | None = None,
    resume: Resume | None = None,
    max_steps: int | None = None,
    title: str = "training",
    held_out: Split | None = None,
    tf32: bool = False,
    stack: Stack | None = None,
) -> None:
    """Train learners side by side on the same batches; what became of each stands in its history, or its failure.

    Their recipes agree in epochs and batch size. `seed` decides the order of the images, their augmentation and
    what dropout leaves out.
    `share` gives what all of them need of a batch of images; each then takes its own step, so that only one of their
    graphs is alive at a time, and trains as it would alone, to the last bit on a CPU. `validate` gives `loss` and `acc`
    of each learner after an epoch, None for one that nobody watches, or whose scores come later. A loss that is not
    finite stops its learner alone: on a processor at once, on a GPU at the end of its epoch, but before anybody is
    shown the parameters.
    With `resume` the state is kept after each epoch (see there), and training goes on from it if the file exists: the
    result equals, bit for bit on one CPU, that of an uninterrupted run. `max_steps` bounds the iterations of an epoch;
    `after_epoch` is told the number of epochs done. Images that are `held_out` are those at which the `watch` of a
    learner looks: one that has learnt enough stops, and each ends in its best state. With `tf32` a GPU rounds the
    factors of products in the steps of training, and nowhere else. `stack` says which learners step together.

    Raises UserError where fewer images than one batch are left and where the file is another run's.
    """
    course = Course(train_states, split, seed, share, after_epoch, resume, held_out)
    fit_together([course], validate=validate, max_steps=max_steps, title=title, tf32=tf32, stack=stack)


@full_precision()
def fit_together(
    courses: Sequence[Course],
    *,
    validate: Validate,
    max_steps: int | None = None,
    title: str = "training",
    tf32: bool = False,
    stack: Stack | None = None,
) -> None:
    """Train the learners of several courses, step by step next to each other, each with its batches; as `fit` does."""
    everyone = [train_state for course in courses for train_state in course.train_states]
    epochs, batch_size = _in_common(everyone)
    steps = _steps(courses, batch_size, epochs)
    steps = min(steps, max_steps or steps)
    with _randomness(courses[0].seed, courses[0].split.device):
        runs = [Run(course) for course in courses]
        for run in runs:
            run.begin()
            if run.epochs == 0:
                _look(run.train_states, run.course, 0)
        stacks = _Stacks(stack)
        first = min(run.epochs for run in runs)
        with bar(epochs * steps, title, unit="batch", initial=first * steps) as progress:
            while going := [run for run in runs if run.epochs < epochs and run.alive()]:
                epoch = min(run.epochs for run in going)
                now = [run for run in going if run.epochs == epoch]
                for train_state in (train_state for run in now for train_state in run.alive()):
                    train_state.enter(epoch)
                with products(tf32=tf32), repeatable(enabled=stack is not None):
                    rows = _train_epoch(now, stacks, epoch, steps, batch_size, progress.update)
                learners = [train_state for run in now for train_state in run.train_states]
                _add_scores(learners, rows, validate, after(epoch + 1, steps))
                for run in now:
                    _close(run, epochs, epochs * steps, progress)
    for train_state in everyone:
        train_state.settle()
        if train_state.watch and not train_state.failure:
            train_state.watch.restore(train_state.trained)


def _close(run: Run, epochs: int, iterations: int, progress: Any) -> None:
    """What follows on an epoch's scores: the state that is kept is that of the last one that somebody came through."""
    run.epochs += 1
    if not (alive := run.alive()):
        return
    _look(alive, run.course, run.epochs)
    if run.epochs == epochs:
        take_snapshots(alive, iterations)
    for train_state in alive:
        train_state.settle()
    progress.set_postfix({key: f"{value:.4f}" for key, value in alive[0].history.epochs[-1].items()})
    run.save_if_due()
    if run.course.after_epoch:
        run.course.after_epoch(run.epochs)


@torch.no_grad()
def _look(train_states: Sequence[TrainState], course: Course, epoch: int) -> None:
    """Show held-out images, as they are, to those that are watched, after so many epochs."""
    watched = [(train_state, train_state.watch) for train_state in train_states if train_state.watch]
    if course.held_out is None or not watched:
        return
    losses: list[list[Tensor]] = [[] for _ in watched]
    sizes = []
    for train_state, _ in watched:
        train_state.trained.eval()
    for images, labels in course.held_out.batches(watched[0][0].recipe.batch_size):
        shared = course.share(images)
        sizes.append(len(images))
        for seen, (train_state, _) in zip(losses, watched, strict=True):
            seen.append(train_state.objective(shared, images, labels)[0])
    for seen, (train_state, watch) in zip(losses, watched, strict=True):
        total = 0.0
        for loss, size in zip(torch.stack(seen).tolist(), sizes, strict=True):
            total += loss * size
        watch.look(train_state.trained, epoch, total / len(course.held_out))


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


def _steps(courses: Sequence[Course], batch_size: int, epochs: int) -> int:
    """Whole batches of an epoch, as many in each course."""
    counts = {len(course.split) // batch_size for course in courses}
    if len(counts) != 1:
        raise UserError(f"what trains together has epochs of one length, not {sorted(counts)} batches")
    steps = counts.pop()
    if epochs:
        check_batch(batch_size, len(courses[0].split))
    return steps


def check_batch(batch_size: int, images: int) -> None:
    """Raise UserError where no whole batch can be made of so many training images."""
    if batch_size > images:
        raise UserError(f"batch size {batch_size} exceeds the {images} training images; lower --batch-size")


def _add_scores(train_states: Sequence[TrainState], rows: Rows, validate: Validate, where: str) -> None:
    """Validate those that learn still and close their rows of the epoch."""
    alive = [train_state for train_state in train_states if train_state.learns]
    for train_state, scores in zip(alive, validate(alive) if alive else (), strict=True):
        row = rows[id(train_state)]
        if scores is None:
            train_state.history.epochs.append(row)
        elif not math.isfinite(scores["loss"]):  # the last step's damage, which no training loss has shown
            train_state.failure = diverged(scores["loss"], where)
        else:
            train_state.history.epochs.append(row | scored(scores))


def after(epoch: int, steps: int) -> str:
    """When something was found out: after so many epochs of so many steps."""
    return f"after epoch {epoch}, step {steps} of {steps}"


def diverged(loss: float, where: str) -> str:
    """Why something stopped whose validation loss is not finite."""
    return f"the validation loss is {loss} {where}; lower the rate with --lr"


def scored(scores: Mapping[str, float]) -> dict[str, float]:
    """Loss and accuracy on validation images as a row of a history has them."""
    return {"val_loss": scores["loss"], "val_accuracy": scores["acc"]}


class _Stacks:
    """Those that step together, made anew where others do, or for something else."""

    def __init__(self, stack: Stack | None) -> None:
        self._stack, self._known, self._made = stack, (), None

    def of(self, runs: Sequence[Run]) -> Stacked | None:
        if self._stack is None:
            return None
        members = [Member(train_state, i) for i, run in enumerate(runs) for train_state in run.train_states]
        known = tuple((id(one.train_state), id(one.train_state.objective), one.train_state.learns) for one in members)
        if known != self._known:
            self._known = known
            self._made = self._stack(members, [run.course.share for run in runs])
        return self._made


def _train_epoch(
    runs: Sequence[Run],
    stacks: _Stacks,
    epoch: int,
    steps: int,
    batch_size: int,
    tell: Callable[[], Any],
) -> Rows:
    """Train all that learn still for an epoch; the row of each that came through."""
    stacked = stacks.of(runs)
    together = {id(member.train_state) for member in stacked.members} if stacked else set()
    losses: dict[int, tuple[int, TrainState, Losses]] = {}
    for number, run in enumerate(runs):
        for train_state in run.alive():
            train_state.trained.train()
            if id(train_state) not in together:
                kept = Losses(f"in epoch {epoch + 1}, step {{}} of {steps}", steps_ahead(run.device))
                losses[id(train_state)] = number, train_state, kept
    aheads = drawn_ahead(runs, batch_size, steps) if stacked and stacked.work else []
    if stacked:
        stacked.begin(epoch, steps, aheads)
    for step, batches in enumerate(batches_of(runs, aheads, batch_size, steps), start=1):
        shared = Asked(len(runs), lambda number, given=batches: runs[number].course.share(given[number][0]))
        if stacked:
            stacked.step(batches, shared)
        for number, train_state, kept in list(losses.values()):
            train_state.set_rate(epoch, (step - 1) / steps)
            images, labels = batches[number]
            _step(train_state, kept, shared[number], images, labels, epoch * steps + step)
            if train_state.failure:
                del losses[id(train_state)]
        tell()
        if not losses and not stacked:
            break
    rows = {}
    for train_state, kept in [*(stacked.finish() if stacked else ()), *(line[1:] for line in losses.values())]:
        with _stopping(train_state):
            mean_loss, accuracy = kept.means()
            rows[id(train_state)] = {"train_loss": mean_loss, "train_accuracy": accuracy}
    return rows


def _step(train_state: TrainState, losses: Losses, shared: Any, images: Tensor, labels: Tensor, iteration: int) -> None:
    with _stopping(train_state):
        train_state.step(shared, images, labels, losses)
        copies = train_state.snapshot_every > 0 and iteration % train_state.snapshot_every == 0
        told = train_state.after_step if iteration % train_state.after_step_every == 0 else None
        if told:
            losses.check()
        if copies:  # whoever fails later in the epoch has no result, nor they
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
