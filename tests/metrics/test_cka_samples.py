"""What few images, few units and one far image do to CKA, and what is corrected."""

import itertools
import math

import numpy as np
import pytest
import torch

from src.metrics import METRICS
from src.metrics.algebra.gram import gram_sums
from src.metrics.algebra.layer import Layer
from src.metrics.cka import cka_of_units, participation_of


def pair(images: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 5, generator=generator).double() @ torch.diag(torch.tensor([3.0, 2, 1, 1, 0.5]).double())
    return x + 2, x[:, :4] + torch.randn(images, 4, generator=generator)


def over_different_images(x: torch.Tensor) -> float:
    """The ratio of both U-statistics, summed over all images that differ, one by one."""
    k, n = (x @ x.T).numpy(), len(x)
    two, three, four = (list(itertools.permutations(range(n), count)) for count in (2, 3, 4))
    last = np.mean([k[i, j] * k[a, b] for i, j, a, b in four])
    above = np.mean([k[i, i] * k[j, j] for i, j in two]) - 2 * np.mean([k[i, i] * k[j, a] for i, j, a in three]) + last
    below = np.mean([k[i, j] ** 2 for i, j in two]) - 2 * np.mean([k[i, j] * k[j, a] for i, j, a in three]) + last
    return above / below


def test_participation_ratios_are_of_images_that_all_differ() -> None:
    x, y = pair()
    sums = gram_sums([Layer.of(x).centre()], [Layer.of(y).centre()])[0, 0]
    assert participation_of([sums]) == pytest.approx([over_different_images(side) for side in (x, y)], rel=1e-9)
    short = gram_sums([Layer.of(x[:3]).centre()], [Layer.of(y[:3]).centre()])[0, 0]
    assert participation_of([short]) is None and participation_of([]) is None


def test_participation_ratios_do_not_depend_on_how_many_images_there_are() -> None:
    spectrum = torch.linspace(1, 3, 40).double()
    truth = float(spectrum.square().sum() ** 2 / spectrum.pow(4).sum())
    found: dict[int, float] = {}
    for images in (16, 64):
        generator = torch.Generator().manual_seed(images)
        sums = []
        for _ in range(200):
            x = torch.randn(images, 40, generator=generator).double() * spectrum
            sums.append(gram_sums([x - x.mean(0)], [x - x.mean(0)])[0, 0])
        ratio = participation_of(sums)
        assert ratio
        found[images] = ratio[0]
        plain = np.mean([group.traces[0] ** 2 / group.whole[1] for group in sums])
        assert plain < 0.75 * truth  # at most the number of images
    assert found == pytest.approx({16: truth, 64: truth}, rel=0.05)


def test_they_are_those_of_the_package_of_the_paper() -> None:
    x, y = pair(50)
    by_images = participation_of([gram_sums([Layer.of(x).centre()], [Layer.of(y).centre()])[0, 0]])
    dimensionality = pytest.importorskip("dimensionality")
    expected = [dimensionality.participation_ratio(side.numpy(), return_all=True)["row"] for side in (x, y)]
    assert by_images == pytest.approx(expected, rel=1e-9)


def test_few_units_do_not_lower_what_is_corrected_for_them() -> None:
    """Two populations of units that read the same thirty sources; what is drawn of them is few."""
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(30, 400, generator=generator).double() * torch.linspace(a, b, 30).double()[:, None]
        for a, b in ((1, 1), (0.5, 2))
    ]
    whole = torch.randn(4000, 30, generator=generator).double()
    truth = METRICS["cka_debiased"].of_rows(whole @ maps[0], whole @ maps[1])
    values: dict[str, list[float]] = {"cka_units": [], "cka_debiased": []}
    for _ in range(60):
        sources = torch.randn(200, 30, generator=generator).double()
        x, y = (sources @ m[:, torch.randperm(400, generator=generator)[:40]] for m in maps)
        for name, known in values.items():
            known.append(METRICS[name].of_rows(x, y))
    assert np.mean(values["cka_units"]) == pytest.approx(truth, abs=0.06)
    assert np.mean(values["cka_debiased"]) < truth - 0.2


def test_who_cannot_be_corrected_for_units_is_refused() -> None:
    x, y = pair()
    for some, message in (((x[:3], y[:3]), "3 images are too few"), ((x[:, :1], y), "a side of one unit")):
        with pytest.raises(ValueError, match=message):
            cka_of_units(*map(Layer.of, some))
    apart = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double())[0]
    with pytest.raises(ValueError, match="vary together no more than by chance"):
        cka_of_units(Layer.of(apart), Layer.of(apart))


@pytest.mark.parametrize("moved", [[3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_where_cka_goes_if_images_are_moved_to_infinity(moved: list[int]) -> None:
    """rho / (1 - rho) * |mean of the moved|^2 / mean |x|^2 * sqrt(participation ratio), of centred rows."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 20, generator=generator).double()
    x = x - x.mean(0)
    y = x.clone()
    y[moved] += 1e7 * torch.randn(20, generator=generator).double()
    share = len(moved) / len(x)
    spectrum = torch.linalg.eigvalsh(x.T @ x)
    expected = share / (1 - share) * float(x[moved].mean(0).square().sum() / x.square().sum(1).mean())
    expected *= math.sqrt(float(spectrum.sum() ** 2 / spectrum.square().sum()))
    assert METRICS["cka"].of_rows(x, y) == pytest.approx(expected, rel=1e-3)
