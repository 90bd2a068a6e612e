"""Moments of interpolated activations equal those of the interpolation written out."""

import pytest
import torch
from torch.testing import assert_close

from src.metrics.algebra.moments import PairedMoments, Sums, gather
from src.stitching import Cut, Geometry
from src.stitching.upsampling import Upsampled, is_upsampled


@pytest.mark.parametrize(
    ("front", "end"), [((3, 2, 2), (5, 7, 7)), ((4, 3, 5), (2, 8, 13)), ((3, 1, 1), (2, 6, 6)), ((2, 4, 4), (3, 8, 8))]
)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_they_equal_those_of_the_interpolation(front, end, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, *front, generator=generator) + offset
    y = torch.randn(40, *end, generator=generator) - offset
    y[:, :, : end[1] // 2] += x.mean((1, 2, 3), keepdim=True)
    geometry = Geometry(front, end, resize=True)
    assert is_upsampled(geometry)
    cut = Cut("front", "a", "b", False, True)
    found, ends = Upsampled({cut: geometry}, torch.device("cpu")), Sums(end[0])
    expected = PairedMoments(front[0], end[0])
    for some in (slice(0, 7), slice(7, 40)):
        found.add({"front": {"a": x[some]}, "end": {"b": y[some]}})
        gather([(ends, geometry.end_rows(y[some]))], [], rows=8192)
        # in float64: interpolation in float32 rounds what this does not
        expected.update(geometry.front_rows(x[some].double()), geometry.end_rows(y[some].double()))
    ((which, moments),) = found.finish({"b": ends})
    assert which == cut and moments.n == expected.n
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        one, other = getattr(moments, name), getattr(expected, name)
        assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("front", "end", "flatten"),
    [((3, 8, 8), (3, 4, 4), False), ((3, 8, 2), (3, 4, 9), False), ((3, 4, 4), (3, 5, 5), False), ((6,), (6,), False)],
)
def test_others_are_taken_as_they_are(front, end, flatten: bool) -> None:
    assert not is_upsampled(Geometry(front, end, flatten=flatten, resize=not flatten))


def test_nan_is_refused() -> None:
    geometry = Geometry((2, 2, 2), (2, 4, 4), resize=True)
    found = Upsampled({Cut("front", "a", "b", False, True): geometry}, torch.device("cpu"))
    found.add({"front": {"a": torch.full((3, 2, 2, 2), float("nan"))}, "end": {"b": torch.zeros(3, 2, 4, 4)}})
    with pytest.raises(ValueError, match="NaN"):
        list(found.finish({"b": Sums(2)}))
