"""A family of stitches that is no affine map asks for its class and its line in FAMILIES, and for nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from src import results
from src.core.errors import UserError
from src.dataset import load_split
from src.evaluation.evaluate import evaluate
from src.metrics.cka import linear_cka
from src.networks.checkpoints import load
from src.results.plots import draw_stitch
from src.results.saved_stitch import load_stitch
from src.results.stitch_text import stitch_table, stitches_table
from src.stitching import CutNetworks, Geometry, Stitch, StitchSpec, from_arrays
from src.stitching import run as stitching
from src.stitching.layer import FAMILIES
from src.stitching.run import StitchPlan, stitch

SPEC = StitchSpec("bn1", "bn1", epochs=2, batch_size=16, lr=0.01, init="ps_inv", l1=0.01, save_frequency=1)


class Kernel(Stitch):
    """A 3 x 3 convolution that starts at an affine map."""

    family = "kernel"

    def __init__(self, w: Tensor, b: Tensor, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.weight, self.bias = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.geometry.interpolate(x), self.weight, self.bias, padding=1)

    def arrays(self) -> dict[str, Any]:
        copied = {name: value.detach().cpu().numpy().copy() for name, value in self.named_parameters()}
        return {"family": self.family, **copied}

    def snapshot(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any], geometry: Geometry) -> "Kernel":
        return cls(torch.as_tensor(arrays["weight"]), torch.as_tensor(arrays["bias"]), geometry)


@pytest.fixture
def found(toy: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Results of two seeds of the family."""
    initial = stitching._initial

    def widened(cuts: CutNetworks, spec: StitchSpec, moments: Any) -> Kernel:
        affine = initial(cuts, spec, moments).affine()
        w = affine.w.new_zeros(*affine.w.shape, 3, 3)
        w[:, :, 1, 1] = affine.w
        return Kernel(w, affine.b.clone(), cuts.geometry(spec.cut))

    monkeypatch.setattr(stitching, "_initial", widened)
    monkeypatch.setitem(FAMILIES, "kernel", Kernel)
    front, end = load("a3.pt"), load("b3.pt")
    specs = [SPEC, replace(SPEC, seed=1)]
    cuts = CutNetworks(front.network, end.network, specs, torch.zeros(2, 1, 8, 8))
    outcomes: list[Any] = stitch(cuts, load_split("toy", "train"), load_split("toy", "val"), StitchPlan(ood=True))
    about = {"weights": {"front": front.facts(), "end": end.facts()}}
    names = {"front_model": "a3.pt", "end_model": "b3.pt", "dataset": "toy"}
    made = [
        {"params": names | {name: getattr(spec, name) for name in StitchSpec.__slots__}, **about, **outcome}
        for spec, outcome in zip(specs, outcomes, strict=True)
    ]
    return made


def test_its_figures_are_those_of_its_activations(found: list[dict[str, Any]]) -> None:
    result = found[0]
    split = load_split("toy", "val")
    images = torch.cat([images for images, _ in split.batches(64)])
    with torch.no_grad():
        networks = [load(file).network for file in ("a3.pt", "b3.pt")]
        cuts = CutNetworks(networks[0], networks[1], [SPEC], images[:2])
        x, y = (cuts.outputs(role, ["bn1"], images)["bn1"] for role in ("front", "end"))
        made = from_arrays(result["trans_m"]["after"], cuts.geometry(SPEC.cut))(x)
        accuracy = (cuts.forward_from("bn1", made, images).argmax(1) == split.labels).double().mean()
    rows = [value.flatten(1).double() for value in (y, made)]
    assert_close(result["cka_frank"], float(linear_cka(*rows)), rtol=0, atol=1e-6)
    assert_close(result["l2_frank"], float((rows[0] - rows[1]).square().mean()), rtol=1e-5, atol=0)
    variance = rows[0].view(len(y), y.shape[1], -1).transpose(1, 2).flatten(0, 1).var(0, correction=0).mean()
    assert_close(result["l2_relative_frank"], float(result["l2_frank"] / variance), rtol=1e-5, atol=0)
    assert result["model_results"]["trans"]["acc"] == pytest.approx(float(accuracy))
    assert result["trans_m"]["after"]["weight"].shape == (3, 3, 3, 3) and "diff" not in result["trans_m"]
    assert not np.array_equal(result["trans_m"]["before"]["weight"], result["trans_m"]["after"]["weight"])


def test_it_is_written_read_shown_and_drawn(found: list[dict[str, Any]]) -> None:
    result, path = found[0], Path("kernel.pkl")
    results.write(path, result, overwrite=False)
    saved = load_stitch(path, "after")
    assert isinstance(saved.stitch, Kernel)
    accuracy = evaluate(saved.network, load_split("toy", "val"), batch_size=48)["acc"]
    assert accuracy == result["model_results"]["trans"]["acc"]
    assert "after" in stitch_table(results.read(path)) and "seed" in stitches_table(found)
    draw_stitch(results.read(path), Path("kernel.png"))
    assert Path("kernel.png").stat().st_size > 1000
    with pytest.raises(UserError, match="family 'none' of stitches is unknown"):
        from_arrays({"family": "none"}, saved.pair.geometry)
