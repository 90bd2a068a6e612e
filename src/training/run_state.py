"""Everything that changes while learners are trained side by side, and the file from which that goes on."""

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
from src.core.records import ANY, ARRAY, LINES, NATURAL, NUMBER, Each, Maybe, Several, check
from src.core.tensor_files import parse_tensors, write_tensors
from src.core.text import in_line
from src.dataset import Split
from src.dataset.ahead import Ahead
from src.dataset.split import Batch
from src.training.train_state import Share, TrainState

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
DEAR = 50  # times as long as a state takes to be written, training goes on before the next one, where states are rare


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


@dataclass(frozen=True, slots=True)
class Course:
    """Learners that see the same batches, and of what: see `fit`."""

    train_states: Sequence[TrainState]
    split: Split
    seed: int
    share: Share = lambda images: None
    after_epoch: Callable[[int], None] | None = None
    resume: Resume | None = None
    held_out: Split | None = None


class Run:
    """Everything of a course that changes during training, so everything that a resumed run needs."""

    def __init__(self, course: Course) -> None:
        self.course, self.train_states, self.device = course, course.train_states, course.split.device
        self.order, self.augment = (Generator().manual_seed(course.seed + more) for more in (0, 1))
        self.epochs = 0
        self.due = time.monotonic() + (course.resume.pause() if course.resume else 0.0)

    def alive(self) -> list[TrainState]:
        return [train_state for train_state in self.train_states if train_state.learns]

    def _drawn(self) -> list[Tensor]:
        """The states of torch's global generators: the processor's, and that of a GPU where training is there."""
        on_gpu = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpu]

    def _set_drawn(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The batches of the next epoch."""
        return self.course.split.batches(batch_size, order=self.order, augment=self.augment, drop_last=True)

    def ahead(self, batch_size: int, steps: int) -> Ahead | None:
        """As many of the same, drawn beforehand, where that can be."""
        return self.course.split.ahead(batch_size, steps, order=self.order, augment=self.augment)

    def save_if_due(self) -> None:
        """Keep the state where it is asked for, and the time for it has come."""
        resume = self.course.resume
        if resume and (start := time.monotonic()) >= self.due:
            self.save(resume)
            self.due = time.monotonic() + resume.pause(time.monotonic() - start)

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

    def begin(self) -> None:
        """Go on from the state that is kept, or note how everything starts."""
        resume = self.course.resume
        if resume and resume.file.is_file():
            self.load(resume)
            if resume.told and self.epochs:
                resume.told(self.epochs)
        else:
            take_snapshots(self.train_states, 0)

    def load(self, resume: Resume) -> None:
        record = read_state(resume.file)
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
            raise _broken(resume.file, f"it does not fit this training: {in_line(str(error))}") from None
        except Exception as error:  # torch raises anything at all for what it did not write
            raise _broken(resume.file, f"it does not fit this training ({type(error).__name__})") from None


def _broken(file: Path, reason: str) -> UserError:
    return UserError(f"cannot resume from {file}: {reason}; without that file training starts anew")


def read_state(file: Path) -> dict[str, Any]:
    """What a file of a training's state holds, unchecked but for its `identity`; raises UserError for no such file."""
    try:
        record = parse_tensors(read_bytes(file))
    except ValueError as error:
        raise _broken(file, str(error)) from None
    if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
        raise _broken(file, "it is no state of a training")
    return record


def take_snapshots(train_states: Sequence[TrainState], iteration: int) -> None:
    for train_state in train_states:
        if train_state.snapshot_every:
            train_state.take_snapshot(iteration)
