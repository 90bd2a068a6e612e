"""Many layers in one pass, against the same pairs one at a time."""

import numpy as np
import pytest
import torch

from src.metrics import METRICS, Comparison, many_gram
from src.metrics.gram import gram_sums
from src.metrics.many import ManyPairs, bytes_needed
from src.metrics.many_gram import many_gram_sums

SHAPES_X = [(4, 3, 3), (2, 3, 3), (5,)]
SHAPES_Y = [(4, 3, 3), (5,)]
IMAGES = 100


def activations(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Layers that depend on one another, so that no metric is near 0 for all pairs."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(IMAGES, 6, generator=generator)

    def layer(shape: tuple[int, ...]) -> torch.Tensor:
        size = int(np.prod(shape))
        mixed = source @ torch.randn(6, size, generator=generator)
        return (mixed + torch.randn(IMAGES, size, generator=generator) + 3).view(IMAGES, *shape)

    return [layer(shape) for shape in SHAPES_X], [layer(shape) for shape in SHAPES_Y]


def tables(names: list[str], *, batch: int = 17, **options) -> tuple[dict[str, np.ndarray], ManyPairs]:
    xs, ys = activations()
    pairs = ManyPairs(names, n_images=IMAGES, shapes_x=SHAPES_X, shapes_y=SHAPES_Y, **options)
    for start in range(0, IMAGES, batch):
        pairs.update([x[start : start + batch] for x in xs], [y[start : start + batch] for y in ys])
    return pairs.tables(), pairs


def alone(name: str, i: int, j: int, **options) -> float:
    """One pair by `Comparison`; NaN where it refuses."""
    xs, ys = activations()
    try:
        comparison = Comparison([name], n_images=IMAGES, shape_x=SHAPES_X[i], shape_y=SHAPES_Y[j], **options)
        comparison.update(xs[i], ys[j])
        return METRICS[name].number(comparison.result()[name])
    except ValueError:
        return float("nan")


@pytest.mark.parametrize("options", [{}, {"view": "channels"}, {"view": "images"}, {"group": 25}], ids=str)
def test_every_metric_equals_the_pairs_one_at_a_time(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_gram, "BLOCK", 16)  # several blocks, the last one cut
    together, pairs = tables(list(METRICS), **options)
    for name, table in together.items():
        expected = np.array([[alone(name, i, j, **options) for j in range(2)] for i in range(3)])
        np.testing.assert_allclose(table, expected, atol=2e-6, rtol=2e-6, err_msg=name)
        reasons = {(i, j) for refused, i, j in pairs.refused if refused == name}
        assert reasons == set(zip(*np.nonzero(np.isnan(expected)), strict=True))


@pytest.mark.parametrize("block", [7, 30, 4096])
def test_shared_gram_sums_equal_those_of_each_pair(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_gram, "BLOCK", block)
    sides = [[layer.flatten(1) - layer.flatten(1).mean(0) for layer in side] for side in activations()]
    calls = []
    shared = many_gram_sums(*sides, on_block=lambda: calls.append(1))
    assert len(calls) == many_gram.blocks(IMAGES)
    for (i, j), sums in shared.items():
        expected = gram_sums(sides[0][i].double(), sides[1][j].double(), side="samples")
        for mine, other in zip(sums[1:], expected[1:], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_a_constant_layer_leaves_one_hole_and_a_reason() -> None:
    xs, ys = activations()
    xs[1] = torch.ones_like(xs[1])
    pairs = ManyPairs(["cka", "l2"], n_images=IMAGES, shapes_x=SHAPES_X, shapes_y=SHAPES_Y)
    pairs.update(xs, ys)
    cka = pairs.tables()["cka"]
    assert np.isnan(cka[1]).all() and not np.isnan(cka[[0, 2]]).any()
    assert "constant" in pairs.refused["cka", 1, 0]


def test_few_images_are_warned_of() -> None:
    generator = torch.Generator().manual_seed(1)
    xs, ys = ([torch.randn(8, 50, generator=generator)] for _ in range(2))
    pairs = ManyPairs(["cka"], n_images=8, shapes_x=[(50,)], shapes_y=[(50,)])
    pairs.update(xs, ys)
    pairs.tables()
    assert "use cka_debiased" in pairs.warnings[0, 0][0]


def test_few_images_of_wide_layers_need_no_matrix_of_features() -> None:
    generator = torch.Generator().manual_seed(2)
    xs = [torch.randn(20, 4000, generator=generator), torch.randn(20, 3, generator=generator)]
    ys = [xs[0] + torch.randn(20, 4000, generator=generator)]
    shapes = [(4000,), (3,)], [(4000,)]
    assert bytes_needed(["procrustes", "svcca"], None, 20, *shapes, None) < 4 * 20 * 8003 + 100_000
    pairs = ManyPairs(["procrustes", "svcca"], n_images=20, shapes_x=shapes[0], shapes_y=shapes[1])
    pairs.update(xs, ys)
    for name, table in pairs.tables().items():
        for i, x in enumerate(xs):
            assert (name, i, 0) in pairs.refused or table[i, 0] == pytest.approx(METRICS[name].of_rows(x, ys[0]))
    assert set(pairs.refused) == {("svcca", 0, 0), ("svcca", 1, 0)}  # too many principal directions
    assert any("procrustes: biased downwards" in text for text in pairs.warnings[0, 0])


def test_doubts_about_sides_are_told_where_images_are_few() -> None:
    generator = torch.Generator().manual_seed(3)
    xs = [torch.randn(20, 40, generator=generator) + 1e5, torch.randn(20, 40, generator=generator)]
    xs[1][:, :25] = 0
    ys = [torch.randn(20, 40, generator=generator)]
    pairs = ManyPairs(["procrustes"], n_images=20, shapes_x=[(40,), (40,)], shapes_y=[(40,)])
    pairs.update(xs, ys)
    pairs.tables()
    assert any("float32 has lost that many digits" in text for text in pairs.warnings[0, 0])
    assert any("only 15 of the front's 40 features vary" in text for text in pairs.warnings[1, 0])


def test_missing_and_surplus_images_are_refused() -> None:
    xs, ys = activations()
    pairs = ManyPairs(["cka"], n_images=IMAGES, shapes_x=SHAPES_X, shapes_y=SHAPES_Y)
    with pytest.raises(ValueError, match="0 images came where 100"):
        pairs.tables()
    pairs.update(xs, ys)
    with pytest.raises(ValueError, match="200 images came where 100"):
        pairs.update(xs, ys)
    with pytest.raises(ValueError, match="layers"):
        pairs.update(xs[:1], ys)


def test_the_need_is_counted() -> None:
    need = bytes_needed(["cka"], None, 100, [(3, 2, 2)], [(5,)], None)
    assert need == 4 * (100 * (12 + 5) + 2 * 100**2)
    assert bytes_needed(["cka"], None, 100, [(3, 2, 2)], [(5,)], 10) == 4 * (10 * 17 + 2 * 10**2)
    assert bytes_needed(["l2"], None, 100, [(3,)], [(3,)], None) == 8 * 12
    assert bytes_needed(["l2"], None, 100, [(3,)], [(5,)], None) == 0
    assert bytes_needed(["lr"], "channels", 100, [(3, 2, 2)], [(5, 2, 2)], None) == 8 * (9 + 15 + 25)
