"""Every kind of stitch is one affine map, stays what it is while it trains, and survives a file."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from src.metrics.algebra.moments import Affine
from src.stitching import Constraint, Geometry, StitchLayer, build_stitch, from_arrays
from src.stitching.layer import KINDS
from src.training.recipe import OPTIMIZERS

CHANNELS = Geometry((3, 4, 4), (5, 4, 4))
FEATURES = Geometry((3,), (5,))
FLAT = Geometry((3, 2, 2), (5, 1, 1), flatten=True)
RESIZED = Geometry((3, 8, 8), (5, 4, 4), resize=True)
MASK = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]])


def some_map(geometry: Geometry) -> Affine:
    numbers = torch.randn(geometry.outputs, geometry.inputs + 1, generator=torch.Generator().manual_seed(0))
    return Affine(numbers[:, 1:], numbers[:, 0])


def of_kind(kind: str, geometry: Geometry) -> StitchLayer:
    mask = MASK.repeat(1, geometry.inputs // 3)[: geometry.outputs]
    wanted = {
        "masked": Constraint(mask=mask),
        "low rank": Constraint(rank=2),
        "orthogonal": Constraint(orthogonal=True),
    }
    return build_stitch(some_map(geometry), geometry, wanted.get(kind, Constraint()))


GEOMETRIES = {"channels": CHANNELS, "features": FEATURES, "flat": FLAT, "resized": RESIZED}
ALL = list(itertools.product(KINDS, GEOMETRIES))


def activations(geometry: Geometry) -> Tensor:
    return torch.randn(6, *geometry.front_shape, generator=torch.Generator().manual_seed(1))


def step(stitch: StitchLayer, geometry: Geometry, optimizer: str = "sgd", steps: int = 1, decay: float = 0.1) -> None:
    chosen = OPTIMIZERS[optimizer](stitch.parameters(), lr=0.001, weight_decay=decay)
    for _ in range(steps):
        chosen.zero_grad()
        stitch(activations(geometry)).pow(2).sum().backward()
        chosen.step()


def by_hand(x: Tensor, stitch: StitchLayer, geometry: Geometry) -> Tensor:
    """The affine map at one position after the other."""
    w, b = stitch.matrix().detach(), stitch.bias.detach()
    if geometry.is_flat:
        return torch.stack([(w @ image.reshape(-1) + b).reshape(geometry.end_shape) for image in x])
    if x.dim() == 2:
        return torch.stack([w @ row + b for row in x])
    if geometry.resize:
        x = nn.Upsample(size=geometry.end_shape[1:], mode="bilinear")(x)
    return torch.einsum("oi,nihw->nohw", w, x) + b[:, None, None]


@pytest.mark.parametrize(("kind", "where"), ALL)
def test_a_stitch_is_an_affine_map_and_reads_back_from_its_arrays(kind: str, where: str) -> None:
    geometry = GEOMETRIES[where]
    stitch, x = of_kind(kind, geometry), activations(geometry)
    step(stitch, geometry)
    assert stitch.matrix().shape == (geometry.outputs, geometry.inputs)
    assert_close(stitch(x), by_hand(x, stitch, geometry))
    assert stitch(x).shape == (6, *geometry.end_shape)
    arrays = stitch.arrays()
    assert arrays["w"].shape == ((5, 3, 1, 1) if where in ("channels", "resized") else stitch.matrix().shape)
    assert_close(from_arrays(arrays, geometry)(x), stitch(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_copies(kind: str) -> None:
    stitch = of_kind(kind, CHANNELS)
    before = stitch.arrays()
    kept = {name: value.copy() for name, value in before.items()}
    step(stitch, CHANNELS)
    assert all(np.array_equal(before[name], kept[name]) for name in kept)
    assert not np.array_equal(stitch.arrays()["w"], kept["w"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_weights_stay_zero_and_get_no_gradient(optimizer: str) -> None:
    stitch = of_kind("masked", CHANNELS)
    step(stitch, CHANNELS, optimizer, steps=5)
    weight, hidden = stitch.weight, MASK == 0
    assert weight.grad is not None
    assert (weight[hidden] == 0).all() and (stitch.matrix()[hidden] == 0).all() and (weight.grad[hidden] == 0).all()
    assert (weight[~hidden] != 0).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_low_rank_starts_from_the_best_approximation_and_keeps_its_rank(rank: int) -> None:
    affine = some_map(CHANNELS)
    stitch = build_stitch(affine, CHANNELS, Constraint(rank=rank))
    u, s, vt = np.linalg.svd(affine.w.numpy().astype(np.float64))
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    assert_close(stitch.matrix().detach().double().numpy(), best, atol=1e-6, rtol=1e-5)
    step(stitch, CHANNELS, steps=5)
    assert np.linalg.matrix_rank(stitch.matrix().detach().numpy(), tol=1e-5) == rank
    arrays = stitch.arrays()
    assert_close(arrays["left"] @ arrays["right"], arrays["w"][:, :, 0, 0])


@pytest.mark.parametrize("geometry", [CHANNELS, Geometry((5, 4, 4), (3, 4, 4)), Geometry((4,), (4,))])
def test_orthogonal_stays_orthogonal(geometry: Geometry) -> None:
    stitch = build_stitch(some_map(geometry), geometry, Constraint(orthogonal=True))
    first = stitch.matrix().detach().clone()
    step(stitch, geometry, "adam", steps=100, decay=0)
    w = stitch.matrix().detach().double()
    small = w @ w.T if geometry.outputs <= geometry.inputs else w.T @ w
    assert (small - torch.eye(len(small))).abs().max() < 1e-5
    assert (w - first).abs().max() > 0.01


def test_orthogonal_starts_from_the_nearest_orthogonal_matrix() -> None:
    affine = some_map(Geometry((4,), (4,)))
    u, _, vt = np.linalg.svd(affine.w.numpy())
    stitch = build_stitch(affine, Geometry((4,), (4,)), Constraint(orthogonal=True))
    assert_close(stitch.matrix().detach().numpy(), u @ vt, atol=1e-5, rtol=1e-5)


def test_a_map_of_other_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a matrix \(5, 3\) and 5 biases, got \(3, 5\)"):
        StitchLayer(Affine(torch.zeros(3, 5), torch.zeros(5)), CHANNELS)


@pytest.mark.parametrize(
    ("front", "end", "options", "message"),
    [
        ((3, 4, 4), (5, 2, 2), {}, r"\(3, 4, 4\).*\(5, 2, 2\).*--flatten"),
        ((3, 4, 4), (5,), {}, r"\(3, 4, 4\).*\(5,\).*--flatten"),
        ((3, 4), (5, 4), {}, "only"),
    ],
)
def test_shapes_that_do_not_fit_are_named(front, end, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(front, end, **options)


def test_flatten_leaves_features_as_they_are() -> None:
    assert not Geometry((3,), (5,), flatten=True).is_flat
    flat = Geometry((3, 2, 2), (5,), flatten=True)
    assert (flat.inputs, flat.outputs) == (12, 5)
