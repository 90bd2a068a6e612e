"""Where a stitch starts. Each init is a function of the matrix's shape and of what it asks for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from src.core.errors import UserError
from src.core.options import NUMBERS
from src.core.text import close_to
from src.metrics.algebra.moments import (
    Affine,
    PairedMoments,
    joined,
    least_squares,
    procrustes,
    reduced_rank_regression,
    squared_error,
    with_matching_bias,
)
from src.metrics.alignment import matching_plan
from src.stitching.geometry import Geometry
from src.stitching.layer import FREE, Constraint


@dataclass(frozen=True, slots=True)
class Init:
    """A line of INITS: how a map comes about, and what must hold for it.

    `draw(geometry, generator)` knows nothing of the activations; the stitch then starts at the closest that it can be.
    `fit(moments, restriction)` is the best map that the restriction allows, given the paired moments of the two
    activations on the training images. An init has one of the two. `needs_square`: as many outputs as inputs.
    `parameter`: what may stand behind a colon in its name, in words; `read(text)` gives the init with it, "" without.
    `needs_folds`: it is given the moments of FOLDS parts of the images, `anchors`: activations of so many of them, by
    `data`.
    """

    draw: Callable[[Geometry, Generator], Affine] | None = None
    fit: Callable[[PairedMoments, Constraint], Affine] | None = None
    needs_square: bool = False
    parameter: str = ""
    read: Callable[[str], "Init"] | None = None
    needs_folds: bool = False
    anchors: int = 0
    of: Callable[[PairedMoments, Any], Affine] | None = None

    @property
    def needs_moments(self) -> bool:
        return self.fit is not None or self.of is not None

    def build(
        self,
        geometry: Geometry,
        generator: Generator,
        moments: PairedMoments | None = None,
        constraint: Constraint = FREE,
        data: Any = None,
    ) -> Affine:
        """The map; `moments`, and `data` of folds or anchors, are asked for by the inits that need them."""
        if self.draw:
            return self.draw(geometry, generator)
        assert moments is not None
        if self.of:
            return self.of(moments, data)
        assert self.fit
        return self.fit(moments, constraint)


def random_uniform(geometry: Geometry, generator: Generator) -> Affine:
    """Weights and biases uniform in +-1/sqrt(inputs), PyTorch's default for linear layers."""
    bound = 1 / math.sqrt(geometry.inputs)
    numbers = torch.rand(geometry.outputs, geometry.inputs + 1, generator=generator) * (2 * bound) - bound
    return Affine(numbers[:, 1:], numbers[:, 0])


def permutation(geometry: Geometry, generator: Generator) -> Affine:
    """A random permutation of the channels, bias 0."""
    order = torch.randperm(geometry.inputs, generator=generator)
    return Affine(torch.eye(geometry.inputs)[order], torch.zeros(geometry.outputs))


def identity(geometry: Geometry, generator: Generator) -> Affine:
    """Each channel to the channel of the same number, bias 0."""
    return Affine(torch.eye(geometry.inputs), torch.zeros(geometry.outputs))


def ones(geometry: Geometry, generator: Generator) -> Affine:
    """All weights 1, bias 0."""
    return Affine(torch.ones(geometry.outputs, geometry.inputs), torch.zeros(geometry.outputs))


def fitted(moments: PairedMoments, constraint: Constraint) -> Affine:
    """The least-squares map from the front activation to the end network's own, among those that the stitch can be."""
    if constraint.orthogonal:
        return procrustes(moments)
    if constraint.rank is not None:
        return reduced_rank_regression(moments, constraint.rank)
    return least_squares(moments, constraint.mask)


def rotated(moments: PairedMoments, constraint: Constraint) -> Affine:
    """The orthogonal map nearest, in least squares, to the end network's activation (Procrustes; Schoenemann 1966).

    Where outputs are fewer than inputs it is the nearest to that activation with channels of zeros appended, for the
    restricted problem has no closed form. A mask keeps some of its entries; the bias matches the means all the same.
    """
    w = procrustes(moments, constraint.rank).w
    return with_matching_bias(w if constraint.mask is None else w * constraint.mask.to(w), moments)


def ridged(moments: PairedMoments, strength: float) -> Affine:
    """Least squares pulled towards 0: W = Syx (Sxx + strength tr(Sxx) / d I)^-1; the bias takes mean to mean."""
    d = len(moments.mean_x)
    pull = strength * moments.xx.trace() / d
    w = torch.linalg.solve(moments.xx + pull * torch.eye(d).to(moments.xx), moments.xy).T
    return with_matching_bias(w, moments)


def best_ridge(moments: PairedMoments, folds: Sequence[PairedMoments]) -> Affine:
    """The ridge fit whose strength predicts images best that it has not seen, of STRENGTHS, by parts of the images."""
    errors = []
    for strength in STRENGTHS:
        error = 0.0
        for number, held in enumerate(folds):
            others = joined([fold for other, fold in enumerate(folds) if other != number])
            error += held.n * squared_error(held, ridged(others, strength))
        errors.append(error)
    return ridged(moments, STRENGTHS[errors.index(min(errors))])


def soft_matched(moments: PairedMoments, _: Any = None) -> Affine:
    """Each channel of the end as the mean of the channels that soft matching gives it, each in the end's own scale.

    W_ji = d_out P_ij sd_j / sd_i over the channels that vary, P the plan of the metric (Khosla and Williams 2024).
    """
    varying_x, varying_y = moments.nonconstant()
    plan = matching_plan(moments)  # (outputs, inputs), of those that vary
    sd_x, sd_y = ((products.diagonal() / moments.n).clamp(min=0).sqrt() for products in (moments.xx, moments.yy))
    w = moments.xy.new_zeros(moments.xy.T.shape)
    part = len(plan) * torch.as_tensor(plan).to(w) * sd_y[varying_y][:, None] / sd_x[varying_x]
    w[varying_y.nonzero()[:, :1], varying_x.nonzero()[:, 0]] = part
    return with_matching_bias(w, moments)


def relative(moments: PairedMoments, anchors: Any) -> Affine:
    """The inverse relative projection of anchors: W = s pinv(B) A, A and B their centred rows of norm 1.

    s is the ratio of the root mean squares, the bias takes mean to mean. A linearisation of relative representations
    (Moschella et al. 2023), which compare directions with those of anchors.
    """
    sides = [rows - rows.mean(0) for rows in anchors]
    scale = float(sides[1].square().mean().sqrt() / sides[0].square().mean().sqrt().clamp(min=1e-300))
    front, end = (side / side.norm(dim=1, keepdim=True).clamp(min=1e-300) for side in sides)
    w = scale * torch.linalg.pinv(end.T @ end, hermitian=True) @ (end.T @ front)
    return with_matching_bias(w.to(moments.xy), moments)


def _ridge(text: str) -> Init:
    if not text:
        return Init(of=best_ridge, needs_folds=True)
    strength = NUMBERS["natural_float"].read(text)
    return Init(of=lambda moments, _: ridged(moments, strength))


def _relative(text: str) -> Init:
    if not text:
        raise UserError("say the number of its anchors, relative:K")
    return Init(of=relative, anchors=NUMBERS["positive"].read(text))


def init_of(text: str) -> Init:
    """The init that a text names, with what stands behind its colon; raises UserError for an unknown one."""
    name, colon, rest = text.partition(":")
    if name not in INITS or (colon and not INITS[name].read):
        raise UserError(f"unknown init {text!r}{close_to(text, INIT_NAMES)}; choose from {', '.join(INIT_NAMES)}")
    try:
        return INITS[name].read(rest) if INITS[name].read else INITS[name]  # pyright: ignore[reportOptionalCall]
    except UserError as error:
        raise UserError(f"--init {text}: {error}") from None


FOLDS = 5
STRENGTHS = [10.0**power for power in range(-8, 3)]
INITS = {
    "random": Init(random_uniform),
    "perm": Init(permutation, needs_square=True),
    "eye": Init(identity, needs_square=True),
    "ps_inv": Init(fit=fitted),
    "orthogonal": Init(fit=rotated),
    "ones-zeros": Init(ones),
    "ridge": Init(of=best_ridge, needs_folds=True, parameter="[:lambda]", read=_ridge),
    "soft-match": Init(of=soft_matched),
    "relative": Init(of=relative, parameter=":K", read=_relative),
}
INIT_NAMES = tuple(sorted(f"{name}{init.parameter}" for name, init in INITS.items()))
