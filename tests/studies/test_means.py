"""Means and other statistics of pairs of networks, each left out with its pairs."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.studies.frames import ENDS
from src.studies.means import jackknife, with_intervals


def pairs_of(networks: str, seed: int = 0) -> pd.DataFrame:
    """A value for each ordered pair: the sum of an effect of its front, one of its end and one of both."""
    rng = np.random.default_rng(seed)
    front, end = (dict(zip(networks, rng.normal(size=len(networks)), strict=True)) for _ in range(2))
    rows = [(a, b, "x", front[a] + end[b] + rng.normal()) for a, b in itertools.permutations(networks, 2)]
    return pd.DataFrame(rows, columns=[*ENDS, "layer", "value"])


def test_of_a_mean_the_jackknife_is_the_interval_of_the_table() -> None:
    frame = pairs_of("abcdef")
    value, half = jackknife(frame, lambda part: part["value"].mean())
    (row,) = with_intervals(frame, ("layer",), ("value",), unbounded=("value",)).to_dict(orient="records")
    assert (row["n"], row["value"]) == (30, pytest.approx(float(value)))
    assert (row["value_low"], row["value_high"]) == pytest.approx((float(value - half), float(value + half)))


def test_of_disjoint_networks_it_is_students_interval() -> None:
    """A statistic that is the mean of what each network has alone: a network with itself."""
    own = np.random.default_rng(1).normal(size=7)
    frame = pd.DataFrame({ENDS[0]: list("abcdefg"), ENDS[1]: list("abcdefg"), "value": own})
    value, half = jackknife(frame, lambda part: [part["value"].mean()] * 2)
    expected = stats.t.ppf(0.975, 6) * own.std(ddof=1) / np.sqrt(7)
    assert value == pytest.approx([own.mean()] * 2) and half == pytest.approx([expected] * 2)


def test_two_networks_have_no_interval() -> None:
    _, half = jackknife(pairs_of("ab"), lambda part: part["value"].mean())
    assert np.isnan(half)
