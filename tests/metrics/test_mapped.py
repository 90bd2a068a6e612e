"""Similarities of mapped activations equal those of the activations mapped one by one."""

import pytest
import torch
from torch.testing import assert_close

from src.metrics.algebra.moments import Affine, squared_error
from src.metrics.cka import linear_cka
from src.metrics.engine.mapped import MappedSimilarity


@pytest.mark.parametrize(("shape_x", "shape_y"), [((3, 4, 4), (5, 4, 4)), ((3, 2, 2), (5, 2, 2)), ((4,), (3,))])
def test_cka_and_l2_of_maps_equal_those_of_mapped_activations(shape_x, shape_y) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, *shape, generator=generator) + 2 for shape in (shape_x, shape_y))
    similarity = MappedSimilarity(n_images=30, shape_x=shape_x, shape_y=shape_y)
    for part_x, part_y in zip(x.split(7), y.split(7), strict=True):
        similarity.update(part_x, part_y)
    maps = [
        Affine(torch.randn(shape_y[0], shape_x[0], generator=generator), torch.randn(shape_y[0], generator=generator))
        for _ in range(3)
    ]
    mapped = [(torch.einsum("oc,nc...->no...", w, x).movedim(1, -1) + b).movedim(-1, 1) for w, b in maps]
    expected = [float(linear_cka(values.flatten(1).double(), y.flatten(1).double())) for values in mapped]
    for side in ("samples", "features", None):
        assert_close(similarity.cka([affine.w for affine in maps], side), expected, atol=1e-5, rtol=1e-5)
    for affine, values in zip(maps, mapped, strict=True):
        assert abs(squared_error(similarity.moments, affine) - float((values - y).square().mean())) < 1e-4


@pytest.mark.parametrize("side", ["samples", "features"])
def test_blocks_do_not_matter_and_a_constant_has_no_cka(side, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, 3, 4, 4, generator=generator), torch.randn(20, 2, 4, 4, generator=generator)
    values = []
    for block in (2048, 7):
        for constant, size in {
            "engine.mapped.BLOCK": block,
            "algebra.gram.BLOCK": block,
            "engine.mapped.RUN": 6 if block == 7 else 4096,
            "engine.mapped.MAPPED_BYTES": 1 if block == 7 else 10**9,
        }.items():
            monkeypatch.setattr(f"src.metrics.{constant}", size)
        similarity = MappedSimilarity(n_images=20, shape_x=(3, 4, 4), shape_y=(2, 4, 4))
        similarity.update(x, y)
        values.append(similarity.cka([torch.eye(3), torch.zeros(2, 3), torch.ones(2, 3)], side))
    assert_close([values[0][0], values[0][2]], [values[1][0], values[1][2]])
    assert values[0][1] != values[0][1]
    constant = MappedSimilarity(n_images=20, shape_x=(3, 4, 4), shape_y=(2, 4, 4))
    constant.update(x, torch.ones_like(y))
    assert all(cka != cka for cka in constant.cka([torch.eye(3)], side))


def test_a_perfect_map_leaves_no_difference() -> None:
    """Not even the rounding error of a difference of large sums, which was below 0."""
    x = torch.randn(40, 7, 3, 3, generator=torch.Generator().manual_seed(2)) + 2
    similarity = MappedSimilarity(n_images=40, shape_x=(7, 3, 3), shape_y=(7, 3, 3))
    similarity.update(x, x)
    assert squared_error(similarity.moments, Affine(torch.eye(7), torch.zeros(7))) == 0
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(3)).double())[0]
    rotated = torch.einsum("oc,nchw->nohw", rotation, x.double())
    similarity = MappedSimilarity(n_images=40, shape_x=(7, 3, 3), shape_y=(7, 3, 3))
    similarity.update(x.double(), rotated)
    assert 0 <= squared_error(similarity.moments, Affine(rotation, torch.zeros(7))) < 1e-14
