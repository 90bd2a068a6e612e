"""Where a stitch starts. Each init is a function of the matrix's shape and of what it asks for."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator

from src.metrics.moments import Affine, PairedMoments, least_squares, procrustes
from src.stitching.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Init:
    """A line of INITS: `build(geometry, generator, moments)`, and what must hold for it.

    `needs_moments`: the paired moments of the two activations on the training images. `needs_square`: as many
    outputs as inputs.
    """

    build: Callable[[Geometry, Generator, PairedMoments | None], Affine]
    needs_moments: bool = False
    needs_square: bool = False


def random_uniform(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Affine:
    """Weights and biases uniform in +-1/sqrt(inputs), PyTorch's default for linear layers."""
    bound = 1 / math.sqrt(geometry.inputs)
    numbers = torch.rand(geometry.outputs, geometry.inputs + 1, generator=generator) * (2 * bound) - bound
    return Affine(numbers[:, 1:], numbers[:, 0])


def permutation(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Affine:
    """A random permutation of the channels, bias 0."""
    order = torch.randperm(geometry.inputs, generator=generator)
    return Affine(torch.eye(geometry.inputs)[order], torch.zeros(geometry.outputs))


def identity(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Affine:
    """Each channel to the channel of the same number, bias 0."""
    return Affine(torch.eye(geometry.inputs), torch.zeros(geometry.outputs))


def ones(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Affine:
    """All weights 1, bias 0."""
    return Affine(torch.ones(geometry.outputs, geometry.inputs), torch.zeros(geometry.outputs))


def fitted(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Affine:
    """The least-squares map from the front activation to the end network's own."""
    assert moments is not None
    return least_squares(moments)


def rotated(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Affine:
    """The orthogonal map nearest, in least squares, to the end network's activation (Procrustes; Schoenemann 1966)."""
    assert moments is not None
    return procrustes(moments)


INITS = {
    "random": Init(random_uniform),
    "perm": Init(permutation, needs_square=True),
    "eye": Init(identity, needs_square=True),
    "ps_inv": Init(fitted, needs_moments=True),
    "orthogonal": Init(rotated, needs_moments=True),
    "ones-zeros": Init(ones),
}
