"""Paired moments and the maps that follow, against numpy in float64."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from src.metrics.algebra.moments import (
    Affine,
    PairedMoments,
    channels_last_rows,
    correlation,
    flat_rows,
    least_squares,
    procrustes,
    r_squared,
    reduced_rank,
    reduced_rank_regression,
)
from tests.metrics.test_oracles import one_thread  # noqa: F401


def data(rows=500, dx=5, dy=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dx, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(dx, dy, generator=generator, dtype=torch.float64)
    return x.to(dtype), (y + torch.randn(rows, dy, generator=generator, dtype=torch.float64)).to(dtype)


def moments_of(x, y, batch=37):
    moments = PairedMoments(x.shape[1], y.shape[1])
    for start in range(0, len(x), batch):
        moments.update(x[start : start + batch], y[start : start + batch])
    return moments


def assert_moments(moments, x, y, rtol=1e-10):
    x, y = x.double().numpy(), y.double().numpy()
    a, b = x - x.mean(0), y - y.mean(0)
    assert moments.n == len(x)
    for value, truth in ((moments.xx, a.T @ a), (moments.xy, a.T @ b), (moments.yy, b.T @ b)):
        np.testing.assert_allclose(value.numpy(), truth, rtol=rtol, atol=rtol * np.abs(truth).max())
    np.testing.assert_allclose(moments.mean_x.numpy(), x.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moments.mean_y.numpy(), y.mean(0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 37, 500])
def test_moments_match_numpy(dtype, batch):
    x, y = data(dtype=dtype)
    assert_moments(moments_of(x, y, batch), x, y)


def test_large_means_do_not_cancel():
    """Mean 30, standard deviation 0.3, in float32: naive float32 sums of squares are off in the first digit."""
    x, y = data(20000, dtype=torch.float32)
    x, y = 30 + 0.3 * x, 30 + 0.3 * y
    assert_moments(moments_of(x, y, batch=999), x, y, rtol=1e-12)


def test_long_batches_are_cut_into_pieces(monkeypatch):
    monkeypatch.setattr("src.metrics.algebra.moments.LONG", 64)
    x, y = data(1300)
    moments = PairedMoments(5, 3)
    moments.update(x, y)
    assert_moments(moments, x, y)


def test_update_leaves_its_arguments_alone():
    for dtype in (torch.float32, torch.float64):
        x, y = data(dtype=dtype)
        before = x.clone(), y.clone()
        moments_of(x, y)
        assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_moments_begun_in_inference_mode_go_on_outside():
    x, y = data()
    with torch.inference_mode():
        moments = moments_of(x[:123] + 0, y[:123] + 0)
    moments.update(x[123:], y[123:])
    assert_moments(moments, x, y)


def test_complex_rows_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="complex"):
        moments_of(x.to(torch.complex128), y)


def test_empty_batches_and_bad_shapes():
    x, y = data()
    moments = moments_of(x, y)
    moments.update(x[:0], y[:0])
    assert moments.n == 500
    for bad in ((x[:3], y[:2]), (x[:, :2], y), (x, y[:, :1]), (x[0], y[0])):
        with pytest.raises(ValueError, match="expected x"):
            moments.update(*bad)
    for function in (least_squares, procrustes, correlation):
        with pytest.raises(ValueError, match="empty"):
            function(PairedMoments(2, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    x, y = data()
    x[7, 2] = value
    with pytest.raises(ValueError, match="NaN"):
        moments_of(x, y)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rows(memory_format):
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(memory_format=memory_format)
    rows = channels_last_rows(x)
    assert rows.shape == (40, 3)
    assert torch.equal(rows, torch.stack([x[n, :, i, j] for n in range(2) for i in range(4) for j in range(5)]))
    assert torch.equal(flat_rows(x), torch.stack([image.flatten() for image in x]))
    flat = torch.zeros(4, 3)
    assert channels_last_rows(flat) is flat and flat_rows(flat).shape == (4, 3)
    with pytest.raises(ValueError, match="shape"):
        channels_last_rows(torch.zeros(2, 3, 4))


def test_least_squares_matches_lstsq():
    x, y = data()
    fit = least_squares(moments_of(x, y))
    design = np.hstack([x.numpy(), np.ones((len(x), 1))])
    truth = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    assert fit.w.shape == (3, 5) and fit.b.shape == (3,)
    np.testing.assert_allclose(fit.w.numpy(), truth[:5].T, atol=1e-12)
    np.testing.assert_allclose(fit.b.numpy(), truth[5], atol=1e-12)


def test_least_squares_takes_the_smallest_of_many():
    """A doubled, a repeated and a dead channel, at very different scales: numpy's minimum-norm answer."""
    x, y = data(400, 4)
    x = torch.cat([x, 2 * x[:, :1], x[:, 1:2] + 5, torch.full((400, 1), 30.1, dtype=torch.float64)], 1)
    x[:, 2] *= 1e-4
    fit = least_squares(moments_of(x, y))
    a = (x - x.mean(0)).numpy()
    a[:, 6] = 0
    truth = np.linalg.lstsq(a, (y - y.mean(0)).numpy(), rcond=1e-10)[0].T
    np.testing.assert_allclose(fit.w.numpy(), truth, atol=1e-11 * np.abs(truth).max())
    assert torch.equal(fit.w[:, 6], torch.zeros(3, dtype=torch.float64))


def test_least_squares_does_not_mind_scales():
    x, y = data()
    scale = torch.tensor([1e-9, 1, 1e9, 1e-5, 1e4], dtype=torch.float64)
    assert_close(least_squares(moments_of(x * scale, y)).w * scale, least_squares(moments_of(x, y)).w)


def test_least_squares_at_condition_number_1e6():
    """Sums of products square the condition number: of float64's 16 digits 4 are left in the weakest direction."""
    x, y = data(2000, 6)
    x = x @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(5)).double())[0]
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(6)).double())[0]
    x = x * torch.logspace(0, -6, 6, dtype=torch.float64) @ rotation + 30
    moments = moments_of(x, y)
    fit = least_squares(moments)
    truth = np.linalg.lstsq((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy(), rcond=None)[0].T
    assert np.linalg.norm(fit.w.numpy() - truth) / np.linalg.norm(truth) < 1e-3
    residual = (y - y.mean(0)).numpy() - (x - x.mean(0)).numpy() @ truth.T
    expected = 1 - (residual**2).sum() / (y - y.mean(0)).square().sum().item()
    assert r_squared(moments, fit) == pytest.approx(expected, abs=1e-4)


def test_least_squares_within_a_mask_is_that_of_each_row_alone():
    x, y = data()
    mask = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    fit = least_squares(moments_of(x + 3, y), mask)
    for row, allowed in enumerate(mask.bool()):
        design = np.c_[(x + 3).numpy()[:, allowed.numpy()], np.ones(len(x))]
        truth = np.linalg.lstsq(design, y[:, row].numpy(), rcond=None)[0]
        np.testing.assert_allclose(fit.w[row, allowed].numpy(), truth[:-1], atol=1e-10)
        assert fit.b[row].item() == pytest.approx(truth[-1], abs=1e-10)
        assert not fit.w[row, ~allowed].any()
    unmasked = least_squares(moments_of(x, y))
    assert_close(least_squares(moments_of(x, y), torch.ones(3, 5)), unmasked)


@pytest.mark.parametrize(("dx", "dy", "rank"), [(5, 3, 2), (3, 5, 1), (4, 4, 4)])
def test_reduced_rank_regression_is_the_best_of_its_rank(dx, dy, rank):
    x, y = data(400, dx, dy)
    x, y = x * 10.0 ** torch.arange(dx), y + x[:, :1] @ torch.ones(1, dy, dtype=torch.float64)
    fit = reduced_rank_regression(moments_of(x + 3, y), rank)
    # the oracle, written another way: truncate the fitted values themselves (Eckart and Young on X W)
    a, b = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    u, s, vt = np.linalg.svd(a @ np.linalg.lstsq(a, b, rcond=None)[0], full_matrices=False)
    np.testing.assert_allclose(a @ fit.w.numpy().T, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-6)
    assert np.linalg.matrix_rank(fit.w.numpy() * 10.0 ** np.arange(dx)) == rank
    assert_close(fit.b, y.mean(0) - fit.w @ (x + 3).mean(0))
    with pytest.raises(ValueError, match="--low-rank 1 to"):
        reduced_rank_regression(moments_of(x, y), 1 + min(dx, dy))


def test_constant_front_predicts_the_mean():
    _, y = data()
    moments = moments_of(torch.full((500, 5), 0.1, dtype=torch.float64), y)
    fit = least_squares(moments)
    assert not fit.w.any()
    assert_close(fit.b, y.mean(0))
    assert r_squared(moments, fit) == pytest.approx(0, abs=1e-15)


def test_constant_end_has_no_r_squared():
    x, _ = data()
    moments = moments_of(x, torch.full((500, 3), 30.1, dtype=torch.float64))
    with pytest.raises(ValueError, match="constant"):
        r_squared(moments, least_squares(moments))


def test_r_squared_counts_a_wrong_offset():
    x, y = data()
    moments = moments_of(x, y)
    affine = Affine(torch.ones(3, 5), torch.full((3,), 0.5))
    residual = y - (x @ affine.w.double().T + affine.b)
    assert r_squared(moments, affine) == pytest.approx(1 - (residual.square().sum() / moments.yy.trace()).item())


@pytest.mark.parametrize(("dx", "dy"), [(4, 4), (3, 6), (6, 3)])
def test_procrustes(dx, dy):
    x, y = data(300, dx, dy)
    fit = procrustes(moments_of(x + 3, y))
    a, b = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    short = torch.eye(min(dx, dy), dtype=torch.float64)
    assert_close(fit.w @ fit.w.T if dy <= dx else fit.w.T @ fit.w, short)
    wide = max(dx, dy)
    wide_a, wide_b = (np.pad(side, ((0, 0), (0, wide - side.shape[1]))) for side in (a, b))
    q, nuclear = scipy.linalg.orthogonal_procrustes(wide_a, wide_b)
    assert float((fit.w.numpy() * (b.T @ a)).sum()) == pytest.approx(nuclear)
    if dx == dy:
        np.testing.assert_allclose(fit.w.numpy(), q.T, atol=1e-10)
    assert_close(fit.b, y.mean(0) - fit.w @ (x + 3).mean(0))


def test_procrustes_finds_a_rotation():
    x, _ = data(100, 4)
    q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    fit = procrustes(moments_of(x, x @ q.T + 2))
    assert_close(fit.w, q)


def test_reduced_rank():
    matrix = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for rank in (1, 2, 3):
        left, right = reduced_rank(matrix, rank)
        assert left.shape == (5, rank) and right.shape == (rank, 3)
        lost = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
        assert_close((left @ right - matrix).norm(), lost)
    left, right = reduced_rank(torch.ones(5, 3), 2)  # of rank 1: the spare column must still be able to learn
    assert_close(left @ right, torch.ones(5, 3))
    assert not left[:, 1].any() and right[1].norm().item() == pytest.approx(1)
    for rank in (0, 4):
        with pytest.raises(ValueError, match="--low-rank 1 to 3"):
            reduced_rank(matrix, rank)


@pytest.mark.parametrize(("dx", "dy"), [(4, 4), (3, 6), (6, 3)])
def test_procrustes_of_few_directions_takes_those_that_matter_most(dx, dy):
    x, y = data(300, dx, dy)
    moments = moments_of(x, y)
    fit = procrustes(moments, rank=2)
    values = np.linalg.svd(fit.w.numpy(), compute_uv=False)
    np.testing.assert_allclose(values, [1, 1] + [0] * (min(dx, dy) - 2), atol=1e-12)
    gained = float((fit.w * moments.xy.T).sum())
    assert gained == pytest.approx(np.linalg.svd(moments.xy.numpy(), compute_uv=False)[:2].sum())
    assert_close(fit.b, y.mean(0) - fit.w @ x.mean(0))


def test_correlation():
    x, y = data()
    y[:, 1], x[:, 4], x[:, 3] = 30.1, 0.1, 1e3 + 1e-3 * x[:, 3]
    matrix = correlation(moments_of(x, y))
    assert matrix.shape == (3, 5)
    truth = np.corrcoef(np.hstack([y[:, [0, 2]], x[:, :4]]).T)[:2, 2:]
    np.testing.assert_allclose(matrix[[0, 2], :4].numpy(), truth, atol=1e-9)
    assert torch.equal(matrix[1], torch.zeros(5, dtype=torch.float64))
    assert torch.equal(matrix[:, 4], torch.zeros(3, dtype=torch.float64))
    assert correlation(moments_of(x[:, :3], x[:, :3])).max() <= 1
