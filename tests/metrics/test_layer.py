"""The rows of one layer: filled, centred, scaled."""

import math

import numpy as np
import pytest
import torch

from src.metrics.algebra.layer import Layer


def test_a_layer_keeps_to_its_size_and_is_centred_once():
    x = torch.randn(120, 45, generator=torch.Generator().manual_seed(0)) * 50 + 3
    layer = Layer(120, 45)
    layer.update(x[:100])
    with pytest.raises(ValueError, match="100 images came where 120"):
        layer.centre()
    with pytest.raises(ValueError, match="140 images came where 120"):
        layer.update(x[:40])
    with pytest.raises(ValueError, match="holds 120"):
        layer.clear(121)
    layer.update(x[100:])
    rows = layer.centre()
    scale = (rows[0] - rows[1]).norm() / (x[0] - x[1]).norm()
    assert math.log2(float(scale)) == pytest.approx(-layer.exponent, abs=1e-4)
    np.testing.assert_allclose(rows.double().mean(0).numpy(), 0, atol=1e-7)
    np.testing.assert_allclose(layer.mean.numpy(), x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(layer.squares.numpy(), (x - x.mean(0)).double().square().sum(0), rtol=1e-6)
    assert torch.equal(layer.centre(), rows)


def test_coordinates_keep_inner_products():
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coordinates, rows = Layer.of(x).coordinates(), Layer.of(x).rows
    assert coordinates.shape == (20, 19)
    np.testing.assert_allclose(coordinates @ coordinates.T, rows @ rows.T, atol=1e-10)


def test_a_layer_begun_in_inference_mode_goes_on_outside():
    x = torch.randn(20, 3)
    with torch.inference_mode():
        layer = Layer(20, 3)
        layer.update(x[:10])
    layer.update(x[10:])
    assert torch.equal(layer.centre(), Layer.of(x).rows)
