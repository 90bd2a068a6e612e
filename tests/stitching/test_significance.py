"""How sure one may be: known values, and how often intervals hold the truth."""

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.coverage import coverage, tally_of
from src.core.intervals import bootstrap, paired_difference, percentiles, wilson
from src.core.task import MULTI_LABEL
from src.evaluation.scores import AgreementCounter
from src.stitching.significance import intervals_of, penalty_of, score_of


def first(n: int, share: float) -> Tensor:
    return (torch.arange(n) < share * n).double()


def test_paired_difference_is_that_of_the_paper() -> None:
    # Newcombe 1998, table II: 36, 12, 2, 0 and its tenth method
    assert paired_difference(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = paired_difference(0, 0, 0, 50)
    assert -0.1 < low < 0 < high < 0.1
    one, other = paired_difference(30, 12, 3, 5), paired_difference(30, 3, 12, 5)
    assert one == pytest.approx((-other[1], -other[0]), abs=1e-12)


def test_penalty_and_intervals_of_an_accuracy() -> None:
    counts = tally_of({"end": first(200, 0.9), "after": first(200, 0.8), "self": first(200, 1)})
    found = penalty_of(counts, "after")
    assert found and found["value"] == pytest.approx(0.1)
    assert (found["low"], found["high"]) == pytest.approx(paired_difference(160, 20, 0, 20))
    assert intervals_of(counts, "after")["acc"] == pytest.approx(wilson(0.8, 200))
    assert intervals_of(counts, "after")["same_class_out"] == pytest.approx(wilson(0.9, 200))


def test_a_score_lies_between_its_controls() -> None:
    right = {"end": first(1000, 0.9), "after": first(1000, 0.7), "self": first(1000, 0.9)}
    right |= {"untrained 0": first(1000, 0.4), "untrained 1": first(1000, 0.6)}
    found = score_of(tally_of(right), "after", ["untrained 0", "untrained 1"], "self")
    assert found and found["value"] == pytest.approx((0.7 - 0.5) / (0.9 - 0.5))
    assert found["low"] < found["value"] < found["high"] and found["high"] - found["low"] < 0.2


def test_a_score_between_controls_that_are_too_close_has_no_value() -> None:
    right = {"end": first(300, 0.9), "after": first(300, 0.9), "self": first(300, 0.9), "untrained 0": first(300, 0.86)}
    found = score_of(tally_of(right), "after", ["untrained 0"], "self")
    assert found and found["value"] is None and "4.0 points apart" in found["reason"]


def test_decisions_about_one_image_go_together() -> None:
    generator = torch.Generator().manual_seed(0)
    # forty labels that are right or wrong together: as good as one
    image = (torch.rand(400, 1, generator=generator) < 0.8).double()
    logits = (2 * image - 1).expand(400, 40)
    counts = AgreementCounter(MULTI_LABEL, target="end", couples=[("end", "after")], keep=("end", "after"))
    counts.update({"end": torch.ones(400, 40), "after": logits}, torch.ones(400, 40))
    low, high = intervals_of(counts, "after")["acc"]
    expected = wilson(float(image.mean()), 400)
    assert (low, high) == pytest.approx(expected, abs=0.01)
    found = penalty_of(counts, "after")
    assert found and (found["low"], found["high"]) == pytest.approx((1 - expected[1], 1 - expected[0]), abs=0.01)


def test_a_bootstrap_is_the_same_again_and_as_wide_as_it_should_be() -> None:
    rows = np.random.default_rng(0).binomial(1, 0.3, size=(500, 1)).astype(float)
    values = bootstrap(rows, lambda means: means[:, 0])
    assert np.array_equal(values, bootstrap(rows, lambda means: means[:, 0]))
    assert values.std() == pytest.approx(np.sqrt(rows.mean() * (1 - rows.mean()) / 500), rel=0.1)
    low, high = percentiles(values)
    assert low < rows.mean() < high


@pytest.mark.parametrize(("end", "after"), [(0.95, 0.9), (0.8, 0.6)])
def test_intervals_of_penalty_and_score_hold_the_truth(end: float, after: float) -> None:
    found = coverage(end, after, images=1000, trials=200)
    assert all(0.9 <= share <= 0.985 for share in found.values()), found
