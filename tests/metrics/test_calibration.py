"""Values against chance: levels that are exact, grids that know of the choice, and CKA's mean over all pairings."""

import itertools

import pytest
import torch
from torch import Generator, Tensor

from src.metrics import METRICS
from src.metrics.algebra.layer import Layer
from src.metrics.certainty.calibration import calibrate_grid, calibrated, draw_of, orders, subset
from src.metrics.certainty.uncertainty import FEW, Sample, difference, intervals, nulls, threshold, value_of
from src.metrics.cka import linear_cka
from tests.cells import cell_of


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=Generator().manual_seed(seed))


def sample(x: Tensor, y: Tensor) -> Sample:
    return Sample(x, y, x.shape[1:], y.shape[1:])


def chance(x: Tensor, y: Tensor, group: int | None = None) -> float:
    value = cell_of(["cka"], x, y, group=group).health["images"].cka_chance
    assert value is not None
    return value


def test_a_threshold_is_an_order_statistic_with_the_observed_value_among_the_draws() -> None:
    drawn = [float(value) for value in range(39)]
    assert threshold(100.0, drawn) == 37.0  # number 38 of 40
    assert threshold(-1.0, drawn) == 36.0
    assert threshold(-100.0, drawn, higher_is_better=False) == 1.0
    assert threshold(5.0, [1.0, 2.0]) == 5.0  # so few draws say nothing


def test_p_score_and_their_mirror() -> None:
    drawn = [value / 100 for value in range(39)]
    found = calibrated(0.9, drawn, best=1.0)
    assert (found.threshold, found.p) == (0.37, 1 / 40) and found.score == pytest.approx(0.53 / 0.63)
    mirrored = calibrated(-0.9, [-value for value in drawn], best=-1.0, higher_is_better=False)
    assert (mirrored.threshold, mirrored.p, mirrored.score) == (-0.37, found.p, pytest.approx(found.score))
    chance = calibrated(0.2, drawn, best=1.0)
    assert chance.score == 0 and chance.p == (1 + 19) / 40
    assert calibrated(1.0, drawn, best=1.0).score == 1


@pytest.mark.parametrize(("name", "d"), [("cka", 30), ("cka_debiased", 30), ("mutual_knn", 5), ("procrustes", 5)])
def test_the_level_is_held_where_nothing_corresponds(name: str, d: int) -> None:
    """With 19 draws one of 20 values that are alike in law is beyond all others: 5% of the time."""
    metric, trials = METRICS[name], 300
    beyond = 0
    for trial in range(trials):
        one = sample(normal(24, d, 2 * trial), normal(24, d, 2 * trial + 1))
        draw = draw_of(metric, "images", [one], [(0, 0)], (1, 1))
        drawn = [float(draw(order)) for order in orders(24, 19, seed=trial)]
        observed = value_of(metric, "images", one)
        beyond += calibrated(observed, drawn, best=1.0, higher_is_better=metric.higher_is_better).p <= 0.05
    assert abs(beyond / trials - 0.05) < 4 * (0.05 * 0.95 / trials) ** 0.5


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.permuted])
def test_the_shorter_way_gives_the_values_of_the_reordered_images(name: str) -> None:
    metric, order = METRICS[name], torch.randperm(40, generator=Generator().manual_seed(1))
    xs = [normal(40, 4, 0), normal(40, 70, 1) + 5]
    ys = [xs[0] @ normal(4, 6, 2) + normal(40, 6, 3), normal(40, 3, 4)]
    assert metric.permuted
    found = metric.permuted([Layer.of(x) for x in xs], [Layer.of(y) for y in ys])(order)
    wanted = [[metric.number(metric.of_rows(x, y[order])) for y in ys] for x in xs]
    assert found.numpy() == pytest.approx(torch.tensor(wanted).numpy(), abs=1e-6)


def test_the_best_of_a_grid_knows_that_it_was_chosen() -> None:
    """Of 36 unrelated pairs some pass 5% each for itself; the best of all does so in 5% of the cases."""
    metric, single, whole = METRICS["cka"], 0, 0
    for trial in range(60):
        xs, ys = ([normal(20, 8, 1000 * trial + 10 * side + k) for k in range(6)] for side in (0, 1))
        cells = list(itertools.product(range(6), range(6)))
        samples = [sample(xs[i], ys[j]) for i, j in cells]
        draw = draw_of(metric, "images", samples, cells, (6, 6))
        drawn = torch.stack([draw(order) for order in orders(20, 19, seed=trial)])
        observed = torch.tensor([value_of(metric, "images", one) for one in samples], dtype=torch.float64).view(6, 6)
        found = calibrate_grid(metric, observed, drawn, 1.0)
        single += any(cell.p <= 0.05 for cell in found.cells.values())
        whole += found.best.p <= 0.05
    assert single > 30 and whole <= 10


def test_cka_by_chance_is_its_mean_over_all_pairings() -> None:
    x, y = normal(6, 4, 0).double(), normal(6, 3, 1).double()
    pairings = [float(linear_cka(x, y[list(order)])) for order in itertools.permutations(range(6))]
    assert chance(x, y) == pytest.approx(sum(pairings) / len(pairings), abs=1e-7)
    wide = cell_of(["cka"], *(normal(6, 40, seed).double() for seed in (2, 3))).health["images"]
    assert wide.cka_chance is not None and wide.cka_chance > 0.7
    assert cell_of(["cka_debiased"], x, y).health["images"].cka_chance is None


@pytest.mark.parametrize(("n", "known"), [(32, 0.201), (64, 0.112), (128, 0.059), (256, 0.030)])
def test_cka_by_chance_of_independent_features(n: int, known: float) -> None:
    values = [chance(normal(n, 8, seed), normal(n, 8, seed + 100)) for seed in range(40)]
    assert sum(values) / len(values) == pytest.approx(known, rel=0.03)


def test_with_groups_chance_is_that_of_the_group() -> None:
    x, y = normal(128, 8, 0), normal(128, 8, 1)
    assert chance(x, y, group=32) > 2.5 * chance(x, y)


@pytest.mark.parametrize("features", [20, 900])  # through sums of products, and through images
def test_one_image_that_carries_a_comparison_is_named(features: int) -> None:
    x, y = normal(400, features, 0), normal(400, features, 1)
    x[7] *= 1e3
    (warning,) = (w for w in cell_of(["cka"], x, x).health["images"].warnings if "one image" in w)
    assert warning.startswith("cka: one image has ") and "of the front's variance" in warning
    y[7] *= 1e3
    warnings = cell_of(["cka"], x, y).health["images"].warnings
    assert any("one image" in text for text in warnings) and not any("too few images" in text for text in warnings)
    plain = cell_of(["cka"], normal(400, 20, 2), normal(400, 20, 3)).health["images"].warnings
    assert not any("one image" in text for text in plain)


def test_distances_have_the_tail_on_their_side() -> None:
    x = normal(60, 6, 0)
    found = nulls(["procrustes", "l2", "cka"], None, sample(x, x + 0.1 * normal(60, 6, 1)), permutations=39).values
    assert found["procrustes"][1] < found["procrustes"][0] and found["l2"][1] < found["l2"][0]
    assert found["cka"][1] > found["cka"][0]


def test_few_of_many_images_are_dealt_out() -> None:
    assert len(subset(FEW + 5)) == FEW and subset(FEW + 5).diff().min() > 0 and torch.equal(subset(7), torch.arange(7))


def test_a_difference_is_tested_on_the_same_images() -> None:
    x, noise = normal(150, 6, 0), [normal(150, 6, seed) for seed in (1, 2)]
    near, far = sample(x, x + 0.3 * noise[0]), sample(x, x + 2 * noise[1])
    for name in ("cka", "mutual_knn", "procrustes"):
        metric = METRICS[name]
        same = difference(name, None, near, near)
        assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
        found = difference(name, None, near, far)
        value = metric.of_rows(near.x, near.y) - metric.of_rows(far.x, far.y)
        assert found.value == pytest.approx(value, abs=1e-6) and found.low < found.value < found.high
        assert found.p < 0.01 and (found.value > 0) == metric.higher_is_better


def test_images_that_carry_both_values_cancel() -> None:
    """Two copies with little noise: unpaired intervals overlap widely, the paired one is narrow."""
    x = normal(200, 6, 0) * torch.linspace(0.2, 3, 200)[:, None]
    one, other = (sample(x, x + 0.2 * normal(200, 6, seed)) for seed in (1, 2))
    found = difference("cka", None, one, other)
    low, high = intervals(["cka"], None, one).values["cka"]
    assert found.high - found.low < 1.6 * (high - low) and found.p > 0.05


def test_one_of_twenty_differences_of_equals_is_called_one() -> None:
    called = 0
    for trial in range(100):
        x = normal(60, 4, 3 * trial)
        one, other = (sample(x, x + normal(60, 4, 3 * trial + k)) for k in (1, 2))
        called += difference("cka", None, one, other).p <= 0.05
    assert called <= 12
