"""Whitened coordinates: the same maps, another path."""

from dataclasses import asdict

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from src.metrics import PairedMoments
from src.metrics.algebra.moments import least_squares
from src.stitching import Geometry, StitchLayer, StitchSpec, combinations, initial_stitch
from src.stitching.whitening import whitening_of

GEOMETRY = Geometry((4,), (3,))
KINDS = {"full": {}, "low rank": {"rank": 2}, "masked": {"mask": "semi-match"}}


def activations(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated channels of very different sizes, far from 0; the end has a dead one."""
    generator = Generator().manual_seed(seed)
    mix = torch.randn(4, 4, generator=generator) * torch.tensor([[30.0], [1.0], [0.5], [3.0]])
    x = torch.randn(500, 4, generator=generator) @ mix + 50
    y = x @ torch.randn(4, 3, generator=generator) + torch.randn(500, 3, generator=generator) - 7
    y[:, 2] = 5.0
    return x, y


def moments(x: Tensor, y: Tensor) -> PairedMoments:
    found = PairedMoments(x.shape[1], y.shape[1])
    found.update(x, y)
    return found


def test_the_front_is_white_and_the_end_has_variance_one_there() -> None:
    x, y = activations()
    there = whitening_of(moments(x, y))
    white = (x.double() - there.m) @ there.s.T
    assert_close(white.T @ white / len(x), torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    scaled = (y.double() - there.centre) / there.d
    assert_close(scaled.square().mean(0), torch.tensor([1, 1, 0], dtype=torch.float64), atol=1e-9, rtol=0)
    w = torch.randn(3, 4, generator=Generator().manual_seed(1))
    assert_close(there.inverse(there.transform(w)), w.double(), atol=1e-6, rtol=1e-6)
    channels = whitening_of(moments(x, y), by_channel=True)
    assert torch.equal(channels.s != 0, torch.eye(4, dtype=torch.bool))


def test_directions_that_the_front_lacks_are_left_out() -> None:
    x, y = activations()
    x = torch.cat([x, x[:, :1] + x[:, 1:2], torch.ones(500, 1)], 1)
    there = whitening_of(moments(x, y))
    white = (x.double() - there.m) @ there.s.T
    values = torch.linalg.eigvalsh(white.T @ white / len(x))
    assert_close(values, torch.tensor([0, 0, 1, 1, 1, 1], dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["ps_inv", "ones-zeros", "orthogonal"])
def test_whitening_changes_the_path_and_not_the_start(kind: str, init: str) -> None:
    x, y = activations()
    found = moments(x, y)
    plain, whitened = (initial_stitch(GEOMETRY, found, init=init, whiten=w, **KINDS[kind]) for w in (False, True))
    expected = plain(x).detach()
    assert_close(whitened(x), expected, rtol=1e-3, atol=1e-3 * float(expected.std(0).max()) + 1e-3)
    arrays, snapshot = whitened.arrays(), whitened.snapshot()
    mapped = x @ torch.as_tensor(arrays["w"]).T + torch.as_tensor(arrays["b"])
    assert_close(mapped, whitened(x), rtol=1e-4, atol=1e-2)
    if kind == "low rank":
        assert_close(
            torch.as_tensor(arrays["left"] @ arrays["right"]), torch.as_tensor(arrays["w"]), rtol=1e-4, atol=1e-4
        )
        assert snapshot.keys() == {"left", "right", "bias"}
    if kind == "masked":
        assert torch.equal(whitened.matrix() != 0, plain.matrix() != 0)


def steps_to_fit(stitch: StitchLayer, x: Tensor, y: Tensor, rate: float) -> float:
    """The squared error left after some steps, over that of least squares."""
    best = least_squares(moments(x, y))
    floor = (x.double() @ best.w.T + best.b - y).square().mean()
    optimizer = torch.optim.Adam(stitch.parameters(), lr=rate)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (stitch(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach() / floor)


def test_an_optimizer_gets_there_in_fewer_steps() -> None:
    x, y = activations()
    found = moments(x, y)
    plain, whitened = (initial_stitch(GEOMETRY, found, init="random", whiten=w) for w in (False, True))
    assert steps_to_fit(whitened, x, y, 1e-2) < 2
    assert min(steps_to_fit(plain, x, y, rate) for rate in (1e-3, 1e-2)) > 100


def test_the_rate_falls_along_a_cosine_and_from_its_own_height() -> None:
    (whitened,), (plain,) = (combinations(asdict(StitchSpec("", "", whiten=w)) | {"lr": None}) for w in (True, False))
    assert (whitened.lr, plain.lr) == (2e-2, 1e-3)
    assert whitened.recipe.rate(15) == pytest.approx(1e-2) and plain.recipe.rate(15) == pytest.approx(1e-4)


def test_random_is_drawn_there() -> None:
    x, y = activations()
    there = whitening_of(moments(x, y))
    stitch = initial_stitch(GEOMETRY, moments(x, y), init="random", whiten=True)
    assert stitch.core().abs().max() <= 0.5 and stitch.core().std() > 0.1  # uniform within 1 / sqrt(4)
    assert_close(stitch(x).mean(0).double(), there.centre, atol=0.6 * float(there.d.max()), rtol=0)


def test_a_front_channel_of_another_scale_costs_no_other() -> None:
    x, _ = activations()
    x = x * torch.tensor([1e5, 1.0, 1.0, 1e-3])
    found = moments(x, x[:, 1:])
    stitch = initial_stitch(GEOMETRY, found, init="ps_inv", whiten=True)
    left = (stitch(x) - x[:, 1:]).square().mean(0) / x[:, 1:].var(0)
    assert left.max() < 1e-4


@pytest.mark.parametrize("kind", ["low rank", "masked"])
def test_a_random_start_keeps_the_mean_of_what_its_matrix_may_be(kind: str) -> None:
    x, y = activations()
    stitch = initial_stitch(GEOMETRY, moments(x, y), whiten=True, **KINDS[kind])
    off = (stitch(x).mean(0) - y.mean(0)).abs() / y.std(0).clamp(min=1)
    assert off.max() <= 1 / 12**0.5 + 0.05  # the bias that is drawn
