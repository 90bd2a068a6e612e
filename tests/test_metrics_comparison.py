"""All metrics in one pass: views, groups, both sides of the Gram computation, health, refusals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from src.metrics import METRICS, Comparison, channels_last_rows, flat_rows
from src.metrics.cka import cka_of_sums, debiased_cka_of_sums
from src.metrics.gram import Energies, gram_sums, gram_sums_of_moments
from src.metrics.groups import group_sizes
from src.metrics.linear_maps import moments_of
from src.metrics.neighbours import median_squared_distance, rbf_cka
from src.metrics.rows import unit
from src.metrics.store import FeatureStore
from tests.test_metrics_oracles import ORACLES, one_thread  # noqa: F401

IMAGES = 120


def activations(images: int = IMAGES, channels: tuple[int, int] = (5, 5), size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(images, channels[0], size, size, generator=generator)
    mix = torch.randn(channels[1], channels[0], generator=generator)
    y = torch.einsum("dc,nchw->ndhw", mix, x) + 0.5 * torch.randn(images, channels[1], size, size, generator=generator)
    return x + 2, y


def run(names, x, y, view=None, batch=50, **options) -> Comparison:
    comparison = Comparison(names, view, n_images=len(x), shape_x=x.shape[1:], shape_y=y.shape[1:], **options)
    for start in range(0, len(x), batch):
        comparison.update(x[start : start + batch], y[start : start + batch])
    return comparison


@pytest.mark.parametrize("view", ["images", "channels", None])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_metrics_at_once(view, memory_format):
    """Every metric, gathered together with all others, equals its float64 oracle on the rows of its view."""
    x, y = (side.to(memory_format=memory_format) for side in activations())
    comparison = run(sorted(METRICS), x, y, view)
    values = comparison.result()
    assert list(values) == sorted(METRICS)
    for name, metric in METRICS.items():
        by_image = comparison.views[name] == "images" or metric.needs == "difference"
        rows = flat_rows if by_image else channels_last_rows
        truth = ORACLES[name](rows(x).numpy(), rows(y).numpy())
        assert metric.number(values[name]) == pytest.approx(metric.number(truth), abs=2e-6)
        assert comparison.views[name] == (view if view in metric.views else metric.views[0])
        if metric.summary:
            for key, expected in truth.items():
                np.testing.assert_allclose(values[name][key], expected, atol=1e-7)


@pytest.mark.parametrize("group", [None, 15])
@pytest.mark.parametrize(("images", "channels"), [(30, (5, 7)), (30, (2, 7)), (60, (5, 7))])
def test_few_images_are_compared_by_their_own_space(images, channels, group):
    """Where images are fewer than features, no matrix of features x features is made, unless groups forbid it."""
    generator = torch.Generator().manual_seed(5)
    source = torch.randn(images, 6, generator=generator)  # few strong directions, as svcca needs
    x, y = (
        (source @ torch.randn(6, 9 * width, generator=generator) + 1).view(images, width, 3, 3) for width in channels
    )
    x, y = (side + 0.1 * torch.randn(side.shape, generator=generator) for side in (x, y))
    names = ["svcca", "procrustes"]
    comparison = run(names, x, y, "images", batch=11, group=group)
    by_space = images == 30 and group is None
    assert bool(comparison.grouped) == by_space and list(comparison.moments) == ["images"] * (not by_space)
    for name, value in comparison.result().items():
        truth = METRICS[name].number(ORACLES[name](flat_rows(x).numpy(), flat_rows(y).numpy()))
        assert value == pytest.approx(truth, abs=2e-7)
    assert comparison.health()["images"].rank == tuple(min(9 * width, images - 1) for width in channels)


def test_a_regression_weighs_weak_features_and_strong_ones_alike_however_few_the_images():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(100, 20, generator=generator)
    y = x @ torch.randn(20, 300, generator=generator) + torch.randn(100, 300, generator=generator)
    scaled = x * torch.tensor([1e8] + [1.0] * 19)
    values = [run(["lr"], side, y, "images").result()["lr"] for side in (x, scaled)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_advice_about_few_images_can_be_followed():
    def make(n, shape, **options):
        return Comparison(["svcca"], "images", n_images=n, shape_x=shape, shape_y=shape, **options)

    with pytest.raises(ValueError, match=r"svcca would keep 16.1 GB .*--memory 17, or use --view channels\Z"):
        make(10_000, (64, 56, 56), memory=8e9)
    assert make(100, (64, 32, 32), memory=8e9)
    with pytest.raises(ValueError, match=r"GB of sums of products; use --view channels or leave out --group-at\Z"):
        make(100, (64, 32, 32), group=50)


def test_order_and_repetition_of_names_do_not_matter():
    x, y = activations()
    values = run(["l2", "cka", "l2"], x, y).result()
    assert list(values) == ["l2", "cka"]
    assert values == pytest.approx(run(["cka", "l2"], x, y, batch=7).result(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [(30, 40), (300, 200)])
def test_both_sides_of_the_gram_agree(features, dtype, monkeypatch):
    """Blocks of samples, blocks of features and streamed moments give one answer to 1e-6, biased and debiased."""
    monkeypatch.setattr("src.metrics.gram.BLOCK", 64)
    monkeypatch.setattr("src.metrics.gram.upper_blocks.__defaults__", (64,))
    monkeypatch.setattr("src.metrics.gram.RUN", 50)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(150, features[0], generator=generator)
    y = x @ torch.randn(features[0], features[1], generator=generator) + 10 * torch.randn(150, features[1])
    x, y = x.to(dtype) + 30, y.to(dtype)
    centred = unit(x, "first"), unit(y, "second")
    energies = Energies()
    for start in range(0, 150, 40):
        energies.update(x[start : start + 40], y[start : start + 40])
    moments = moments_of(x, y)
    streamed = gram_sums_of_moments(moments, energies)
    for function, name in ((cka_of_sums, "cka"), (debiased_cka_of_sums, "cka_debiased")):
        truth = ORACLES[name](x.numpy(), y.numpy())
        for sums in (gram_sums(*centred, "samples"), gram_sums(*centred, "features"), streamed):
            assert function(sums) == pytest.approx(truth, abs=1e-6)
        assert float(METRICS[name].of_rows(x, y)) == pytest.approx(truth, abs=1e-6)
    # Kornblith et al. 2019, table 1: |xy|^2 / (|xx| |yy|)
    expected = moments.xy.norm() ** 2 / (moments.xx.norm() * moments.yy.norm())
    assert cka_of_sums(streamed) == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(("images", "stored"), [(40, True), (600, False)])
def test_the_cheaper_side_is_chosen(images, stored):
    x, y = activations(images, size=2)
    comparison = run(["cka"], x, y)
    assert (comparison.grouped is not None) == stored
    assert comparison.result()["cka"] == pytest.approx(ORACLES["cka"](flat_rows(x), flat_rows(y)), abs=2e-6)


@pytest.mark.parametrize("images", [3, 4, 7, 90])
def test_median_distance_is_exact(images, monkeypatch):
    """In blocks and from a bracket it is the median of the whole matrix, also where the bracket misses."""
    monkeypatch.setattr("src.metrics.gram.upper_blocks.__defaults__", (32,))
    x = torch.randn(images, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    truth = np.median(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square().numpy())
    assert median_squared_distance(x) == pytest.approx(truth, rel=1e-12)
    monkeypatch.setattr("src.metrics.neighbours._bracket", lambda _: (1e-9, 2e-9))
    assert median_squared_distance(x) == pytest.approx(truth, rel=1e-12)


def test_blocks_do_not_change_kernels_and_neighbours(monkeypatch):
    x, y = (flat_rows(side) for side in activations())
    values = [METRICS[name].of_rows(x, y) for name in ("cka_rbf", "mutual_knn")]
    monkeypatch.setattr("src.metrics.gram.BLOCK", 32)
    monkeypatch.setattr("src.metrics.neighbours.BLOCK", 32)
    monkeypatch.setattr("src.metrics.gram.upper_blocks.__defaults__", (32,))
    assert [METRICS[name].of_rows(x, y) for name in ("cka_rbf", "mutual_knn")] == pytest.approx(values, abs=1e-7)


def test_more_than_half_equal_images_have_no_bandwidth():
    x, _ = (flat_rows(side) for side in activations())
    x[:100] = x[0]
    with pytest.raises(ValueError, match="median distance"):
        rbf_cka(x, x)


@pytest.mark.parametrize(
    ("n", "group", "sizes"),
    [(10, None, [10]), (10, 20, [10]), (10, 5, [5, 5]), (11, 5, [5, 6]), (13, 5, [5, 5, 3]), (12, 5, [5, 7])],
)
def test_group_sizes(n, group, sizes):
    assert group_sizes(n, group) == sizes
    with pytest.raises(ValueError, match="--group-at"):
        group_sizes(10, 1)


def test_groups_are_averaged_by_images():
    """Batches straddle groups; what follows from sums is exact all the same."""
    x, y = activations()
    comparison = run(["cka", "cka_debiased", "mutual_knn", "cca", "l2"], x, y, group=46, batch=17)
    values = comparison.result()
    for name in ("cka", "cka_debiased", "mutual_knn"):
        groups = [(46, slice(0, 46)), (46, slice(46, 92)), (28, slice(92, 120))]
        truth = sum(n * ORACLES[name](flat_rows(x[part]), flat_rows(y[part])) for n, part in groups) / 120
        assert values[name] == pytest.approx(truth, abs=2e-6)
    for name in ("cca", "l2"):
        assert values[name] == pytest.approx(ORACLES[name](flat_rows(x), flat_rows(y)), abs=1e-6)
    warnings = comparison.health()["images"].warnings
    assert any("mean over groups of about 46 images" in warning for warning in warnings)


def test_health():
    x, y = activations()
    x[:, 1], y[:, 0] = 30.1, 0.0
    x[:, 3] = 2 * x[:, 2]
    comparison = run(["cka", "cca", "ps_inv", "l2"], x, y)
    health = comparison.health()
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
    stored = run(["cka_rbf"], x, y).health()["images"]
    assert stored.rank == (36, 45) and stored.dead_channels == (1, 0) and not stored.rank_is_bound
    differences = run(["l2"], x, y).health()["images"]
    assert differences.rank is None and differences.dead_channels == (1, 0) and differences.cka_bias is None
    assert differences.warnings == ()
    far = run(["l2", "cka"], x + 1e5, y).health()["images"].warnings
    assert any("float32 has lost" in warning for warning in far)


def test_a_channel_with_one_live_position_is_alive():
    x, y = activations()
    x[:, 2] = 7
    x[:, 2, 1, 1] = y[:, 0, 1, 1]
    for names in (["cka_rbf"], ["cca"], ["l2"]):
        assert run(names, x, y).health()["images"].dead_channels == (0, 0)


def test_rank_of_many_images_is_a_bound(monkeypatch):
    monkeypatch.setattr("src.metrics.health.RANK_IMAGES", 20)
    monkeypatch.setattr("src.metrics.health.RANK_FEATURES", 9)
    x, y = activations()
    for names in (["mutual_knn"], ["cca"]):
        health = run(names, x, y).health()["images"]
        assert health.rank_is_bound and health.rank is not None and max(health.rank) <= 19


def test_healthy_data_raise_no_doubt():
    x, y = activations(3000, channels=(3, 3), size=2)
    health = run(["cka", "cca", "lr", "procrustes", "l2"], x, y).health()
    assert [h.warnings for h in health.values()] == [()]


def test_refusals_before_any_work():
    def make(name, shape_x=(5, 3, 3), shape_y=(5, 3, 3), n=IMAGES, view=None):
        return Comparison([name], view, n_images=n, shape_x=shape_x, shape_y=shape_y)

    with pytest.raises(ValueError, match=r"unknown metric ckka; known are .*cka_rbf"):
        make("ckka")
    with pytest.raises(ValueError, match=r"cca of 45 features needs at least 47 images, got 46.*--view channels"):
        make("cca", n=46)
    assert make("cca", n=47) and make("cca", n=46, view="channels") and make("cka", n=46)
    with pytest.raises(ValueError, match=r"l2 needs activations of one shape, got \(5, 3, 3\) and \(5, 2, 2\)"):
        make("l2", shape_y=(5, 2, 2))
    with pytest.raises(ValueError, match=r"cca of 45 features needs at least 47 images, got 46.*use more images\Z"):
        make("cca", shape_y=(5, 2, 2), n=46)  # channels have no equal positions
    with pytest.raises(ValueError, match=r"cca by channels needs equal positions, got \S+ 3, 3\) and \S+ 2, 2\)\Z"):
        make("cca", shape_y=(5, 2, 2), n=46, view="channels")
    with pytest.raises(ValueError, match=r"procrustes by channels needs .*--view images"):
        make("procrustes", shape_y=(5, 2, 2), view="channels")
    for shape, n in (((16, 30, 30), 20_000), ((64, 30, 30), 12_000)):
        with pytest.raises(ValueError, match=r"GB of sums of products; use --view channels"):
            make("procrustes", shape, shape, n)
    assert make("procrustes", (16, 30, 30), (16, 30, 30))
    assert make("cka", (16, 30, 30), (16, 15, 15), n=10)


def test_wrong_batches_are_refused():
    x, y = activations()
    comparison = run(["l2"], x, y)
    with pytest.raises(ValueError, match="121 images came where 120"):
        comparison.update(x[:1], y[:1])
    missing = Comparison(["cka"], n_images=200, shape_x=(5, 3, 3), shape_y=(5, 3, 3))
    with pytest.raises(ValueError, match="expected activations of shapes"):
        missing.update(x[:, :2], y)
    with pytest.raises(ValueError, match="expected activations of shapes"):
        missing.update(x[:10], y[:9])
    missing.update(x, y)
    with pytest.raises(ValueError, match="120 images came where 200"):
        missing.result()


def test_single_positions_make_views_equal():
    x, y = activations(size=1)
    comparison = run(["corr", "cca", "cka"], x.flatten(1), y.flatten(1), "channels")
    assert set(comparison.views.values()) == {"images"} and list(comparison.health()) == ["images"]
    by_image = run(["corr", "cca", "cka"], x, y).result()
    for name, value in comparison.result().items():
        assert METRICS[name].number(value) == METRICS[name].number(by_image[name])


def test_failing_metric_is_named():
    x, y = activations()
    for name in ("cka", "cka_rbf", "cca", "corr"):
        with pytest.raises(ValueError, match=f"^{name}: .*constant|^{name}: .*median"):
            run([name], torch.ones_like(x), y).result()


def test_store_keeps_to_its_size():
    x, y = (flat_rows(side) for side in activations())
    store = FeatureStore(IMAGES, 45, 45)
    store.update(x[:100], y[:100])
    with pytest.raises(ValueError, match="100 images came where 120"):
        store.centre()
    with pytest.raises(ValueError, match="140 images came where 120"):
        store.update(x[:40], y[:40])
    with pytest.raises(ValueError, match="holds 120"):
        store.clear(121)
    store.update(x[100:], y[100:])
    before = store.x.clone()
    rows, _ = store.centred_rows()
    scale = (rows[0] - rows[1]).norm() / (before[0] - before[1]).norm()
    assert math.log2(float(scale)) == pytest.approx(round(math.log2(float(scale))), abs=1e-4)
    np.testing.assert_allclose(rows.double().mean(0).numpy(), 0, atol=1e-7)
    assert torch.equal(store.centred_rows()[0], rows)


def test_what_would_keep_too_much_says_which_group_fits():
    def comparison(names: list[str], **options) -> Comparison:
        return Comparison(names, n_images=19_962, shape_x=(508, 14, 14), shape_y=(508, 14, 14), **options)

    with pytest.raises(ValueError, match=r"cka would keep 15\.9 GB .* --group-at 10043, or .* --memory 16$"):
        comparison(["cka", "l2"], memory=8e9)
    comparison(["cka", "l2"], memory=1e8, group=100)
    comparison(["l2", "corr"], memory=1)


@pytest.mark.parametrize("images", [7, 100, 149, 151, 199, 1000])
def test_the_group_that_is_named_is_allowed(images: int):
    def comparison(group: int | None) -> Comparison:
        return Comparison(["cka_rbf"], n_images=1000, shape_x=(5,), shape_y=(7,), group=group, memory=4 * 12 * images)

    if images == 1000:
        comparison(None)
        return
    with pytest.raises(ValueError, match="--group-at") as refused:
        comparison(None)
    comparison(int(str(refused.value).split("--group-at ")[1].split(",")[0]))
