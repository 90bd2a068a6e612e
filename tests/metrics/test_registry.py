"""What the table of metrics claims: invariances, ranges, values for equal and for unrelated representations."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from src.metrics import MEASURES, METRICS, Metric, PairedMoments, linear_cka
from src.metrics.engine.plan import plan_cell
from tests.cells import cell_of
from tests.metrics.test_oracles import ORACLES, one_thread  # noqa: F401

TRANSFORMATIONS = ("translation", "isotropic_scaling", "orthogonal", "invertible_linear")


def pair(seed=0, images=400, features=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, features, generator=generator, dtype=torch.float64)
    mix = torch.randn(features, features, generator=generator, dtype=torch.float64)
    x = together(x)
    return x, x @ mix + 0.7 * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def together(x):
    """Features that vary together, as units of a layer do."""
    return x + x.mean(1, keepdim=True)


def transform(kind, x):
    generator = torch.Generator().manual_seed(11)
    square = torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=torch.float64)
    if kind == "translation":
        return x + 3 * square[0]
    if kind == "isotropic_scaling":
        return 7.3 * x
    return x @ (torch.linalg.qr(square)[0] if kind == "orthogonal" else square)


def value(name, x, y):
    return METRICS[name].number(METRICS[name].of_rows(x, y))


@pytest.mark.parametrize("kind", TRANSFORMATIONS)
@pytest.mark.parametrize("side", ["front", "end"])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_invariances_are_exactly_those_claimed(name, side, kind):
    """A claimed invariance holds to rounding; one that is not claimed visibly fails."""
    x, y = pair()
    changed = (transform(kind, x), y) if side == "front" else (x, transform(kind, y))
    difference = abs(value(name, *changed) - value(name, x, y))
    if kind in getattr(METRICS[name], side):
        assert difference < 1e-9
    else:
        assert difference > 3e-4


@pytest.mark.parametrize("name", sorted(METRICS))
def test_record(name):
    metric = METRICS[name]
    assert metric.name == name and metric.meaning and set(metric.views) <= {"images", "channels"}
    assert metric.invariances == metric.front & metric.end <= set(TRANSFORMATIONS)
    assert metric.view("channels") in metric.views and metric.view(None) == metric.views[0]
    assert metric.same_shape == (metric.needs == "difference")
    with pytest.raises(AttributeError):
        setattr(metric, "name", "other")  # noqa: B010


@pytest.mark.parametrize("name", sorted(METRICS))
def test_identical_representations(name):
    x, _ = pair()
    assert value(name, x, x) == pytest.approx(METRICS[name].of_equal(x), abs=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"cka_units"}))  # which takes off what units do not share
def test_a_noisy_copy_is_nearer_than_something_else(name):
    """Identical, then a copy with a little noise, then independent: further and further away, as `alike` says."""
    generator = torch.Generator().manual_seed(5)
    x, noise, other = torch.randn(3, 200, 6, generator=generator, dtype=torch.float64)
    x, other = together(x), together(other)
    values = [value(name, x, y) for y in (x, x + 0.3 * noise, other)]
    assert values == sorted(values, reverse=METRICS[name].higher_is_better) and len(set(values)) == 3


@pytest.mark.parametrize("name", sorted(METRICS))
def test_values_stay_in_range(name):
    low, high = METRICS[name].range
    for seed in range(5):
        x, y = pair(seed, images=30)
        for end in (y, together(torch.randn(30, 6, generator=torch.Generator().manual_seed(seed)).double()), -x):
            assert low <= value(name, x, end) <= high


def test_unrelated_representations():
    """The debiased estimate is 0 on average where the biased one is far from it; neighbours agree by chance."""
    values = {name: [] for name in ("cka", "cka_debiased", "mutual_knn")}
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(60, 100, generator=generator, dtype=torch.float64) for _ in range(2))
        for name in values:
            values[name].append(value(name, x, y))
    mean = {name: sum(v) / len(v) for name, v in values.items()}
    assert mean["cka"] > 0.5
    assert abs(mean["cka_debiased"]) < 0.01
    assert mean["mutual_knn"] == pytest.approx(10 / 59, abs=0.02)


@pytest.mark.parametrize("images", [8, 200])
def test_cka_as_a_loss(images):
    """Gradients flow on both sides of the choice, agree with finite differences, and training raises CKA."""
    x, y = pair(images=images)
    x, y = x[:, :3].requires_grad_(), y[:, :4].requires_grad_()
    assert torch.autograd.gradcheck(linear_cka, (x[:8], y[:8]))
    linear_cka(x, y).backward()
    assert x.grad is not None and y.grad is not None and torch.isfinite(x.grad).all() and x.grad.any()

    weight = torch.eye(3).requires_grad_()
    inputs, target = x.detach().float(), y.detach().float()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    start = linear_cka(inputs @ weight, target).item()
    for _ in range(20):
        optimizer.zero_grad()
        (-linear_cka(inputs @ weight, target)).backward()
        optimizer.step()
    assert linear_cka(inputs @ weight, target).item() > start + 0.01


def test_cka_keeps_its_arguments_and_takes_half_precision():
    x, y = pair()
    before = x.clone()
    linear_cka(x, y)
    assert torch.equal(x, before)
    assert_close(linear_cka(x.bfloat16(), y.bfloat16()).double(), linear_cka(x, y), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_bad_matrices_are_refused(name):
    x, y = pair()
    for bad in ((x[:20], y[:21]), (x[0], y[0]), (x[:0], y[:0])):
        with pytest.raises(ValueError):
            METRICS[name].of_rows(*bad)
    if METRICS[name].same_shape:
        with pytest.raises(ValueError, match="equal shapes"):
            METRICS[name].of_rows(x, y[:, :2])


def test_ends_may_be_narrower():
    x, y = pair()
    names = [name for name in sorted(METRICS) if not METRICS[name].same_shape]
    for name, value_ in cell_of(names, x, y[:, :3]).values.items():
        truth = METRICS[name].number(ORACLES[name](x.numpy(), y[:, :3].numpy()))
        assert METRICS[name].number(value_) == pytest.approx(truth, abs=1e-6)


def test_what_the_new_measures_need():
    x, y = pair(images=30)
    with pytest.raises(ValueError, match="fewer than 3 features"):
        value("rsa", x, y[:, :2])
    for name in ("jaccard", "rank_sim", "second_cos", "mutual_knn"):
        with pytest.raises(ValueError, match="10 images are too few for 10 neighbours; at least 11"):
            value(name, x[:10], y[:10])
        assert METRICS[name].range[0] <= value(name, x[:11], y[:11]) <= 1  # everybody is a neighbour
    zeros = x.clone()
    zeros[:4] = 0
    kept = ORACLES["aligned_cos"](zeros.numpy(), y.numpy())  # which leaves rows of zeros out
    assert value("aligned_cos", zeros, y) == pytest.approx(kept, abs=1e-12)
    wide = torch.randn(1030, 1025, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="1025 channels are too many"):
        value("soft_match", wide, wide)


def test_fewer_images_than_features_take_the_other_way():
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(20, d, generator=generator, dtype=torch.float64) + 1 for d in (50, 30))
    for name in ("aligned_cos", "rsa", "jaccard", "dist_corr", "second_cos"):
        assert value(name, x, y) == pytest.approx(ORACLES[name](x.numpy(), y.numpy()), abs=1e-10)


def test_a_metric_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether higher is better, what it is fed, and its value for equal rows are said, not guessed."""

    def energy(moments: PairedMoments) -> float:
        return float(moments.yy.trace()) / moments.n

    trial = Metric("trial", "spread of the end", "moments", energy, views=("images",), range=(0, float("inf")))
    trial = replace(trial, identical=lambda rows: float(rows.var(0, correction=0).sum()), higher_is_better=False)
    for table in (METRICS, MEASURES):
        monkeypatch.setitem(table, "trial", trial)
    x, y = pair(images=30, features=40)
    plan = plan_cell(["trial", "procrustes"], None, 30, (40, 9, 9), (40, 9, 9), None)
    assert plan.source == {"trial": "moments", "procrustes": "row_space"}  # though it claims every rotation
    found = cell_of(["trial"], x, x)
    assert found.number("trial") == pytest.approx(trial.of_equal(x)) and trial.of_equal(x) != trial.of_equal(y)
    assert trial.more_alike == "lower"
    with pytest.raises(ValueError, match="trial is no number of sums of products that every rotation keeps"):
        replace(trial, row_space=True, front=frozenset())
