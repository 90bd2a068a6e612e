"""Kernels and neighbours go block by block."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from src.metrics import METRICS, neighbours
from src.metrics.algebra.layer import Layer
from src.metrics.alignment import aligned_cosine
from src.metrics.cosines import Cosines
from src.metrics.neighbours import (
    distance_correlation,
    median_squared_distance,
    mutual_knn,
    rbf_cka,
    second_order_cosine,
)
from tests.metrics.test_oracles import ORACLES, one_thread  # noqa: F401


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(120, 45, generator=generator)
    return x + 2, x @ torch.randn(45, 45, generator=generator) + torch.randn(120, 45, generator=generator)


@pytest.mark.parametrize("images", [3, 4, 7, 90])
def test_median_distance_is_exact(images, monkeypatch):
    """In blocks and from a bracket it is the median of the whole matrix, also where the bracket misses."""
    monkeypatch.setattr("src.metrics.algebra.gram.upper_blocks.__defaults__", (32,))
    x = torch.randn(images, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    truth = np.median(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square().numpy())
    assert median_squared_distance(x) == pytest.approx(truth, rel=1e-12)
    monkeypatch.setattr("src.metrics.neighbours._bracket", lambda _: (1e-9, 2e-9))
    assert median_squared_distance(x) == pytest.approx(truth, rel=1e-12)


def test_blocks_do_not_change_kernels_and_neighbours(monkeypatch):
    x, y = rows()
    values = [METRICS[name].of_rows(x, y) for name in ("cka_rbf", "mutual_knn", "dist_corr", "jaccard")]
    monkeypatch.setattr("src.metrics.algebra.gram.BLOCK", 32)
    monkeypatch.setattr("src.metrics.neighbours.BLOCK", 32)
    monkeypatch.setattr("src.metrics.algebra.gram.upper_blocks.__defaults__", (32,))
    assert [METRICS[name].of_rows(x, y) for name in ("cka_rbf", "mutual_knn", "dist_corr", "jaccard")] == pytest.approx(
        values, abs=1e-7
    )


def test_more_than_half_equal_images_have_no_bandwidth():
    x, _ = rows()
    x[:100] = x[0]
    x = Layer.of(x)
    with pytest.raises(ValueError, match="median distance"):
        rbf_cka(x, x)


@pytest.mark.parametrize("features", [20, 512])
def test_one_far_image_leaves_the_distances_of_all_others(features):
    """It drags the mean away, so that all others lie far from it, and near each other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, features, generator=generator)
    y = x + 0.5 * torch.randn(400, features, generator=generator)
    x[3] *= 1e6
    for name in ("cka_rbf", "dist_corr"):
        truth = METRICS[name].number(ORACLES[name](x.double().numpy(), y.double().numpy()))
        assert METRICS[name].of_rows(x, y) == pytest.approx(truth, abs=1e-5)
    y[3] *= 1e6
    truth = ORACLES["aligned_cos"](x.double().numpy(), y.double().numpy())
    assert METRICS["aligned_cos"].of_rows(x, y) == pytest.approx(truth, abs=1e-5)
    x[3] *= 1e3
    with pytest.raises(ValueError, match="lie so far from all others"):
        METRICS["cka_rbf"].of_rows(x, y)


def test_weak_directions_count_for_cosines_where_images_are_few():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, -7, 50, dtype=torch.float64)[:, None]
    x = torch.cat([torch.diag(sizes[:, 0]), torch.zeros(50, 30, dtype=torch.float64)], 1)
    y = x + 0.3 * sizes * torch.randn(50, 80, generator=generator, dtype=torch.float64)
    assert aligned_cosine(Layer.of(x), Layer.of(y)) == pytest.approx(
        ORACLES["aligned_cos"](x.numpy(), y.numpy()), abs=1e-4
    )


def float64_neighbours(rows: torch.Tensor, k: int) -> list[set[int]]:
    far = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(
        math.inf
    )
    return [set(row.tolist()) for row in far.topk(k, largest=False).indices]


@pytest.mark.parametrize("cheap", [True, False])
@pytest.mark.parametrize("far", [1.0, 3e3, 1e4])
def test_neighbours_within_clusters_far_apart_are_found(far: float, cheap: bool, monkeypatch) -> None:
    """Rounding of the squared distance to the other cluster is larger than distances within one."""
    monkeypatch.setattr("src.metrics.neighbours.CHEAP", 1e12 if cheap else 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator)
    x[::2, 0] += far
    y = x.flip(1) + 0.05 * torch.randn(300, 8, generator=generator)
    expected = [len(a & b) / 10 for a, b in zip(float64_neighbours(x, 10), float64_neighbours(y, 10), strict=True)]
    found = mutual_knn(Layer.of(x), Layer.of(y))
    assert found == pytest.approx(sum(expected) / 300, abs=2e-3)


def test_rows_of_zeros_are_like_nothing_in_float32_too() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 16, generator=generator).add(0.4).relu()
    for empty in (1, 100):
        x[:empty] = y[:empty] = 0
        cosines = Cosines(Layer.of(x))(slice(0, empty))
        assert torch.equal(cosines, torch.zeros(empty, 200, dtype=torch.float64))
        for measure in (aligned_cosine, second_order_cosine):
            one = measure(Layer.of(x), Layer.of(y))
            assert one == pytest.approx(measure(Layer.of(x.double()), Layer.of(y.double())), abs=2e-3), measure


def test_what_a_layer_alone_decides_is_found_once_and_changes_nothing(monkeypatch) -> None:
    """A grid asks each pair; where rows lie, their median distance and few images' cosines are the layer's own."""
    sides = (*rows(), rows()[1].flip(0))
    measures = (rbf_cka, distance_correlation, second_order_cosine)

    def grid(layers: list[Layer], few: int) -> np.ndarray:
        monkeypatch.setattr(neighbours, "FEW", few)
        return np.array([[[measure(x, y) for measure in measures] for y in layers] for x in layers])

    asked: list[str] = []
    for name in ("_near_the_bulk", "_median", "Cosines"):
        known = getattr(neighbours, name)
        monkeypatch.setattr(neighbours, name, lambda *x, known=known, name=name: asked.append(name) or known(*x))
    found = grid([Layer.of(side) for side in sides], 1024)
    # the order of an image's neighbours takes cosines of its own
    assert Counter(asked) == {"_near_the_bulk": 3, "_median": 3, "Cosines": 2 * 3}
    for i, j in itertools.product(range(3), repeat=2):  # alone, and by way of neighbours
        alone = grid([Layer.of(sides[i]), Layer.of(sides[j])], 0)[0, 1]
        np.testing.assert_allclose(found[i, j], alone, atol=1e-6)
