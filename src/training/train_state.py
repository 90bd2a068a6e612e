"""What learns: its parameters, its optimizer, its history, and the losses that stop it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.records import ANY, ARRAY, FINITE, Each, Maybe, Several, check
from src.training.muon import MARK, hidden_matrices
from src.training.recipe import OPTIMIZERS, Recipe
from src.training.watch import Watch

_OPTIMIZER = {"state": Each(Each(ANY), int), "param_groups": Several(Each(ANY))}
WHOLE_EPOCH = 1 << 30  # more steps than it has
State = dict[str, Tensor]
Share = Callable[[Tensor], Any]  # images -> what all learners need of them
# (what all learners share of a batch, images, labels) -> (the loss to minimise, which decisions were right)
Objective = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(slots=True)
class History:
    """What happened in training: a row an epoch, and copies of the trained state by iteration."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    snapshots: dict[int, State] = field(default_factory=dict)


@dataclass(slots=True)
class TrainState:
    """One that learns, with all that changes while it does: the parameters of `trained` that ask for gradients.

    Its history keeps a copy of what `snapshot` gives (the trained state, if None) at iteration 0, at each multiple of
    `snapshot_every` and after the last one (0: no copies). `after_step` is called with each iteration that
    `after_step_every` divides. `failure` says why it stopped early, where it did.

    `later` are stages that follow the first, each with an optimizer of its own that knows nothing of those before it.
    `watch` decides when it has learnt enough.
    """

    trained: nn.Module
    objective: Objective
    recipe: Recipe
    name: str = ""
    snapshot: Callable[[], State] | None = None
    snapshot_every: int = 0
    after_step: Callable[[int], None] | None = None
    after_step_every: int = 1
    history: History = field(default_factory=History)
    failure: str | None = None
    later: Sequence[tuple[Recipe, Objective]] = ()
    watch: Watch | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    stage: int = field(init=False, default=0)
    _stages: list[tuple[Recipe, Objective]] = field(init=False)

    def __post_init__(self) -> None:
        self._stages = [(self.recipe, self.objective), *self.later]
        self._start()

    def _start(self) -> None:
        """The optimizer of a stage at its beginning."""
        recipe = self.recipe
        parameters = _groups(self.trained, apart=recipe.optimizer == "muon")
        self.optimizer = OPTIMIZERS[recipe.optimizer](parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The epochs of each stage."""
        return tuple(recipe.epochs for recipe, _ in self._stages)

    @property
    def learns(self) -> bool:
        """Whether it neither failed nor has learnt enough."""
        return not self.failure and not (self.watch and self.watch.is_over)

    def enter(self, epoch: int) -> None:
        """Go on to the stage of this epoch, counted from 0 over all of them."""
        stage = min(sum(end <= epoch for end in accumulate(self.lengths)), len(self._stages) - 1)
        if stage != self.stage:
            self.stage = stage
            self.recipe, self.objective = self._stages[stage]
            self._start()

    @torch.no_grad()
    def take_snapshot(self, iteration: int) -> None:
        """Keep a copy in the history, on its device until `settle`: a GPU gives nothing before all that is queued."""
        state = (self.snapshot or self.trained.state_dict)()
        self.history.snapshots[iteration] = {name: value.detach().clone() for name, value in state.items()}

    def settle(self) -> None:
        """Bring the copies to the processor."""
        snapshots = self.history.snapshots
        for iteration, state in snapshots.items():
            snapshots[iteration] = {name: value.cpu() for name, value in state.items()}

    def rate(self, epoch: int, passed: float) -> float:
        """The learning rate of what comes after that share of an epoch, counted over all stages."""
        return self.recipe.rate(epoch - sum(self.lengths[: self.stage]), passed)

    def set_rate(self, epoch: int, passed: float) -> None:
        """Learn at the rate of what comes after that share of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(epoch, passed)

    def step(self, shared: Any, images: Tensor, labels: Tensor, losses: "Losses") -> None:
        """Learn from a batch, unless its loss, which is added to the others, is known not to be finite."""
        loss, correct = self.objective(shared, images, labels)
        losses.add(loss, correct)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs of it."""
        return {
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": asdict(self.history),
            "failure": self.failure,
            **({"watch": self.watch.state()} if self.watch else {}),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; raises UserError, or whatever torch does, for what fits another training."""
        self.trained.load_state_dict(state["trained"])
        _check_optimizer(self.optimizer, state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.failure = History(**state["history"]), state["failure"]
        if self.watch:
            self.watch.load(state["watch"])


def _check_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Refuse a state of another optimizer: torch takes what it is given, and fails, or trains otherwise, later on."""
    if parts := getattr(optimizer, "parts", None):
        for part, known in zip(parts, state["parts"], strict=True):
            _check_optimizer(part, known)
        return
    check(state, _OPTIMIZER, required=_OPTIMIZER)
    own = optimizer.state_dict()["param_groups"]
    for mine, theirs in zip(own, state["param_groups"], strict=True):
        for name, value in mine.items():
            other = theirs.get(name)
            same = other == value if name == "params" else type(other) is type(value)
            if mine.keys() != theirs.keys() or not same or (type(other) is float and not math.isfinite(other)):
                raise UserError(f"the option {name} of its optimizer is none of this one")
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for number, known in state["state"].items():
        for name, value in known.items():
            check(value, Maybe(ARRAY if isinstance(value, Tensor) else FINITE), place=f"{name} of its optimizer")
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[number].shape:
                raise UserError(f"{name} of its optimizer has another shape than its parameter")


def _groups(trained: nn.Module, *, apart: bool) -> list[dict[str, Any]]:
    """Parameters in groups: those behind a parametrization are not pulled to 0, for what they stand for is not either.

    An orthogonal matrix has one norm whatever they are; torch's Householder form even becomes zero where they decay.
    The matrices inside the network have a group of their own where they are to be `apart`.
    """
    matrices = hidden_matrices(trained) if apart else set()
    groups: dict[str, list[Tensor]] = {"decayed": [], "kept": [], MARK: []}
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            kind = MARK if parameter in matrices else "kept" if "parametrizations." in name else "decayed"
            groups[kind].append(parameter)
    more = {"kept": {"weight_decay": 0.0}, MARK: {MARK: True}}
    return [{"params": some} | more.get(kind, {}) for kind, some in groups.items() if some]


def steps_ahead(device: torch.device) -> int:
    """Steps that may wait for the check of their losses: to read one, a GPU must first do all that is queued."""
    return 0 if device.type == "cpu" else WHOLE_EPOCH


@dataclass(slots=True)
class Losses:
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
