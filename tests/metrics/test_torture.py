"""Every metric on numerically nasty data: the value that float64 formulas give, or a clear refusal.

The table in docs/numerics.md is made by this test: WRITE_NUMERICS_TABLE=1 pytest tests/metrics/test_torture.py
"""

import math
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from src.metrics import METRICS
from tests.cells import number_of
from tests.metrics.test_oracles import ORACLES, one_thread  # noqa: F401
from tests.paths import ROOT

TABLE = ROOT / "docs" / "numerics.md"
IMAGES, FEATURES = 300, 8


def pair(images: int = IMAGES, features: int = FEATURES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, features, generator=generator, dtype=torch.float64)
    mix = torch.randn(features, features, generator=generator, dtype=torch.float64) / features**0.5
    return x, x @ mix + 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def offset() -> tuple[Tensor, Tensor]:
    x, y = pair()
    return (30 + 0.3 * x).float(), (30 + 0.3 * y).float()


def ill_conditioned() -> tuple[Tensor, Tensor]:
    x, y = pair()
    generator = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator, dtype=torch.float64))[0]
    return (x * torch.logspace(0, -6, FEATURES, dtype=torch.float64)) @ rotation + 1, y


def ill_scaled() -> tuple[Tensor, Tensor]:
    x, y = pair()
    scales = torch.logspace(-6, 6, FEATURES, dtype=torch.float64)
    return (x * scales).float(), (y * scales.flip(0)).float()


def dead_channels() -> tuple[Tensor, Tensor]:
    x, y = pair()
    x[:, 1], x[:, 4], y[:, 0] = 30.1, 0.0, -0.1
    return x.float(), y.float()


def rank_deficient() -> tuple[Tensor, Tensor]:
    x, y = pair()
    x[:, 5], x[:, 6], y[:, 3] = x[:, 0], 2 * x[:, 1], -y[:, 2]
    return x.float(), y.float()


def tiny() -> tuple[Tensor, Tensor]:
    x, y = pair()
    return (1e-20 * x).float(), (1e-20 * y).float()


def huge() -> tuple[Tensor, Tensor]:
    x, y = pair()
    return (1e20 * x).float(), (1e20 * y).float()


def few_images() -> tuple[Tensor, Tensor]:
    x, y = pair(20, 30)
    return x.float(), y.float()


def barely_too_few() -> tuple[Tensor, Tensor]:
    """One image more than features: after centring the features still span everything."""
    x, y = pair(9, 8)
    return x.float(), y.float()


def constant_front() -> tuple[Tensor, Tensor]:
    x, y = pair()
    return torch.full_like(x, 30.1).float(), y.float()


def constant_end() -> tuple[Tensor, Tensor]:
    x, y = pair()
    return x.float(), torch.full_like(y, 0.1)  # in float64: the mean of 0.1s is not 0.1


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    function.__name__: function
    for function in (
        offset,
        ill_conditioned,
        ill_scaled,
        dead_channels,
        rank_deficient,
        tiny,
        huge,
        few_images,
        barely_too_few,
        constant_front,
        constant_end,
    )
}
OUTNUMBERED = {name for name, metric in METRICS.items() if metric.outnumbered} | {"svcca"}
# Constants have no direction, spread or neighbours: only differences from them, and fits of and by them, exist.
REFUSED = {
    "few_images": OUTNUMBERED | {"cka_units"},
    "ill_scaled": {"cka_units"},  # one unit has almost all of the variance
    "barely_too_few": OUTNUMBERED | {"mutual_knn", "jaccard", "rank_sim", "second_cos"},
    "constant_front": set(METRICS) - {"l2", "l2_relative", "ps_inv", "lr"},
    "constant_end": set(METRICS) - {"l2"},
}
REFUSAL = "constant|at least|images are too few|median distance|vary together"


def through_grid(name: str, x: Tensor, y: Tensor) -> float:
    return number_of(name, x, y, batch=77)


def through_rows(name: str, x: Tensor, y: Tensor) -> float:
    return METRICS[name].number(METRICS[name].of_rows(x, y))


def truth(name: str, x: Tensor, y: Tensor) -> float:
    if name in ("ps_inv", "lr") and bool((x == x[0]).all()):
        return 0.0  # the oracle's basis of a constant is empty
    return METRICS[name].number(ORACLES[name](x.double().numpy(), y.double().numpy()))


def tolerance(name: str, case: str, expected: float) -> float:
    # Moments square the condition number: 16 digits less 12.
    if case == "ill_conditioned" and METRICS[name].needs == "moments":
        return 2e-4
    return max(1, abs(expected)) * 2e-6


@pytest.mark.parametrize("through", [through_grid, through_rows])
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("name", sorted(METRICS))
def test_right_or_refused(name, case, through):
    x, y = CASES[case]()
    if name in REFUSED.get(case, ()):
        with pytest.raises(ValueError, match=REFUSAL):
            through(name, x, y)
        return
    value, expected = through(name, x, y), truth(name, x, y)
    assert math.isfinite(value)
    assert value == pytest.approx(expected, abs=tolerance(name, case, expected))


def test_the_table_of_numerics_says_what_comes_out():
    rows = {(case, name): row(case, name) for case in CASES for name in sorted(METRICS)}
    if os.environ.get("WRITE_NUMERICS_TABLE"):
        lines = [f"| {' | '.join(key + cells)} |" for key, cells in rows.items()]
        TABLE.write_text("\n".join([HEAD, *lines, ""]), encoding="utf-8")
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    written = {(cells[0], cells[1]): cells[2:] for cells in (line[2:-2].split(" | ") for line in lines)}
    assert written.keys() == rows.keys()
    for (case, name), (value, exact, error) in written.items():
        if value == "refused":
            assert rows[case, name][0] == "refused"
            continue
        allowed = tolerance(name, case, float(exact))
        assert float(value) == pytest.approx(float(rows[case, name][0]), rel=1e-5, abs=allowed)
        assert float(exact) == pytest.approx(float(rows[case, name][1]), rel=1e-5, abs=1e-9)
        assert float(error) <= allowed


def row(case: str, name: str) -> tuple[str, str, str]:
    """Value, truth and absolute error as the table shows them; or the reason why there is no value."""
    x, y = CASES[case]()
    try:
        value = through_grid(name, x, y)
    except ValueError as error:
        return "refused", str(error).removeprefix(f"{name}: ").replace("|", "\\|"), ""
    exact = truth(name, x, y)
    return f"{value:.6g}", f"{exact:.6g}", f"{abs(value - exact):.0e}"


HEAD = """# What hard numbers do to the measures

Every measure of `compare_nets.py`, in one pass over batches, on data made to break it; `truth` is a float64 formula
written another way. 300 images of 8 features, but `few_images` has 20 of 30 and `barely_too_few` 9 of 8. Of `ps_inv`
and `corr` the one-number summary is shown.

* `offset`: mean 30, standard deviation 0.3, in float32
* `ill_conditioned`: condition number 1e6; what works with sums of products meets its square
* `ill_scaled`: features from 1e-6 to 1e6
* `dead_channels`, `rank_deficient`: constant features, and features that repeat others
* `tiny`, `huge`: values around 1e-20 and 1e20
* `constant_front`, `constant_end`: one side never changes

`tests/metrics/test_torture.py` makes this table.

| data | measure | value | truth, or why there is no value | error |
|---|---|---|---|---|"""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_values_that_are_not_finite_are_refused(name, bad):
    x, y = (side.float() for side in pair())
    y[5, 3] = bad
    for through in (through_grid, through_rows):
        with pytest.raises(ValueError, match="NaN or infinite"):
            through(name, x, y)


def test_refusal_says_how_many_images_and_what_to_do():
    with pytest.raises(ValueError, match=r"at least 32 images, got 20.*--view channels"):
        through_grid("cca", *few_images())


@pytest.mark.parametrize("name", ["cca", "cca_mean", "lr"])
def test_rounding_noise_is_no_direction(name):
    """A channel that varies in its last bit only, where scaling to unit variance would make it as good as any."""
    x, y = pair()
    noisy = x.clone()
    noisy[:, 2] = 30.1 + 3.6e-15 * (torch.arange(IMAGES) % 2).double()
    assert noisy[0, 2] != noisy[1, 2]
    without = x[:, [0, 1, 3, 4, 5, 6, 7]]
    for through in (through_grid, through_rows):
        assert through(name, noisy, y) == pytest.approx(through(name, without, y), abs=1e-12)


@pytest.mark.parametrize("name", ["cka", "cka_debiased", "cka_rbf"])
def test_float32_features_far_from_zero(name):
    """More features than images, stored in float32, with means a hundred times the spread."""
    x, y = pair(150, 400)
    x, y = (30 + 0.3 * x).float(), (30 + 0.3 * y).float()
    for through in (through_grid, through_rows):
        assert through(name, x, y) == pytest.approx(truth(name, x, y), abs=2e-6)


@pytest.mark.parametrize("features", [1300, 900])
def test_sums_over_millions_of_float32_products(features):
    """torch.norm and numpy's dot of float32 are off here, and by more than 1e-3 at 10000 images; sum() is not."""
    x, y = pair(2500, features)
    exact = float(METRICS["cka"].of_rows(x, y))
    assert float(METRICS["cka"].of_rows(x.float(), y.float())) == pytest.approx(exact, abs=1e-6)
    assert through_grid("cka", x.float(), y.float()) == pytest.approx(exact, abs=1e-6)


def test_uncentred_float32_would_fail():
    """The torture is real: the textbook shortcut in float32 misses the offset case by far."""
    x, y = offset()
    n, mean = len(x), x.mean(0)
    shortcut = x.T @ x - n * torch.outer(mean, mean)
    exact = (x.double() - x.double().mean(0)).T @ (x.double() - x.double().mean(0))
    assert float((shortcut - exact).norm() / exact.norm()) > 1e-3
    gram_x, gram_y = x @ x.T, y @ y.T
    uncentred = float((gram_x * gram_y).sum() / gram_x.norm() / gram_y.norm())
    assert uncentred > 0.999 and truth("cka", x, y) < 0.9
    assert np.isfinite(uncentred)
