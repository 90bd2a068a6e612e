"""Intervals of shares: known values, and how often they hold the truth."""

import numpy as np
import pytest
import scipy.stats

from src.core.intervals import bootstrap, of_shares, paired_difference, percentiles, wilson


@pytest.mark.parametrize(("right", "images"), [(0, 10), (1, 10), (341, 359), (359, 359), (8641, 10000)])
def test_wilson_is_that_of_scipy(right: int, images: int) -> None:
    expected = scipy.stats.binomtest(right, images).proportion_ci(0.95, "wilson")
    assert wilson(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("truth", [0.6, 0.8, 0.95])
def test_nineteen_of_twenty_intervals_hold_the_truth(truth: float) -> None:
    counts = np.random.default_rng(0).binomial(1000, truth, size=2000)
    held = np.mean([low <= truth <= high for low, high in (wilson(count / 1000, 1000) for count in counts)])
    assert 0.93 <= held <= 0.97


def test_shares_that_do_not_differ_between_images_have_an_interval_as_one_decision_an_image() -> None:
    ones, halves = np.ones(40), np.full(40, 0.5)
    assert of_shares(ones) == wilson(1, 40) and of_shares(halves) == wilson(0.5, 40)
    assert of_shares(ones, ones) == paired_difference(40, 0, 0, 0)
    mixed = np.repeat([0.0, 1.0], 20)
    assert of_shares(mixed, mixed) == pytest.approx(paired_difference(20, 0, 0, 20))
    rows = np.stack([mixed, np.roll(mixed, 1)], 1)
    assert of_shares(*rows.T) == percentiles(bootstrap(rows, lambda means: means[:, 0] - means[:, 1]))


def test_what_is_no_share_is_refused() -> None:
    for share, images in ((1.1, 10), (-0.1, 10), (0.5, 0), (float("nan"), 10)):
        with pytest.raises(ValueError, match="no interval"):
            wilson(share, images)
