"""Kernels and neighbours go block by block."""

import numpy as np
import pytest
import torch

from src.metrics import METRICS
from src.metrics.layer import Layer
from src.metrics.neighbours import median_squared_distance, rbf_cka
from tests.test_metrics_oracles import one_thread  # noqa: F401


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(120, 45, generator=generator)
    return x + 2, x @ torch.randn(45, 45, generator=generator) + torch.randn(120, 45, generator=generator)


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
    x, y = rows()
    values = [METRICS[name].of_rows(x, y) for name in ("cka_rbf", "mutual_knn", "dist_corr", "jaccard")]
    monkeypatch.setattr("src.metrics.gram.BLOCK", 32)
    monkeypatch.setattr("src.metrics.neighbours.BLOCK", 32)
    monkeypatch.setattr("src.metrics.gram.upper_blocks.__defaults__", (32,))
    assert [METRICS[name].of_rows(x, y) for name in ("cka_rbf", "mutual_knn", "dist_corr", "jaccard")] == pytest.approx(
        values, abs=1e-7
    )


def test_more_than_half_equal_images_have_no_bandwidth():
    x, _ = rows()
    x[:100] = x[0]
    x = Layer.of(x)
    with pytest.raises(ValueError, match="median distance"):
        rbf_cka(x, x)
