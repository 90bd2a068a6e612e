"""Learners of one shape that take their steps together: one product, one pass, one update for all of them.

Each keeps parameters, optimizer and history of its own, so that states and results are what they are alone. For a step
the parameters are copied side by side, and the gradients back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.dataset.ahead import Ahead
from src.dataset.split import Batch
from src.training.capture import Captured
from src.training.train_state import WHOLE_EPOCH, Losses, Share, TrainState

# parameters (rows, ...) by name, the batches and what is shared of each -> the loss of each row, (rows,), and the share
# of its decisions that are right, (rows,)
StackedObjective = Callable[[Mapping[str, Tensor], Sequence[Batch], Sequence[Any]], tuple[Tensor, Tensor]]
_copy_each: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage] (one launch for all)


class Member(NamedTuple):
    """A learner, and the number of the course whose batches it sees."""

    train_state: TrainState
    course: int


class Chunk(NamedTuple):
    """Learners that are computed as so many `rows`, the first of them theirs, whatever the others are."""

    members: Sequence[Member]
    rows: int
    objective: StackedObjective


class Stacked:
    """All chunks of a stage, step by step; `begin` and `finish` each epoch.

    `shares` gives what a batch of each course has in common. One that fails, or has learnt enough, keeps its rows, from
    which nothing comes to the others. With `captured` a step is recorded and replayed as a whole; `told` hears where it
    cannot be.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        shares: Sequence[Share],
        device: torch.device,
        *,
        captured: bool,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.chunks = [_Parameters(chunk, device) for chunk in chunks]
        self.shares, self.device = shares, device
        self.members = [member for chunk in chunks for member in chunk.members]
        self._places = _places(chunks)
        alive = [member.train_state for member in self.members if member.train_state.learns]
        self.optimizers = _joint_optimizers(alive, device)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self._groups, self.rates = groups, torch.zeros(len(groups), device=device)
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        self._last = torch.zeros(2, sum(chunk.rows for chunk in chunks), device=device)
        self._aheads: Sequence[Ahead] = ()
        self._held: list[list[Tensor]] = []  # what the recorded step reads: batches, or what these are made of
        self.work = Captured(self._recorded, device, told) if captured else None

    def begin(self, epoch: int, steps: int, aheads: Sequence[Ahead] = ()) -> None:
        """Prepare an epoch of so many steps: its rates, and room for its losses.

        With `aheads`, of each course, a recorded step makes its batches itself.
        """
        if bool(aheads) != bool(self._aheads):
            self._held = []
        self._aheads = aheads
        self._epoch, self._steps, self._done = epoch, steps, 0
        rates = [[group["of"].rate(epoch, step / steps) for group in self._groups] for step in range(steps)]
        self._rates = torch.tensor(rates).to(self.device, non_blocking=True)
        self._seen = torch.zeros(steps, *self._last.shape, device=self.device)

    def step(self, batches: Sequence[Batch], shared: Sequence[Any]) -> None:
        """All learn from a batch of each course; `shared` is what `shares` give of them, if somebody asks."""
        self.rates.copy_(self._rates[self._done])
        if self.work:
            rows = [ahead.rows(self._done) for ahead in self._aheads]
            self._copy_in(rows or [list(batches[number]) for number in range(len(self.shares))])
            self.work()
        else:
            self._step(batches, shared)
        self._seen[self._done].copy_(self._last)
        self._done += 1
        iteration = self._epoch * self._steps + self._done
        for member in self.members:
            every = member.train_state.snapshot_every
            if every and iteration % every == 0 and member.train_state.learns:
                member.train_state.take_snapshot(iteration)

    def _copy_in(self, courses: Sequence[Sequence[Tensor]]) -> None:
        """Put what a batch is, or is made of, where the recorded step reads it."""
        if not self._held:
            self._held = [[values.clone() for values in given] for given in courses]
            return
        for held, given in zip(self._held, courses, strict=True):
            for into, values in zip(held, given, strict=True):
                into.copy_(values)

    def _recorded(self) -> None:
        if self._aheads:
            batches = [ahead.make(held) for ahead, held in zip(self._aheads, self._held, strict=True)]
        else:
            batches = [(images, labels) for images, labels in self._held]
        self._step(batches, None)

    def _step(self, batches: Sequence[Batch], shared: Sequence[Any] | None) -> None:
        if shared is None:
            shared = [share(images) for share, (images, _) in zip(self.shares, batches, strict=True)]
        parts = []
        for chunk in self.chunks:
            leaves = chunk.gathered()
            losses, right = chunk.objective(leaves, batches, shared)
            # a loss that is not finite has a gradient of its own row alone
            chunk.scatter(torch.autograd.grad(losses, list(leaves.values()), chunk.alive))
            parts.append(torch.stack([losses.detach(), right]))
        for optimizer in self.optimizers:
            optimizer.step()
        self._last.copy_(torch.cat(parts, 1))

    def finish(self) -> list[tuple[TrainState, Losses]]:
        """The losses of the epoch of each that learnt in it, read from the device all at once."""
        seen = self._seen[: self._done].cpu()
        kept = []
        for member, place in zip(self.members, self._places, strict=True):
            if member.train_state.learns:
                where = f"in epoch {self._epoch + 1}, step {{}} of {self._steps}"
                kept.append((member.train_state, Losses(where, WHOLE_EPOCH, list(seen[:, :, place]))))
        return kept


def _places(chunks: Sequence[Chunk]) -> list[int]:
    """The row of each member among those of all chunks."""
    places, start = [], 0
    for chunk in chunks:
        places += range(start, start + len(chunk.members))
        start += chunk.rows
    return places


class _Parameters:
    """The parameters of a chunk, side by side: a row each, smaller ones beside zeros, rows that nobody has zero."""

    def __init__(self, chunk: Chunk, device: torch.device) -> None:
        self.objective = chunk.objective
        named = [_trained(member.train_state) for member in chunk.members]
        self.names = list(named[0])
        self.values, self.gradients = {}, {}
        self.alive = torch.zeros(chunk.rows, device=device)
        self._own, self._rows, self._apart, self._apart_rows = [], [], [], []
        for name in self.names:
            shape = [max(lengths) for lengths in zip(*(parts[name].shape for parts in named), strict=True)]
            self.values[name], self.gradients[name] = (torch.zeros(chunk.rows, *shape, device=device) for _ in range(2))
        for row, (member, parts) in enumerate(zip(chunk.members, named, strict=True)):
            if member.train_state.learns:
                self.alive[row : row + 1].fill_(1)
                for name, parameter in parts.items():
                    self._place(row, name, parameter)

    def _place(self, row: int, name: str, parameter: Tensor) -> None:
        """Where a parameter is copied to, and where its gradient is: among all, or beside if laid out otherwise."""
        part = tuple(slice(length) for length in parameter.shape)
        self._own.append(parameter.detach())
        self._rows.append(self.values[name][row][part])
        gradient = self.gradients[name][row][part]
        if gradient.stride() == parameter.stride():  # an update of all asks for that, to the last axis of one number
            parameter.grad = gradient
        else:
            parameter.grad = torch.zeros_like(parameter)
            self._apart.append(parameter.grad)
            self._apart_rows.append(gradient)

    def gathered(self) -> dict[str, Tensor]:
        """The parameters as they are now, to be learnt from."""
        _copy_each(self._rows, self._own)
        return {name: values.detach().requires_grad_() for name, values in self.values.items()}

    def scatter(self, gradients: Sequence[Tensor]) -> None:
        """Give each parameter its gradient."""
        _copy_each(list(self.gradients.values()), list(gradients))
        if self._apart:
            _copy_each(self._apart, self._apart_rows)


def _trained(train_state: TrainState) -> dict[str, Tensor]:
    return {name: value for name, value in train_state.trained.named_parameters() if value.requires_grad}


def _joint_optimizers(train_states: Sequence[TrainState], device: torch.device) -> list[torch.optim.Optimizer]:
    """Optimizers that do for all what their own would do for each, with the states of these.

    One update of all parameters whose rates and options agree; its rate is a tensor, and so are the numbers of steps.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for train_state in train_states:
        kind = type(train_state.optimizer)
        for group in train_state.optimizer.param_groups:
            options = {name: value for name, value in group.items() if name not in ("params", "lr")}
            key = kind, train_state.recipe, train_state.stage, train_state.lengths, tuple(options.items())
            joint = groups.setdefault(key, {"params": [], "of": train_state, **options, **_on_device(options, device)})
            joint["params"] += group["params"]
    optimizers: list[torch.optim.Optimizer] = []
    for kind in dict.fromkeys(key[0] for key in groups):
        made = kind([group for key, group in groups.items() if key[0] is kind], lr=0.0, fused=True)
        for train_state in train_states:
            if type(train_state.optimizer) is kind:
                for parameter in (one for group in train_state.optimizer.param_groups for one in group["params"]):
                    made.state[parameter] = _there(train_state.optimizer.state[parameter], device)
        optimizers.append(made)
    return optimizers


def _there(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The state of a parameter itself, its number of steps on the device: a file may have brought it back elsewhere."""
    if isinstance(state.get("step"), Tensor):
        state["step"] = state["step"].to(device)
    return state


def _on_device(options: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What is asked of a group beside what its owner asked: that its numbers stay on the device."""
    return {"fused": True, "foreach": False} | (
        {"capturable": device.type == "cuda"} if "capturable" in options else {}
    )
