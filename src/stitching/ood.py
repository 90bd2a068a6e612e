"""Whether what a stitch hands on looks like what the end network's layers are used to."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy
import torch
from torch import Tensor

from src.core.task import Task
from src.dataset import Split
from src.evaluation.passes import feed
from src.metrics import channels_last_rows
from src.metrics.algebra.linalg import as_float64
from src.metrics.algebra.moments import Sums, gather, rows_at_once
from src.stitching.cut_networks import LOGITS, CutNetworks
from src.stitching.layer import Stitch
from src.stitching.stitch_spec import StitchSpec

WEAKEST = 1e-6  # of the largest eigenvalue of a covariance: weaker directions count as if they varied so much
ACCEPTED = 0.95  # of end's own activations
ENERGY = "logits"  # what the scores of the logits are called, beside those of layers; a layer of that name has none
Scores = dict[str, dict[str, float]]
Sewn = tuple[StitchSpec, Stitch]


def out_of_distribution(cuts: CutNetworks, sewn: Mapping[str, Sewn], train: Split, val: Split) -> dict[str, Scores]:
    """For each stitch by its name, how its activations differ from end's own, at the stitch and each layer after it.

    An image's score at a layer is |d2 - the median of d2 on training images|, d2 the squared Mahalanobis distance from
    the mean of end's own channels on training images, averaged over positions; at the logits their free energy stands
    for d2: -logsumexp of classes, for independent labels the sum of -log(1 + exp(logit)) (Wang et al. 2021).
    `auroc`: how often a validation image scores higher stitched than end's own, 0 to 1, 0.5 where they cannot be told
    apart; `auroc_signed` the same of d2 itself; `fpr95`: share of stitched images that a threshold accepts that accepts
    95% of end's own; `l2_relative`: mean squared difference to end's own, over its mean variance.
    """
    found: dict[str, Scores] = {}
    for layer in dict.fromkeys(spec.end_layer for spec, _ in sewn.values()):
        group = {name: one for name, one in sewn.items() if one[0].end_layer == layer}
        found |= _at(cuts, layer, group, train, val)
    return found


def _at(cuts: CutNetworks, layer: str, sewn: Mapping[str, Sewn], train: Split, val: Split) -> dict[str, Scores]:
    names, _ = cuts.downstream(layer)
    places = [*names, LOGITS]
    layers = [name for name in names if name not in (ENERGY, LOGITS)]

    def own(images: Tensor) -> dict[str, Tensor]:
        return cuts.outputs("end", places, images)

    reference = _Reference(layers, train.spec.task)
    feed([own], train, reference.learn, title=f"end's activations from {layer or 'output'} on")
    reference.merge()
    usual = _Distances(reference, {}, len(train))
    feed([own], train, usual.add_own, title="their usual distances")
    centres = {place: float(np.median(values)) for place, values in usual.own.read().items()}
    seen = _Distances(reference, sewn, len(val))
    parts = {name: cuts.downstream(layer, stitch)[1] for name, (_, stitch) in sewn.items()}

    def look(images: Tensor) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        fronts = cuts.front_activations([spec for spec, _ in sewn.values()], images)
        stitched = {}
        for name, (spec, stitch) in sewn.items():
            activation = cuts.stitched(spec, stitch, fronts)
            if len(activation) != len(images):
                activation = activation.expand(len(images), *activation.shape[1:]).contiguous()
            stitched[name] = dict(zip(places, (activation, *parts[name](activation, images)), strict=True))
        return own(images), stitched

    feed([look], val, lambda both: seen.add(*both), title="distances of stitched activations")
    return {name: seen.scores(name, centres) for name in sewn}


class _Reference:
    """Means and covariances of the channels of some layers, and what logits mean."""

    def __init__(self, names: Sequence[str], task: Task) -> None:
        self.names, self.task = list(names), task
        self.sums: dict[str, Sums] = {}
        self.whitening: dict[str, Tensor] = {}

    def learn(self, outputs: Mapping[str, Tensor]) -> None:
        for name in self.names:
            rows = channels_last_rows(outputs[name])
            sums = self.sums.setdefault(name, Sums(rows.shape[1], rows.device))
            gather([(sums, rows)], [], rows=rows_at_once(sums.d, sums.d, rows.device))

    def merge(self) -> None:
        for name, sums in self.sums.items():
            sums.require_finite()
            values, vectors = torch.linalg.eigh(sums.products / sums.n)
            least = WEAKEST * values.max().clamp(min=0)
            # where nothing varies, nothing is known of what is far
            self.whitening[name] = vectors / values.clamp(min=least).sqrt() if least > 0 else vectors[:, :0]

    def distances(self, name: str, x: Tensor) -> Tensor:
        """d2 of each image of a layer's output (n, channels, ...), (n,)."""
        rows = as_float64(channels_last_rows(x)) - self.sums[name].mean
        return (rows @ self.whitening[name]).square().sum(1).view(len(x), -1).mean(1)


class _Kept:
    """A number of each image at each place, in one tensor a place, made at the first batch.

    Small tensors, kept between the large ones of every batch, would pin what these have left, and plain numbers would
    wait for the GPU at each.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._kept: dict[str, tuple[Tensor, int]] = {}

    def add(self, place: str, values: Tensor) -> None:
        kept, seen = self._kept.get(place) or (values.new_empty(self.images), 0)
        kept[seen : seen + len(values)] = values
        self._kept[place] = kept, seen + len(values)

    def read(self) -> dict[str, np.ndarray]:
        return {place: kept[:seen].cpu().numpy() for place, (kept, seen) in self._kept.items()}


class _Distances:
    """Distances image by image, of end's own activations and of stitched ones, and how far these are from those."""

    def __init__(self, reference: _Reference, stitches: Iterable[str], images: int) -> None:
        self.reference = reference
        self.own = _Kept(images)
        self._stitched = {name: _Kept(images) for name in stitches}
        self._squares: dict[tuple[str, str], Tensor] = {}
        self._spread: dict[str, tuple[Tensor, Tensor, int]] = {}

    def add_own(self, outputs: Mapping[str, Tensor]) -> None:
        self._add(self.own, outputs)

    def _add(self, kept: _Kept, outputs: Mapping[str, Tensor]) -> None:
        for place, x in outputs.items():
            if place in self.reference.whitening:
                kept.add(place, self.reference.distances(place, x))
            if place == LOGITS:
                kept.add(ENERGY, self.reference.task.energy(as_float64(x)))

    def add(self, own: Mapping[str, Tensor], stitched: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.add_own(own)
        for place, x in own.items():
            rows = as_float64(channels_last_rows(x))
            total, squares, n = self._spread.get(place, (0.0, 0.0, 0))
            self._spread[place] = rows.sum(0) + total, rows.square().sum(0) + squares, n + len(rows)
        for name, outputs in stitched.items():
            self._add(self._stitched[name], outputs)
            for place, x in outputs.items():
                square = (as_float64(x) - as_float64(own[place])).square().flatten(1).mean(1).sum()
                self._squares[name, place] = self._squares.get((name, place), torch.zeros_like(square)) + square

    def scores(self, name: str, centres: Mapping[str, float]) -> Scores:
        by_place = {}
        stitched_at = self._stitched[name].read()
        for place, own in self.own.read().items():
            stitched = stitched_at[place]
            own_score, score = np.abs(own - centres[place]), np.abs(stitched - centres[place])
            key = LOGITS if place == ENERGY else place
            total, squares, n = self._spread[key]
            variance = float((squares / n - (total / n).square()).clamp(min=0).mean())
            l2 = float(self._squares[name, key]) / len(own)
            by_place[place] = {
                "l2_relative": l2 / variance if variance else float("nan"),
                "auroc": auroc(score, own_score),
                "auroc_signed": auroc(stitched, own),
                "fpr95": float((score <= np.quantile(own_score, ACCEPTED)).mean()),
            }
        return by_place


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The probability that a value of the first is above one of the second, ties count half (Mann and Whitney 1947)."""
    ranks = scipy.stats.rankdata(np.concatenate([positive, negative]))
    above = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))
