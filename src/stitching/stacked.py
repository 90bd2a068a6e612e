"""Stitches into one layer of the end network, trained together: one product, one pass behind it, for all of them.

What follows on a stitch is frozen and shared, so that the images of many stitches are one large batch for it. How many
operators a step takes then does not depend on how many stitches there are, and a GPU is kept busy by networks that are
too small for it. Each row has the loss of its own line of TARGETS.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.core.precision import mixed_precision
from src.dataset.split import Batch
from src.stitching.cut_networks import LOGITS, Shared
from src.stitching.geometry import Geometry
from src.stitching.objective import StitchObjective
from src.stitching.stacked_forms import FORMS, Parameters, as_output, made_of, mean_weight, squares
from src.stitching.targets import AT_STITCH, TARGETS, Taught
from src.training.stacked import Chunk, Member, Share, Stacked

CHUNK = 16  # stitches that are computed together; fewer are filled up, so that none depends on how many there are
LARGEST = 1 << 27  # numbers of the end layer's activation in a chunk: of larger layers it holds fewer stitches


def stack(
    members: Sequence[Member],
    shares: Sequence[Share],
    *,
    chunk: int = CHUNK,
    captured: bool = False,
    told: Callable[[str], None] = lambda text: None,
) -> Stacked | None:
    """Those among the learners that step together: stitches of FORMS whose loss is a sum over images.

    Orthogonal ones, those with --norm, constants, and those with statistics of their own or with --cka-reg keep a step
    of their own. `chunk` stitches are one batch, filled up with rows of nobody; one that has no company is alone in
    its.
    """
    groups: dict[Hashable, list[Member]] = {}
    for member in members:
        objective = member.train_state.objective
        if isinstance(objective, StitchObjective) and can_stack(objective):
            groups.setdefault(_kind(objective), []).append(member)
    chunks = []
    for group in groups.values():
        first: Any = group[0].train_state.objective
        width = FORMS[type(first.stitch)].width(first.stitch)
        most = rows_at_once(first.stitch.geometry, first.spec.batch_size, chunk, width)
        rows = most if len(group) > 1 else 1
        for start in range(0, len(group), rows):
            some = group[start : start + rows]
            chunks.append(Chunk(some, rows, _ChunkObjective(some, rows)))
    if not chunks:
        return None
    device = next(members[0].train_state.trained.parameters()).device
    return Stacked(chunks, shares, device, captured=captured, told=told)


def rows_at_once(geometry: Geometry, images: int, most: int = CHUNK, width: int = 0) -> int:
    """How many stitches are one batch for what follows on them; it depends on the layer and on the images of each.

    width: numbers that a stitch holds at each position on the way.
    """
    numbers = images * max(geometry.outputs, width) * (1 if geometry.is_flat else _positions(geometry))
    return max(1, min(most, LARGEST // numbers))


def _positions(geometry: Geometry) -> int:
    return torch.Size(geometry.end_shape[1:]).numel()


def can_stack(objective: StitchObjective) -> bool:
    spec, stitch = objective.spec, objective.stitch
    return type(stitch) in FORMS and not spec.constant and not spec.cka_reg and stitch.norms is None


def _kind(objective: StitchObjective) -> Hashable:
    """What stitches agree in that are computed together."""
    spec, stitch = objective.spec, objective.stitch
    target = spec.stages[objective.stage].target
    form = type(stitch), FORMS[type(stitch)].size(stitch)
    return spec.end_layer, stitch.geometry, form, target, spec.match_layers, spec.amp


class _ChunkObjective:
    """The losses of some rows, of which the members are the first; the others learn from the first course."""

    def __init__(self, members: Sequence[Member], rows: int) -> None:
        objectives = [member.train_state.objective for member in members]
        self.objectives: Any = objectives
        first: Any = objectives[0]
        self.first, self.cuts, self.spec, self.rows = first, first.cuts, first.spec, rows
        self.stitch, self.geometry, self.form = first.stitch, first.stitch.geometry, FORMS[type(first.stitch)]
        self.target = TARGETS[first.spec.stages[first.stage].target]
        self.layers = self.cuts.matched(first.spec, first.spec.stages[first.stage].target)
        self.device = next(first.stitch.parameters()).device
        self.used = list(dict.fromkeys(member.course for member in members))  # others share what others need
        places = [self.used.index(member.course) for member in members]
        self.courses = _indices(places, rows, self.device)
        specs = [each.spec for each in self.objectives]
        sources = [(place, spec.source, spec.front_layer) for place, spec in zip(places, specs, strict=True)]
        self.sources = list(dict.fromkeys(sources))
        self.fronts = _indices([self.sources.index(source) for source in sources], rows, self.device)
        self.temperature = self._vector(lambda each: each.spec.temperature, 1.0)
        self.variance = self._vector(lambda each: each.variance, 1.0)
        self.l1 = self._vector(lambda each: each.spec.l1)
        self.pull = self._vector(lambda each: each.spec.weight_decay / 2 * each.spec.whiten)
        self.buffers = self._buffers()

    def _vector(self, value: Callable[[Any], float], filling: float = 0.0) -> Tensor:
        """A number of each row."""
        numbers = [float(value(each)) for each in self.objectives]
        return torch.tensor(numbers + [filling] * (self.rows - len(numbers))).to(self.device)

    def _buffers(self) -> dict[str, Tensor]:
        """What stitches hold beside their parameters, (rows, ...) by name."""
        own = [dict(each.stitch.named_buffers(recurse=False)) for each in self.objectives]
        filled = {}
        for name, value in own[0].items():
            values = [buffers[name] for buffers in own] + [torch.zeros_like(value)] * (self.rows - len(own))
            filled[name] = torch.stack(values)
        return filled

    def __call__(
        self, parameters: Parameters, batches: Sequence[Batch], shared: Sequence[Shared]
    ) -> tuple[Tensor, Tensor]:
        batches, shared = [batches[course] for course in self.used], [shared[course] for course in self.used]
        images = self._copied([batch[0] for batch in batches]) if self._reads_images() else None
        with mixed_precision(self.device, enabled=self.spec.amp):
            chain = self.form.chain(parameters, self.buffers)
            stitched = as_output(made_of(chain, self._rows(shared)), self.geometry)
            pairs, logits = self._pairs_and_logits(stitched, batches, images, shared)
        logits = logits.float().unflatten(0, (self.rows, -1))
        labels = [batch[1] for batch in batches]
        roles = list(self.target.teachers)
        taught = {role: self._of_courses([each[role][LOGITS].float() for each in shared]) for role in roles}
        losses = self._losses(logits, self._of_courses(labels), taught, pairs)
        if any(each.spec.whiten and each.spec.weight_decay for each in self.objectives):
            losses = losses + self.pull * squares(chain)
        if any(each.spec.l1 for each in self.objectives):
            losses = losses + self.l1 * mean_weight(chain)
        if not self.first.labelled:
            role = "end" if "end" in roles else roles[0]
            labels = [self.first.task.predictions(each[role][LOGITS].float()) for each in shared]
        right = self.first.task.correct(logits.detach().flatten(0, 1), self._copied(labels))
        return losses, right.view(self.rows, -1).float().mean(1)

    def _rows(self, shared: Sequence[Shared]) -> Tensor:
        """What each stitch reads of its front's output, (rows, positions, numbers)."""
        fronts = [shared[course][source][layer] for course, source, layer in self.sources]
        return one_of([self.form.rows(front, self.stitch) for front in fronts], self.fronts)

    def _of_courses(self, values: Sequence[Tensor]) -> Tensor:
        return one_of(values, self.courses)

    def _copied(self, values: Sequence[Tensor]) -> Tensor:
        """The same, the images of a row after those of the one before: (rows * images, ...)."""
        return torch.stack(list(values)).index_select(0, self.courses).flatten(0, 1)

    def _reads_images(self) -> bool:
        return self.cuts.reads_images(self.spec.end_layer, self._untils())

    def _untils(self) -> tuple[str, ...]:
        """The layers whose outputs are asked for, beside the logits."""
        if self.target.at in ("", AT_STITCH):
            return ()
        return tuple(layer for layer in self.layers if layer != self.spec.end_layer)

    def _pairs_and_logits(
        self, stitched: Tensor, batches: Sequence[Batch], images: Tensor | None, shared: Sequence[Shared]
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """The activations that the target compares, (rows, images, ...), and the logits, from one pass."""
        layer, untils = self.spec.end_layer, self._untils()
        # a part that does not look at images takes any, and as many
        seen = batches[0][0][:1].expand(len(stitched), -1, -1, -1) if images is None else images
        made = {layer: stitched}
        if self.target.at in ("", AT_STITCH):
            with torch.set_grad_enabled(not self.target.at):
                logits = self.cuts.forward_from(layer, stitched, seen)
        else:
            *outputs, logits = self.cuts.forward_through(layer, (*untils, LOGITS), stitched, seen)
            made |= dict(zip(untils, outputs, strict=True))
        pairs = []
        for name in self.layers:
            own = self._of_courses([each["end"][name].float() for each in shared])
            pairs.append((made[name].float().unflatten(0, (self.rows, -1)), own))
        return pairs, logits

    def _losses(
        self, logits: Tensor, labels: Tensor, teachers: Mapping[str, Tensor], pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The target's loss of each row."""
        task, loss = self.first.task, self.target.loss

        def of_row(
            logits: Tensor, labels: Tensor, teachers: Any, pairs: Any, variance: Any, temperature: Any
        ) -> Tensor:
            return loss(Taught(task, logits, labels, teachers, pairs, variance, temperature))

        each = (logits, labels, dict(teachers), list(pairs), self.variance, self.temperature)
        return torch.func.vmap(of_row)(*each)


def one_of(values: Sequence[Tensor], index: Tensor) -> Tensor:
    """For each number of an index (rows,) that of some tensors, (rows, ...); a view where there is but one."""
    if len(values) == 1:
        return values[0].expand(len(index), *values[0].shape)
    return torch.stack(list(values)).index_select(0, index)


def _indices(numbers: Sequence[int], rows: int, device: torch.device) -> Tensor:
    return torch.tensor([*numbers, *[0] * (rows - len(numbers))]).to(device)
