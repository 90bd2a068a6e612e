"""Where a stitch starts. Each init is a function of the matrix's shape and of what it asks for."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator

from src.metrics.algebra.moments import (
    Affine,
    PairedMoments,
    least_squares,
    procrustes,
    reduced_rank_regression,
    with_matching_bias,
)
from src.stitching.geometry import Geometry
from src.stitching.layer import FREE, Constraint


@dataclass(frozen=True, slots=True)
class Init:
    """A line of INITS: how a map comes about, and what must hold for it.

    `draw(geometry, generator)` knows nothing of the activations; the stitch then starts at the closest that it can be.
    `fit(moments, restriction)` is the best map that the restriction allows, given the paired moments of the two
    activations on the training images. An init has one of the two. `needs_square`: as many outputs as inputs.
    """

    draw: Callable[[Geometry, Generator], Affine] | None = None
    fit: Callable[[PairedMoments, Constraint], Affine] | None = None
    needs_square: bool = False

    @property
    def needs_moments(self) -> bool:
        return self.fit is not None

    def build(
        self,
        geometry: Geometry,
        generator: Generator,
        moments: PairedMoments | None = None,
        constraint: Constraint = FREE,
    ) -> Affine:
        """The map; `moments` are asked for by the inits that need them."""
        if self.draw:
            return self.draw(geometry, generator)
        assert self.fit and moments is not None
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


INITS = {
    "random": Init(random_uniform),
    "perm": Init(permutation, needs_square=True),
    "eye": Init(identity, needs_square=True),
    "ps_inv": Init(fit=fitted),
    "orthogonal": Init(fit=rotated),
    "ones-zeros": Init(ones),
}
