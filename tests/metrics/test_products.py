"""Products by whichever library: the numbers of a plain product, the same bytes again, and pools left as they were."""

from functools import partial

import numpy as np
import pytest
import torch

from src.metrics.algebra import products

SHAPES = [(1, 1, 3), (7, 9, 11), (300, 200, 500), (40, 3, 70_000), (5, 5, 0), (0, 3, 4), (600, 1, 600)]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_plain_ones_and_repeat(shape, dtype, threads, monkeypatch):
    monkeypatch.setattr(products, "SMALL", 0)  # as jobs of several threads, however small
    m, n, k = shape
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, k, generator=generator, dtype=torch.float64) for rows in (m, n))
    tolerance = {"rtol": 0, "atol": (2e-6 if dtype == torch.float32 else 1e-13) * (k + 100)}
    for first, second in ((a, b), (a, a)):
        x = first.to(dtype)
        y = x if second is first else second.to(dtype)
        value = products.times(x, y)
        if products._by_numpy(x):
            np.testing.assert_allclose(value.double(), first @ second.T, **tolerance)
        else:  # torch's own, however it rounds
            assert torch.equal(value, torch.mm(x, y.T))
        assert torch.equal(value, products.times(x, y))
        out = torch.empty_like(value)
        assert products.times(x, y, out=out) is out and torch.equal(out, value)
        total = torch.ones_like(value)
        products.add_times(total, x, y, alpha=2)
        np.testing.assert_allclose(total.double(), 1 + 2 * value.double(), **tolerance)
    if m > 100:
        square = products.times(a, a)
        assert torch.equal(square, square.T)


def test_large_totals_are_added_to_in_parts(monkeypatch):
    monkeypatch.setattr(products, "PART", 50)
    a = torch.randn(30, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = torch.zeros(30, 30, dtype=torch.float64)
    products.add_times(total, a, a)
    np.testing.assert_allclose(total, a @ a.T, atol=1e-12)


def test_decompositions_equal_those_of_torch(threads):
    a = torch.randn(60, 60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix = a @ a.T
    values, vectors = products.eigh(matrix)
    np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-10)
    np.testing.assert_allclose(values, torch.linalg.eigvalsh(matrix), atol=1e-10)
    np.testing.assert_allclose(products.eigvalsh(matrix), values, atol=1e-10)
    assert len(products.eigh(matrix[:0, :0])[0]) == 0


def test_the_pools_of_the_libraries_are_left_as_they_were(threads):
    before = [pool.get() for pool in products._pools()]
    a = torch.randn(400, 400, dtype=torch.float64)
    products.times(a, a)
    products.eigh(a @ a.T)
    assert [pool.get() for pool in products._pools()] == before


@pytest.mark.parametrize(
    ("vendor", "mkl", "numpy"),
    [("GenuineIntel", True, False), ("AuthenticAMD", False, False), ("AuthenticAMD", True, True)],
)
def test_the_choice_follows_from_processor_and_libraries(vendor, mkl, numpy, monkeypatch):
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    pool = products.Pool(lambda: 1, lambda count: None)
    monkeypatch.setattr(products, "_pool", lambda library, suffix: pool)
    products._pools.cache_clear()
    try:
        assert products.described().startswith("numpy" if numpy else "torch")
        assert products.described("cuda:0").startswith("torch")
        monkeypatch.setattr(products, "_pool", lambda library, suffix: None)
        products._pools.cache_clear()
        assert products.described().startswith("torch")  # a pool that cannot be bound
    finally:
        products._pools.cache_clear()


def test_what_is_not_finite_goes_through():
    a = torch.full((2, 3), float("inf"))
    assert not torch.isfinite(products.times(a, -a)).any()


def test_a_product_with_itself_is_known_as_symmetric(monkeypatch):
    monkeypatch.setattr(products, "_by_numpy", lambda x: True)
    monkeypatch.setattr(products, "_pools", lambda: (products.Pool(lambda: 1, lambda threads: None),) * 2)
    seen = []
    monkeypatch.setattr(products, "_multiply", lambda x, y, out, threads: seen.append(x is y))
    a = torch.randn(5, 3)
    products.times(a, a)
    products.times(a, a.clone())
    products.add_times(torch.zeros(5, 5), a, a)
    assert seen == [True, False, True]


@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_jobs_give_their_results_in_order_and_do_not_run_far_ahead(count, threads):
    begun, like = [], torch.zeros(2, 2)

    def job(number: int) -> torch.Tensor:
        begun.append(number)
        return like + number

    results = products.in_order([partial(job, number) for number in range(count)], like)
    for number, result in enumerate(results):
        assert torch.equal(result, like + number)
        assert len(begun) <= number + threads + 1


def test_an_error_of_a_job_is_raised_where_its_result_is_asked_for(threads):
    def broken() -> torch.Tensor:
        raise ValueError("no result")

    before = [pool.get() for pool in products._pools()]
    a = torch.randn(2000, 500)
    results = products.in_order([lambda: torch.zeros(1), broken, lambda: products.times(a, a, threads=1)], a)
    next(results)
    with pytest.raises(ValueError, match="no result"):
        next(results)
    assert [pool.get() for pool in products._pools()] == before
