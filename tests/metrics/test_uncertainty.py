"""Intervals and null distributions of metrics: closed forms against the long way, and how often they hold the truth."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from src.metrics import METRICS
from src.metrics.algebra.moments import PairedMoments
from src.metrics.certainty.jackknife import gram_vectors
from src.metrics.certainty.uncertainty import FEW, Sample, _interval, combined, intervals, nulls


def related(n: int, seed: int = 0, noise: float = 1.0, dx: int = 6, dy: int = 5) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    x = torch.randn(n, dx, generator=generator) + 3
    mix = torch.randn(dx, dy, generator=Generator().manual_seed(99))
    return x, x @ mix + noise * torch.randn(n, dy, generator=generator)


def sample(n: int, seed: int = 0, **more) -> Sample:
    x, y = related(n, seed, **more)
    return Sample(x, y, (x.shape[1],), (y.shape[1],))


@pytest.mark.parametrize("name", ["cka", "cka_debiased"])
@pytest.mark.parametrize("outlier", [1.0, 1e4])
def test_leaving_out_an_image_is_leaving_it_out(name: str, outlier: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = related(40)
    x[0] *= outlier
    seen = []
    monkeypatch.setattr(
        "src.metrics.certainty.uncertainty._jackknife", lambda metric, value, left_out: seen.append(left_out)
    )
    _interval(METRICS[name], "images", Sample(x.double(), y.double(), (6,), (5,)))
    (found,) = seen
    kept = [torch.arange(40) != i for i in range(40)]
    expected = torch.tensor([METRICS[name].of_rows(x[some].double(), y[some].double()) for some in kept])
    assert_close(found, expected.double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["cka", "cka_debiased"])
def test_the_null_has_the_moments_of_all_pairings(name: str) -> None:
    x, y = related(30, noise=3.0)
    mean, deviation = gram_vectors(x.double(), y.double()).null(debiased=name == "cka_debiased")
    generator = Generator().manual_seed(1)
    orders = [torch.randperm(30, generator=generator) for _ in range(1500)]
    drawn = torch.tensor([METRICS[name].of_rows(x.double(), y[order].double()) for order in orders])
    assert mean == pytest.approx(float(drawn.mean()), abs=4 * float(drawn.std()) / math.sqrt(1500))
    assert deviation == pytest.approx(float(drawn.std()), rel=0.05)


def test_blocks_add_up_to_the_whole() -> None:
    x, y = related(100)
    parts = []
    for block in torch.arange(100).tensor_split(7):
        parts.append(PairedMoments(6, 5))
        parts[-1].update(x[block], y[block])
    whole = PairedMoments(6, 5)
    whole.update(x, y)
    for key in ("n", "mean_x", "mean_y", "xx", "xy", "yy"):
        one, other = (torch.as_tensor(getattr(side, key)) for side in (combined(parts), whole))
        assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_an_interval_around_its_value_and_a_null_below_it(name: str) -> None:
    metric, x = METRICS[name], related(120)[0]
    x = x + x.mean(1, keepdim=True)  # features that vary together, as cka_units needs
    y = x @ torch.linalg.qr(torch.randn(6, 6, generator=Generator().manual_seed(5)))[0] + 0.1
    y = (
        x + 0.3 * torch.randn(x.shape, generator=Generator().manual_seed(6))
        if metric.same_shape
        else y + 0.2 * y.square()
    )
    one = Sample(x, y, (6,), (6,))
    found, null = intervals([name], None, one), nulls([name], None, one, permutations=30)
    low, high = found.values[name]
    value = metric.number(metric.of_rows(x, y))
    assert low <= value <= high and low < high, (low, value, high)
    mean, quantile = null.values[name]
    assert metric.range[0] <= mean and (mean < quantile if metric.higher_is_better else mean > quantile)
    assert mean < value if metric.higher_is_better else mean > value


@pytest.mark.parametrize("name", ["cka", "ps_inv", "corr", "procrustes"])
def test_positions_of_an_image_go_together(name: str) -> None:
    """Images without variation among their positions are as good as one position each."""
    x, y = related(60)
    wide = Sample(
        x[:, :, None].expand(-1, -1, 4).flatten(1), y[:, :, None].expand(-1, -1, 4).flatten(1), (6, 2, 2), (5, 2, 2)
    )
    plain = Sample(x, y, (6,), (5,))
    assert intervals([name], "channels", wide).values[name] == pytest.approx(
        intervals([name], "channels" if name != "cka" else None, plain).values[name],
        abs=2e-2 if name == "cka" else 1e-9,
    )


@pytest.mark.parametrize("name", ["mutual_knn", "second_cos"])
def test_intervals_of_neighbours_are_as_wide_as_samples_differ(name: str) -> None:
    """Neighbours held fixed would give six tenths of this width, for `mutual_knn`."""
    samples = [sample(80, seed) for seed in range(40)]
    values = torch.tensor([METRICS[name].of_rows(one.x, one.y) for one in samples])
    halves = torch.tensor([intervals([name], None, one).values[name] for one in samples[:15]]).diff() / 2
    assert 0.75 < float(halves.mean()) / (1.96 * float(values.std())) < 1.5


def test_what_has_no_value_has_no_interval_and_takes_nobody_along() -> None:
    one = Sample(torch.randn(30, 4), torch.ones(30, 3), (4,), (3,))
    found = intervals(["cka", "l2", "mutual_knn"], None, one)
    assert not found.values and found.unavailable.keys() == {"cka", "mutual_knn"}


def test_many_images_are_drawn_from() -> None:
    found = nulls(["lr", "cka"], None, sample(FEW + 50), permutations=3)
    assert found.how["lr"] == f"3 permutations of {FEW} images"
    assert found.how["cka"] == f"mean in closed form, quantile of 3 permutations of {FEW} images"


@pytest.mark.parametrize("name", ["cka_debiased", "lr"])
def test_nineteen_of_twenty_intervals_hold_the_truth(name: str) -> None:
    truth = METRICS[name].number(METRICS[name].of_rows(*related(30_000, 7)))
    found = [intervals([name], None, sample(150, seed)).values[name] for seed in range(100, 150)]
    assert sum(low <= truth <= high for low, high in found) >= 42


def test_what_no_rotation_changes_is_computed_in_the_span_of_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["procrustes", "ang_shape", "svcca"]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 60, generator=generator), torch.randn(24, 40, generator=generator)
    sample = Sample(x, x[:, :40] + y, (60,), (40,))
    asked = {
        "intervals": lambda: intervals(names, None, sample),
        "nulls": lambda: nulls(names, None, sample, permutations=4),
    }
    found = {kind: ask().values for kind, ask in asked.items()}
    monkeypatch.setattr(Sample, "in_row_space", lambda self: self)
    for kind, ask in asked.items():
        for name, values in ask().values.items():
            assert found[kind][name] == pytest.approx(values, abs=1e-6), (kind, name)
    monkeypatch.setattr(Sample, "in_row_space", lambda self: pytest.fail("not needed"))
    intervals(names, None, Sample(x[:, :5], y[:, :5], (5,), (5,)))
    with pytest.raises(pytest.fail.Exception):
        intervals(names, None, sample)


@pytest.mark.parametrize("name", ["procrustes", "lr", "dist_corr", "l2_relative"])
def test_the_order_of_classes_widens_no_interval(name: str) -> None:
    """Images that come class by class, as files of a folder do."""
    generator = Generator().manual_seed(0)
    centres = 2 * torch.randn(20, 6, generator=generator)
    x = centres.repeat_interleave(20, 0) + torch.randn(400, 6, generator=generator)
    y = x + 0.5 * torch.randn(400, 6, generator=generator)
    order = torch.randperm(400, generator=generator)
    widths = []
    for some in (torch.arange(400), order):
        low, high = intervals([name], None, Sample(x[some], y[some], (6,), (6,))).values[name]
        widths.append(high - low)
    assert widths[0] < 2 * widths[1]


@pytest.mark.parametrize("name", ["procrustes", "lr"])
def test_too_few_images_for_an_interval_are_named(name: str) -> None:
    found = intervals([name], "images", sample(3, dx=1, dy=1))
    assert not found.values and "3 images are too few" in found.unavailable[name]
