"""The one training loop, for whole networks and for stitch layers."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from src.dataset import Split
from src.files import parse_tensors, write_tensors
from src.progress import bar

State = dict[str, Tensor]
DEBUG_STEPS = 4  # batches an epoch with --debug
LARGEST = 1e38  # nearly the largest float32, in which optimizers take their factors
# (images, labels) -> (the loss to minimise, which decisions were right)
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters, lr, weight_decay: torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay),
    "sgd": lambda parameters, lr, weight_decay: torch.optim.SGD(
        parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True
    ),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: epochs, images a batch, optimizer, learning rate and weight decay."""

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"{self.epochs} epochs; give 0 or more with --epochs")
        if self.batch_size < 1:
            raise ValueError(f"batch size {self.batch_size}; give 1 or more with --batch-size")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"learning rate {self.lr}; give a positive number with --lr")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight decay {self.weight_decay}; give 0 or more with --weight-decay")
        for name, value, option in (("learning rate", self.lr, "--lr"), ("weight decay", self.weight_decay, "-wd")):
            if value > LARGEST:
                raise ValueError(f"{name} {value} exceeds {LARGEST:.0e}; lower it with {option}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}; choose from {', '.join(sorted(OPTIMIZERS))}")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0: a tenth after one third of them, a hundredth after two."""
        thirds_passed = (3 * epoch >= self.epochs) + (3 * epoch >= 2 * self.epochs)
        return self.lr * 0.1**thirds_passed


@dataclass(slots=True)
class History:
    """What happened in training: a row an epoch, and copies of the trained state by iteration."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    snapshots: dict[int, State] = field(default_factory=dict)


def fit(
    trained: nn.Module,
    split: Split,
    objective: Objective,
    *,
    recipe: Recipe,
    seed: int,
    validate: Callable[[], dict[str, float]],
    snapshot: Callable[[], State] | None = None,
    snapshot_every: int = 0,
    after_step: Callable[[int], None] | None = None,
    after_step_every: int = 1,
    after_epoch: Callable[[History], None] | None = None,
    on_resume: Callable[[History], None] | None = None,
    resume_file: Path | None = None,
    identity: dict[str, Any] | None = None,
    max_steps: int | None = None,
    title: str = "training",
) -> History:
    """Train the parameters of `trained` that ask for gradients; return the history.

    `seed` decides the order of the images and their augmentation. `validate` gives `loss` and `acc` after each epoch.
    The history keeps a copy of what `snapshot` gives (the trained state, if None) at iteration 0 and at each multiple
    of `snapshot_every` (0: no copies). `after_step` is called with each iteration that `after_step_every` divides.
    With `resume_file` the state is kept there after each epoch, and training goes on from there if the file exists:
    the result equals, bit for bit on one CPU, that of an uninterrupted run. `identity` says what run the file belongs
    to. `max_steps` bounds the iterations of an epoch. `on_resume` is told the history when training goes on: the
    interruption may have come before `after_epoch` was done.

    Raises ValueError where fewer images than one batch are left and where the file is another run's, and
    FloatingPointError for a loss that is not finite: on a processor at once, on a GPU some steps later, but before
    anybody is shown the weights. The resume file is then that of the last epoch without one.
    """
    steps = len(split) // recipe.batch_size
    if steps == 0 and recipe.epochs:
        raise ValueError(f"batch size {recipe.batch_size} exceeds the {len(split)} training images; lower --batch-size")
    steps = min(steps, max_steps or steps)
    optimizer = OPTIMIZERS[recipe.optimizer](_decayed_and_not(trained), lr=recipe.lr, weight_decay=recipe.weight_decay)
    generators = Generator().manual_seed(seed), Generator().manual_seed(seed + 1)
    run = _Run(trained, optimizer, *generators, snapshot or trained.state_dict)
    if resume_file and resume_file.is_file():
        run.load(resume_file, identity or {})
        if on_resume and run.history.epochs:
            on_resume(run.history)
    elif snapshot_every:
        run.take_snapshot(0)
    with bar(recipe.epochs * steps, title, unit="batch", initial=len(run.history.epochs) * steps) as progress:
        for epoch in range(len(run.history.epochs), recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(epoch)

            losses = _Losses(f"in epoch {epoch + 1}, step {{}} of {steps}", _steps_ahead(split.device))

            def step_done(step: int, losses: "_Losses" = losses, epoch: int = epoch) -> None:
                iteration = epoch * steps + step
                copies = snapshot_every > 0 and iteration % snapshot_every == 0
                told = after_step if iteration % after_step_every == 0 else None
                if copies or told:
                    losses.check()
                if copies:
                    run.take_snapshot(iteration)
                if told:
                    told(iteration)
                progress.update()

            row = _train_epoch(run, split, objective, recipe.batch_size, steps, losses, step_done)
            row |= {f"val_{key}": value for key, value in _renamed(validate()).items()}
            if not math.isfinite(row["val_loss"]):  # the last step's damage, which no training loss has shown
                raise FloatingPointError(
                    f"the validation loss is {row['val_loss']} after epoch {epoch + 1}, step {steps} of {steps}; "
                    "lower the rate with --lr"
                )
            run.history.epochs.append(row)
            progress.set_postfix({key: f"{value:.4f}" for key, value in row.items()})
            if resume_file:
                run.save(resume_file, identity or {})
            if after_epoch:
                after_epoch(run.history)
    return run.history


def _decayed_and_not(trained: nn.Module) -> list[dict[str, Any]]:
    """Parameters in groups: those behind a parametrization are not pulled to 0, for what they stand for is not either.

    An orthogonal matrix has one norm whatever they are; torch's Householder form even becomes zero where they decay.
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            groups["parametrizations." not in name].append(parameter)
    return [{"params": some} | ({} if decays else {"weight_decay": 0.0}) for decays, some in groups.items() if some]


def _renamed(scores: dict[str, float]) -> dict[str, float]:
    return {"loss": scores["loss"], "accuracy": scores["acc"]}


def _train_epoch(
    run: "_Run",
    split: Split,
    objective: Objective,
    batch_size: int,
    steps: int,
    losses: "_Losses",
    step_done: Callable[[int], None],
) -> dict[str, float]:
    run.trained.train()
    batches = split.batches(batch_size, order=run.order, augment=run.augment, drop_last=True)
    for step, (images, labels) in zip(range(1, steps + 1), batches, strict=False):
        loss, correct = objective(images, labels)
        losses.add(loss, correct)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        step_done(step)
    mean_loss, accuracy = losses.means()
    return {"train_loss": mean_loss, "train_accuracy": accuracy}


def _steps_ahead(device: torch.device) -> int:
    """Steps that may wait for the check of their losses: to read one, a GPU must first do all that is queued."""
    return 0 if device.type == "cpu" else 50


@dataclass(slots=True)
class _Losses:
    """Losses and accuracies of an epoch's steps, kept on their device until they are checked.

    `where` says in the message of an error which step it was. Up to `ahead` steps wait for their check.
    """

    where: str
    ahead: int
    unchecked: list[Tensor] = field(default_factory=list)
    steps: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    def add(self, loss: Tensor, correct: Tensor) -> None:
        self.unchecked.append(torch.stack([loss.detach(), correct.float().mean()]))
        if len(self.unchecked) > self.ahead:
            self.check()

    def check(self) -> None:
        """Raise FloatingPointError for the first loss that is not finite."""
        if not self.unchecked:
            return
        for pair in torch.stack(self.unchecked).cpu().double():
            self.steps += 1
            if not torch.isfinite(pair[0]):
                place = self.where.format(self.steps)
                raise FloatingPointError(f"the loss is {pair[0].item()} {place}; lower the rate with --lr")
            self.total += pair
        self.unchecked.clear()

    def means(self) -> list[float]:
        """Mean loss and accuracy over the images seen, for batches are of one size."""
        self.check()
        return (self.total / self.steps).tolist()


@dataclass(slots=True)
class _Run:
    """Everything that changes during training, so everything that a resumed run needs."""

    trained: nn.Module
    optimizer: torch.optim.Optimizer
    order: Generator
    augment: Generator
    snapshot: Callable[[], State]
    history: History = field(default_factory=History)

    @torch.no_grad()
    def take_snapshot(self, iteration: int) -> None:
        state = self.snapshot()
        self.history.snapshots[iteration] = {name: value.detach().cpu().clone() for name, value in state.items()}

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        record = {
            "identity": identity,
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "augment": self.augment.get_state(),
            "history": asdict(self.history),
        }
        write_tensors(path, record)

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        broken = f"cannot resume from {path}: {{}}; without that file training starts anew"
        try:
            record = parse_tensors(path.read_bytes())
        except ValueError as error:
            raise ValueError(broken.format(error)) from None
        if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
            raise ValueError(broken.format("it is no state of a training"))
        for key in sorted(record["identity"].keys() | identity.keys()):
            before, now = record["identity"].get(key), identity.get(key)
            if before != now:
                raise ValueError(f"cannot resume from {path}: it was started with {key} {before}, not {now}")
        try:
            self.trained.load_state_dict(record["trained"])
            self.optimizer.load_state_dict(record["optimizer"])
            self.order.set_state(record["order"])
            self.augment.set_state(record["augment"])
            self.history = History(**record["history"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(broken.format(f"it does not fit this training ({type(error).__name__})")) from None
