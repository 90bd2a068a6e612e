"""CKA of what stitches make of activations: that of the activations themselves, whoever asks beside them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import src.stitching.cka
from src.dataset import load_split
from src.evaluation.passes import feed
from src.metrics.cka import linear_cka
from src.networks.checkpoints import load
from src.stitching import CutNetworks, StitchLayer, StitchSpec, build_stitch
from src.stitching.cka import FRONT, can_share, ckas, share, shared_ckas
from src.stitching.inits import random_uniform
from tests.toy import save_toy

SAMPLE = torch.zeros(2, 1, 8, 8)
BASE = StitchSpec("bn1", "bn1", resize=True)
LAYERS = ["bn1", "conv2", "pool"]  # 8 x 8, 8 x 8 and 2 x 2 positions


def cuts_of(front: str, end: str, specs: list[StitchSpec]) -> tuple[CutNetworks, dict[StitchSpec, StitchLayer]]:
    cuts = CutNetworks(load(front).network, load(end).network, specs, SAMPLE)
    generator = torch.Generator().manual_seed(0)
    stitches = {}
    for spec in specs:
        geometry = cuts.geometry(spec.cut)
        stitches[spec] = build_stitch(random_uniform(geometry, generator), geometry)
    return cuts, stitches


def plainly(cuts: CutNetworks, spec: StitchSpec, stitch: StitchLayer | None) -> float:
    """Of all activations at once, in float64."""
    sides: dict[str, list[Tensor]] = {"x": [], "y": []}

    def keep(outputs: dict) -> None:
        x, y = outputs["front"][spec.front_layer], outputs["end"][spec.end_layer]
        sides["x"].append((stitch(x) if stitch else x).flatten(1).double())
        sides["y"].append(y.flatten(1).double())

    with torch.no_grad():
        feed(
            [lambda images: cuts.front_activations([spec], images, {"end": [spec.end_layer]})],
            load_split("toy", "val"),
            keep,
        )
    return float(linear_cka(torch.cat(sides["x"]), torch.cat(sides["y"])))


def every_pair() -> list[StitchSpec]:
    pairs = [replace(BASE, front_layer=front, end_layer=end) for front in LAYERS for end in LAYERS]
    flat = [replace(spec, resize=False, flatten=True) for spec in pairs]
    return [*pairs, *flat, replace(BASE, front_layer="fc1", end_layer="fc1", resize=False)]


@pytest.mark.parametrize(("front", "end"), [("a3.pt", "b5.pt"), ("b5.pt", "a3.pt")])
def test_cka_is_that_of_the_mapped_activations(front: str, end: str, toy: Path) -> None:
    """Up to more positions and down to fewer, to more channels and to fewer, value by value."""
    cuts, stitches = cuts_of(front, end, every_pair())
    val = load_split("toy", "val")
    found = ckas(cuts, {spec.cut: {"map": stitch} for spec, stitch in stitches.items()}, val)
    for spec, stitch in stitches.items():
        assert found[spec.cut, "map"] == pytest.approx(plainly(cuts, spec, stitch), abs=1e-6)
        assert found[spec.cut, FRONT] == pytest.approx(plainly(cuts, spec, None), abs=1e-6)
        if can_share(cuts.geometry(spec.cut), len(val)):
            shared = shared_ckas(share(cuts, [spec.cut], val)[spec.cut], {"map": stitch})
            assert shared == pytest.approx({name: found[spec.cut, name] for name in shared}, abs=1e-6)


@pytest.mark.parametrize("features", [10**9, 1500, 800, 10])
def test_neither_company_nor_portions_matter(features: int, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts, stitches = cuts_of("a3.pt", "b5.pt", every_pair())
    val = load_split("toy", "val")
    asked = {spec.cut: {"one": stitch, "other": stitch} for spec, stitch in stitches.items()}
    alone = {}
    for cut, maps in asked.items():
        alone |= ckas(cuts, {cut: maps}, val)
    monkeypatch.setattr(src.stitching.cka, "cka_group", lambda *_: None)
    monkeypatch.setattr(src.stitching.cka, "STORE_BYTES", 4 * len(val) * features)
    tasks = []
    monkeypatch.setattr(src.stitching.cka, "_compare", _counting(src.stitching.cka._compare, tasks))
    assert ckas(cuts, asked, val) == alone
    for task in tasks:
        pair = len(task.sides) == len(task.ends) == 1
        assert pair or task.bytes(len(val), None) <= 4 * len(val) * features
    least, most = {10**9: (5, 5), 1500: (6, 20), 800: (20, 40), 10: (40, 48)}[features]
    assert least <= len(tasks) <= most  # from a task for all fronts and one for each end layer to one for each value


def _counting(function, tasks: list):
    def counted(cuts, task, *rest):
        tasks.append(task)
        return function(cuts, task, *rest)

    return counted


def test_a_front_that_many_ask_for_is_compared_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_toy(toy / "wide.pt", 7, 3)
    specs = [replace(BASE, front_layer=front, end_layer=end) for front in LAYERS for end in LAYERS]
    cuts, stitches = cuts_of("wide.pt", "b5.pt", specs)
    tasks = []
    monkeypatch.setattr(src.stitching.cka, "_compare", _counting(src.stitching.cka._compare, tasks))
    ckas(cuts, {spec.cut: {"map": stitch} for spec, stitch in stitches.items()}, load_split("toy", "val"))
    own, *mapped = tasks
    assert [side.source[1] for side in own.sides] == LAYERS and list(own.ends) == LAYERS
    assert [list(task.ends) for task in mapped] == [[layer] for layer in LAYERS]
    assert [side.features for side in mapped[0].sides] == [5 * 64, 5 * 64, 5 * 4]  # pool -> bn1 in 4 positions
