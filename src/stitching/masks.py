"""Which weights of a stitch may differ from zero: (out, in) matrices of zeros and ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from src.metrics.algebra.moments import PairedMoments, correlation
from src.stitching.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Mask:
    """A line of MASKS: `build(geometry, generator, moments)`, and whether it asks for the paired moments."""

    build: Callable[[Geometry, Generator, PairedMoments | None], Tensor]
    needs_moments: bool = False


def everything(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Tensor:
    """No restriction."""
    return torch.ones(geometry.outputs, geometry.inputs)


def best_correlated(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Tensor:
    """For each channel of the end layer, the front channel of the highest correlation with it."""
    assert moments is not None
    return _one_hot(correlation(moments).argmax(1), geometry.inputs)


def best_abs_correlated(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Tensor:
    """For each channel of the end layer, the front channel of the highest absolute correlation with it."""
    assert moments is not None
    return _one_hot(correlation(moments).abs().argmax(1), geometry.inputs)


def random_pairs(geometry: Geometry, generator: Generator, moments: PairedMoments | None) -> Tensor:
    """For each channel of the end layer a random front channel, none twice before each was taken once."""
    rounds = -(-geometry.outputs // geometry.inputs)
    order = torch.cat([torch.randperm(geometry.inputs, generator=generator) for _ in range(rounds)])
    return _one_hot(order[: geometry.outputs], geometry.inputs)


def _one_hot(chosen: Tensor, inputs: int) -> Tensor:
    return F.one_hot(chosen.cpu(), inputs).float()


MASKS = {
    "identity": Mask(everything),
    "semi-match": Mask(best_correlated, needs_moments=True),
    "abs-semi-match": Mask(best_abs_correlated, needs_moments=True),
    "random-permutation": Mask(random_pairs),
}
SPELLINGS = {"random-permuation": "random-permutation"}  # the published one -> ours
MASKS |= {published: MASKS[ours] for published, ours in SPELLINGS.items()}
