"""Images whose colour and shape go together or part: their kinds, and the pages of the experiments."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.can_it_mislead import VARIANTS, span, table
from benchmarks.cues import BORDER, CLASSES, COLOURS, EXPERIMENTS, RUNS, SETS, bordered, digits, photographs
from benchmarks.pages import renew
from src.dataset import load_split
from tests.paths import ROOT


def hue_of(images: np.ndarray) -> np.ndarray:
    """The colour of the ground, told at a corner where there is no ink."""
    apart = np.abs(images[:, 0, 0, None] / 255.0 - COLOURS).sum(2)
    return apart.argmin(1)


def test_sets_of_images_are_what_they_are_called() -> None:
    known = load_split("digits", "val").labels.numpy()
    for kind, shared in (("agreeing", 1.0), ("conflicting", 0.0), ("independent", 0.1), ("shape", 0.1)):
        images, labels = digits(kind, "val")
        assert images.shape[1:] == (32, 32, 3) and images.dtype == np.uint8
        assert (labels == known).all() and abs((hue_of(images) == labels).mean() - shared) < 0.07
    images, labels = digits("colour", "val")
    assert (hue_of(images) == labels).all() and (labels == known).mean() < 0.2
    noise, labels = digits("noise", "val")
    means = torch.stack([torch.tensor(noise[labels == label]).double().mean(0) for label in range(CLASSES)])
    assert float((means[0] - means[1]).abs().mean()) > 10  # a pattern of its own for each class


def test_a_border_has_the_colour_and_leaves_the_photograph() -> None:
    images = np.random.default_rng(0).integers(0, 256, (CLASSES, 16, 12, 3)).astype(np.uint8)
    painted, inside = bordered(images, np.arange(CLASSES)), (slice(None), *2 * [slice(BORDER, -BORDER)])
    assert (hue_of(painted) == np.arange(CLASSES)).all() and (painted[inside] == images[inside]).all()
    edge = painted.copy()
    edge[inside] = painted[:, :1, :1]
    assert (edge == painted[:, :1, :1]).all()


@pytest.mark.data
def test_photographs_are_what_they_are_called() -> None:
    kinds = {kind: photographs(kind, "val") for kind in ("agreeing", "conflicting", "shape", "colour")}
    for kind, shared in (("agreeing", 1.0), ("conflicting", 0.0), ("shape", 0.1), ("colour", 1.0)):
        images, labels = kinds[kind]
        assert abs((hue_of(images) == labels).mean() - shared) < 0.03
    assert (kinds["agreeing"][1] == kinds["conflicting"][1]).all()
    assert (kinds["agreeing"][0][:, 5:-5, 5:-5] == kinds["colour"][0][:, 5:-5, 5:-5]).all()


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_each_run_has_networks_of_its_own(experiment) -> None:
    runs = [experiment.networks(number) for number in range(RUNS)]
    folders = [(front.called, front.seed) for end, fronts in runs for front in (end, *fronts.values())]
    assert len(folders) == len({*folders}) and all(list(fronts) == list(runs[0].fronts) for _, fronts in runs)


def test_a_cell_says_the_least_and_the_most_of_all_runs() -> None:
    assert [span(pd.Series(values)) for values in ([99.6, 100], [1.4, 0.6], [7, 3, 5])] == ["100", "1", "3-7"]
    shares = {f"{variant} {kind}": [0.5, 0.25] for variant in VARIANTS for kind in SETS}
    frame = pd.DataFrame({"front": "f", "layer": "l", **shares, "cka data": 0.5, "cka iri": [0.25, 0.75], "error": 0.1})
    assert table(frame, {"cka": "CKA"})[1] == ["f", "l", *3 * ["25-50 / 25-50 / 25-50"], "0.50", "0.25-0.75", "0.10"]


def test_the_page_has_a_row_for_each_front_and_layer() -> None:
    page = ROOT.joinpath("docs", "can_it_mislead.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.count("|") == 9]
    assert len(rows) == 2 + 5 * 3
    other = renew(page, "can_it_mislead", "| a |")
    assert other.count("| a |") == 1 and "| colour | bn3 |" not in other
