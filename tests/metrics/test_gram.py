"""Sums over Gram matrices, from images and from features, of one pair and of many."""

import numpy as np
import pytest
import torch

from src.metrics.algebra.gram import blocks, gram_sums, gram_sums_of_moments
from src.metrics.algebra.layer import Layer
from src.metrics.algebra.moments import PairedMoments, Sums
from src.metrics.cka import cka_of_groups, debiased_cka_of_groups
from tests.metrics.test_oracles import ORACLES, one_thread  # noqa: F401


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [(30, 40), (300, 200)])
def test_both_sides_of_the_gram_agree(features, dtype, monkeypatch):
    """Blocks of images and streamed moments of features give one answer to 1e-6, biased and debiased."""
    monkeypatch.setattr("src.metrics.algebra.gram.BLOCK", 64)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(150, features[0], generator=generator)
    y = 3 + x[:, :20] @ torch.randn(20, features[1], generator=generator) + torch.randn(150, features[1])
    x, y = x.to(dtype), y.to(dtype)
    moments = PairedMoments.of(Sums(x.shape[1], energies=True), Sums(y.shape[1], energies=True))
    for start in range(0, 150, 40):
        moments.update(x[start : start + 40], y[start : start + 40])
    streamed = gram_sums_of_moments(moments)
    stored = gram_sums([Layer.of(x).rows], [Layer.of(y).rows])[0, 0]
    for function, name in ((cka_of_groups, "cka"), (debiased_cka_of_groups, "cka_debiased")):
        truth = ORACLES[name](x.numpy(), y.numpy())
        for sums in (stored, streamed):
            assert function([sums]) == pytest.approx(truth, abs=1e-6)
    # Kornblith et al. 2019, table 1: |xy|^2 / (|xx| |yy|)
    expected = moments.xy.norm() ** 2 / (moments.xx.norm() * moments.yy.norm())
    assert cka_of_groups([streamed]) == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("block", [7, 30, 4096])
def test_a_pair_has_the_same_sums_in_any_company(block, monkeypatch):
    monkeypatch.setattr("src.metrics.algebra.gram.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    xs, ys = (
        [Layer.of(torch.randn(100, d, generator=generator)).rows for d in sizes] for sizes in ((9, 40, 5), (40, 3))
    )
    calls = []
    shared = gram_sums(xs, ys, on_block=lambda: calls.append(1))
    assert len(calls) == blocks(100)
    for (i, j), sums in shared.items():
        alone = gram_sums([xs[i]], [ys[j]])[0, 0]
        exact = gram_sums([xs[i].double()], [ys[j].double()])[0, 0]
        np.testing.assert_allclose(sums.whole, alone.whole, rtol=1e-13)
        np.testing.assert_allclose(sums.unbiased or (), alone.unbiased or (), rtol=1e-12)
        np.testing.assert_allclose(sums.whole, exact.whole, rtol=1e-6)


def test_two_and_three_images_have_a_biased_value_only():
    x, y = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for n in (2, 3):
        sums = gram_sums([Layer.of(x[:n]).rows], [Layer.of(y[:n]).rows])[0, 0]
        assert sums.unbiased is None
        assert cka_of_groups([sums]) == pytest.approx(ORACLES["cka"](x[:n].numpy(), y[:n].numpy()))
