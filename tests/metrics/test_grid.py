"""All metrics in one pass: views, groups, both sides of the Gram computation, health, refusals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from src.metrics import METRICS, Grid, channels_last_rows, flat_rows
from src.metrics.engine.plan import plan_cell, plan_grid
from tests.cells import cell_of, cells_of, grid_of, number_of
from tests.metrics.test_oracles import ORACLES, one_thread  # noqa: F401

IMAGES = 120


def activations(images: int = IMAGES, channels: tuple[int, int] = (5, 5), size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(images, channels[0], size, size, generator=generator)
    x += 2 * x.mean((1, 2, 3), keepdim=True)  # units vary together
    mix = torch.randn(channels[1], channels[0], generator=generator)
    y = torch.einsum("dc,nchw->ndhw", mix, x) + 0.5 * torch.randn(images, channels[1], size, size, generator=generator)
    return x + 2, y


@pytest.mark.parametrize("view", ["images", "channels", None])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_metrics_at_once(view, memory_format):
    """Every metric, gathered together with all others, equals its float64 oracle on the rows of its view."""
    x, y = (side.to(memory_format=memory_format) for side in activations())
    cell = cell_of(sorted(METRICS), x, y, view)
    values = cell.values
    assert list(values) == sorted(METRICS)
    for name, metric in METRICS.items():
        rows = flat_rows if cell.views[name] == "images" else channels_last_rows
        truth = ORACLES[name](rows(x).numpy(), rows(y).numpy())
        assert metric.number(values[name]) == pytest.approx(metric.number(truth), abs=2e-6)
        assert cell.views[name] == (view if view in metric.views else metric.views[0])
        if metric.summary:
            for key, expected in truth.items():
                np.testing.assert_allclose(values[name][key], expected, atol=1e-7)


@pytest.mark.parametrize("group", [None, 15])
@pytest.mark.parametrize(("images", "channels"), [(30, (5, 7)), (30, (2, 7)), (60, (5, 7))])
def test_few_images_are_compared_by_their_own_space(images, channels, group):
    """Where images are fewer than features, no matrix of features x features is made, whatever the groups of others."""
    generator = torch.Generator().manual_seed(5)
    source = torch.randn(images, 6, generator=generator)  # few strong directions, as svcca needs
    x, y = (
        (source @ torch.randn(6, 9 * width, generator=generator) + 1).view(images, width, 3, 3) for width in channels
    )
    x, y = (side + 0.1 * torch.randn(side.shape, generator=generator) for side in (x, y))
    names = ["svcca", "procrustes"]
    by_space = images == 30
    plan = plan_cell(names, "images", images, x.shape[1:], y.shape[1:], group)
    assert set(plan.source.values()) == {"row_space" if by_space else "moments"}
    cell = cell_of([*names, "cka"], x, y, "images", batch=11, group=group)
    for name in names:
        value = cell.values[name]
        truth = METRICS[name].number(ORACLES[name](flat_rows(x).numpy(), flat_rows(y).numpy()))
        assert value == pytest.approx(truth, abs=2e-7)
    first = group or images  # which cka sees at once
    assert cell.health["images"].rank == tuple(min(9 * width, first - 1) for width in channels)


def test_a_regression_weighs_weak_features_and_strong_ones_alike_however_few_the_images():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(100, 20, generator=generator)
    y = x @ torch.randn(20, 300, generator=generator) + torch.randn(100, 300, generator=generator)
    scaled = x * torch.tensor([1e8] + [1.0] * 19)
    values = [number_of("lr", side, y, "images") for side in (x, scaled)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_order_and_repetition_of_names_do_not_matter():
    x, y = activations()
    values = cell_of(["l2", "cka", "l2"], x, y).values
    assert list(values) == ["l2", "cka"]
    assert values == pytest.approx(cell_of(["cka", "l2"], x, y, batch=7).values, rel=1e-6)


def test_groups_are_averaged_by_images():
    """Batches straddle groups; what follows from sums is exact all the same."""
    x, y = activations()
    cell = cell_of(["cka", "mutual_knn", "cca", "l2"], x, y, group=46, batch=17)
    values = cell.values
    for name in ("cka", "mutual_knn"):
        groups = [(46, slice(0, 46)), (46, slice(46, 92)), (28, slice(92, 120))]
        truth = sum(n * ORACLES[name](flat_rows(x[part]), flat_rows(y[part])) for n, part in groups) / 120
        assert values[name] == pytest.approx(truth, abs=2e-6)
    for name in ("cca", "l2"):
        assert values[name] == pytest.approx(ORACLES[name](flat_rows(x), flat_rows(y)), abs=1e-6)
    warnings = cell.health["images"].warnings
    assert any("mean over groups of about 46 images" in warning for warning in warnings)


def test_health():
    x, y = activations()
    x[:, 1], y[:, 0] = 30.1, 0.0
    x[:, 3] = 2 * x[:, 2]
    health = cell_of(["cka", "cca", "ps_inv", "l2"], x, y).health
    assert set(health) == {"images", "channels"}
    channels, images = health["channels"], health["images"]
    assert (channels.images, channels.rows, channels.features) == (IMAGES, IMAGES * 9, (5, 5))
    assert channels.rank == (3, 4) and channels.dead_channels == (1, 1) and channels.cka_bias is None
    assert (images.rows, images.features, images.rank) == (IMAGES, (45, 45), (27, 36))
    assert images.dead_channels == (1, 1) and not images.rank_is_bound
    expected = ORACLES["cka"](flat_rows(x), flat_rows(y)) - ORACLES["cka_debiased"](flat_rows(x), flat_rows(y))
    assert images.cka_bias == pytest.approx(expected, abs=1e-6)
    assert any("not unique" in warning for warning in channels.warnings)
    assert any("use cka_debiased" in warning for warning in images.warnings)
    assert any("rows for each feature" in warning for warning in images.warnings)


def test_health_of_stored_features_and_of_differences():
    x, y = activations()
    x[:, 2] = 7
    stored = cell_of(["cka_rbf"], x, y).health["images"]
    assert stored.rank == (36, 45) and stored.dead_channels == (1, 0) and not stored.rank_is_bound
    differences = cell_of(["l2"], x, y).health["images"]
    assert differences.rank is None and differences.dead_channels == (1, 0) and differences.cka_bias is None
    assert differences.warnings == ()
    far = cell_of(["l2", "cka"], x + 1e5, y).health["images"].warnings
    assert any("float32 has lost" in warning for warning in far)


def test_a_channel_with_one_live_position_is_alive():
    x, y = activations()
    x[:, 2] = 7
    x[:, 2, 1, 1] = y[:, 0, 1, 1]
    for names in (["cka_rbf"], ["cca"], ["l2"]):
        assert cell_of(names, x, y).health["images"].dead_channels == (0, 0)


def test_rank_of_many_images_is_a_bound(monkeypatch):
    monkeypatch.setattr("src.metrics.algebra.layer.RANK_IMAGES", 20)
    monkeypatch.setattr("src.metrics.diagnostics.RANK_FEATURES", 9)
    x, y = activations()
    for names in (["mutual_knn"], ["cca"]):
        health = cell_of(names, x, y).health["images"]
        assert health.rank_is_bound and health.rank is not None and max(health.rank) <= 19


def test_healthy_data_raise_no_doubt():
    x, y = activations(3000, channels=(3, 3), size=2)
    health = cell_of(["cka", "cca", "lr", "procrustes", "l2"], x, y).health
    assert [h.warnings for h in health.values()] == [()]


def test_wrong_batches_are_refused():
    x, y = activations()
    grid = grid_of(["l2"], [x], [y])
    with pytest.raises(ValueError, match="121 images came where 120"):
        grid.update([x[:1]], [y[:1]])
    missing = Grid(plan_grid(["cka"], n_images=200, shapes_x=[(5, 3, 3)], shapes_y=[(5, 3, 3)]))
    for xs, ys in (([x[:, :2]], [y]), ([x[:10]], [y[:9]]), ([x, x], [y])):
        with pytest.raises(ValueError, match="expected activations of shapes"):
            missing.update(xs, ys)
    missing.update([x], [y])
    with pytest.raises(ValueError, match="120 images came where 200"):
        missing.cells()


def test_single_positions_make_views_equal():
    x, y = activations(size=1)
    cell = cell_of(["corr", "cca", "cka"], x.flatten(1), y.flatten(1), "channels")
    assert set(cell.views.values()) == {"images"} and list(cell.health) == ["images"]
    by_image = cell_of(["corr", "cca", "cka"], x, y)
    for name in cell.values:
        assert cell.number(name) == by_image.number(name)


def test_constants_are_refused_metric_by_metric():
    x, y = activations()
    cell = cell_of(["cka", "cka_rbf", "l2", "cca", "corr", "l2_relative"], torch.ones_like(x), y)
    assert list(cell.unavailable) == ["cka", "cka_rbf", "cca", "corr"] and list(cell.values) == ["l2", "l2_relative"]
    assert all("constant" in reason or "median" in reason for reason in cell.unavailable.values())


def layers(images: int = 100) -> tuple[list[Tensor], list[Tensor]]:
    """Layers that depend on one another, so that no metric is near 0 for all pairs."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(images, 6, generator=generator)

    def layer(shape: tuple[int, ...]) -> Tensor:
        mixed = source @ torch.randn(6, math.prod(shape), generator=generator)
        return (mixed + torch.randn(mixed.shape, generator=generator) + 3).view(images, *shape)

    return [layer(shape) for shape in ((4, 3, 3), (2, 3, 3), (5,))], [layer(shape) for shape in ((4, 3, 3), (5,))]


OPTIONS = [{}, {"view": "channels"}, {"view": "images"}, {"group": 25}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_pair_has_the_same_value_alone_and_in_a_grid(options):
    """Whatever the company, in layers and in metrics."""
    xs, ys = layers()
    cells = cells_of(sorted(METRICS), xs, ys, batch=17, **options)
    for (i, j), cell in cells.items():
        for name in METRICS:
            try:
                alone = cell_of([name], xs[i], ys[j], batch=17, **options)
            except ValueError as error:
                assert cell.unavailable[name] == str(error)
                continue
            assert alone.unavailable == {key: why for key, why in cell.unavailable.items() if key == name}
            assert alone.number(name) == pytest.approx(cell.number(name), rel=1e-12, abs=1e-12, nan_ok=True)


def outlier(images=400, features=45):
    x, y = (side[:, :5, :3, :3].flatten(1)[:, :features].clone() for side in activations(images))
    x[0], y[0] = 1e4 * x[0], 1e4 * y[0]
    return x, y


@pytest.mark.parametrize(("images", "tolerance"), [(100, 1e-5), (400, 1e-8)])  # float32 rows, and float64 sums
def test_an_outlier_does_not_drown_the_debiased_estimate(images, tolerance):
    """Its diagonal entry is 1e8 times the others; the estimator wants the others."""
    x, y = outlier(images)
    truth = ORACLES["cka_debiased"](x.double().numpy(), y.double().numpy())
    for names in (["cka_debiased"], ["cka_debiased", "mutual_knn"], sorted(METRICS)):
        assert cell_of(names, x, y).number("cka_debiased") == pytest.approx(truth, abs=tolerance)
    others = [side[:, :20] for side in (x, y)]
    cells = cells_of(["cka_debiased"], [others[0], x], [y, others[1]])
    assert cells[1, 0].number("cka_debiased") == pytest.approx(truth, abs=tolerance)


def test_a_refused_metric_leaves_its_neighbours_alone():
    """Too many principal directions for svcca, which procrustes and corr do not mind."""
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(20, 12, generator=generator) for _ in range(2))
    for xs in ([x], [x, x[:, :3]]):
        cells = cells_of(["svcca", "procrustes", "corr"], xs, [y], group=10)
        assert list(cells[0, 0].unavailable) == ["svcca"] and list(cells[0, 0].values) == ["procrustes", "corr"]


def test_a_grid_of_one_warns_as_a_pair_does():
    x, y = activations(60)
    x[:, :3] = 7
    for names, group in ((["cka", "mutual_knn"], 20), (["procrustes"], None), (["ps_inv"], None)):
        pair = cell_of(names, x, y, group=group).health
        grid = cells_of(names, [x, x[:, :2]], [y], group=group)[0, 0].health
        assert [health.warnings for health in pair.values()] == [health.warnings for health in grid.values()]
        assert any("vary" in text for health in pair.values() for text in health.warnings)


def test_groups_give_the_minibatch_estimator():
    """Nguyen et al. 2021: each unbiased HSIC averaged over groups first, whatever the scale of a group."""
    x, y = (flat_rows(side) for side in activations())
    x[46:92] *= 1000  # groups differ in scale: their HSICs have common units all the same
    groups = [slice(0, 46), slice(46, 92), slice(92, 120)]
    hsic = np.zeros(3)
    for part in groups:
        a, b = (side[part].double().numpy() for side in (x, y))
        a, b = (side - side.mean(0) for side in (a, b))
        k, m = (side @ side.T - np.diag((side**2).sum(1)) for side in (a, b))
        n = len(a)
        for index, (p, q) in enumerate(((k, m), (k, k), (m, m))):
            song = np.sum(p * q) + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * p.sum(0) @ q.sum(0)
            hsic[index] += n / 120 * song / (n * (n - 3))
    expected = hsic[0] / np.sqrt(hsic[1] * hsic[2])
    assert number_of("cka_debiased", x, y, group=46, batch=17) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="3 images are too few"):
        number_of("cka_debiased", x[:6], y[:6], group=3)


def test_complex_activations_are_refused():
    x, y = activations()
    for name in ("cka", "cca", "l2", "mutual_knn"):
        with pytest.raises(ValueError, match="complex"):
            number_of(name, x.to(torch.complex64), y)
        with pytest.raises(ValueError, match="complex"):
            METRICS[name].of_rows(flat_rows(x).to(torch.complex64), flat_rows(y))


def test_a_grid_begun_in_inference_mode_goes_on_outside():
    x, y = activations()
    with torch.inference_mode():
        shapes = [(5, 3, 3)]
        grid = Grid(plan_grid(["cka", "cca", "l2"], "channels", n_images=120, shapes_x=shapes, shapes_y=shapes))
        grid.update([x[:50] + 0], [y[:50] + 0])
    grid.update([x[50:]], [y[50:]])
    expected = cell_of(["cka", "cca", "l2"], x, y, "channels").values
    assert grid.cells()[0, 0].values == pytest.approx(expected, rel=1e-9)


def test_few_images_of_wide_layers_need_no_matrix_of_features():
    generator = torch.Generator().manual_seed(2)
    xs = [torch.randn(20, 800, generator=generator), torch.randn(20, 3, generator=generator)]
    ys = [xs[0] + torch.randn(20, 800, generator=generator)]
    names = ["procrustes", "svcca"]
    cells = cells_of(names, xs, ys)
    for i, x in enumerate(xs):
        assert cells[i, 0].number("procrustes") == pytest.approx(ORACLES["procrustes"](x.numpy(), ys[0].numpy()))
        assert list(cells[i, 0].unavailable) == ["svcca"]  # too many principal directions
    assert any("procrustes: biased downwards" in text for text in cells[0, 0].health["images"].warnings)


def test_a_tie_of_canonical_correlations_is_reported_and_does_no_harm():
    """Two of three correlations are 1: any axes of that plane are canonical, and a remix of y takes others."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    y = torch.cat([x[:, :2] @ torch.randn(2, 2, generator=generator).double(), noise + 0.5 * x[:, 2:4]], 1)
    cells = []
    for _ in range(5):
        remix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        cells.append(cell_of(["pwcca"], x, y @ remix))
    values = [cell.number("pwcca") for cell in cells]
    assert max(values) - min(values) < 1e-9
    assert any("2 of 4 correlations tie" in text for text in cells[0].health["images"].warnings)
    loose = cell_of(["pwcca"], x, y + 0.1 * torch.randn(200, 4, generator=generator)).health["images"].warnings
    assert not any("tie" in text for text in loose)
