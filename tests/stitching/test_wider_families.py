"""Kernels, hidden units and batch normalisation: where they start, what they are, and that they are read back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import compare_frank_m2
import eval_stitch
import stitch_nets
from src import results
from src.core.errors import UserError
from src.dataset import load_split
from src.metrics.algebra.moments import PairedMoments
from src.networks.checkpoints import load
from src.results.saved_stitch import load_stitch
from src.stitching import CutNetworks, Geometry, StitchSpec, from_arrays, initial_stitch
from src.stitching.families import EPSILON, HiddenStitch, KernelStitch, NormStitch
from src.stitching.run import StitchPlan, stitch
from tests.same import assert_same

SAMPLE = torch.zeros(2, 1, 8, 8)
WIDE = Geometry((3, 4, 4), (5, 4, 4))
BASE = StitchSpec("bn1", "bn1", epochs=1, batch_size=16, init="ps_inv")
FAMILIES: list[dict[str, Any]] = [{"kernel": 3}, {"hidden": 8}, {"norm": True}]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(specs: list[StitchSpec], end: str = "b5.pt") -> CutNetworks:
    return CutNetworks(load("a3.pt").network, load(end).network, specs, SAMPLE)


def run(specs: list[StitchSpec], end: str = "b5.pt", **options: Any) -> list[Any]:
    return stitch(cut(specs, end), load_split("toy", "train"), load_split("toy", "val"), StitchPlan(**options))


def moments_of(x: Tensor, y: Tensor) -> PairedMoments:
    moments = PairedMoments(x.shape[1], y.shape[1])
    moments.update(*(values.movedim(1, -1).flatten(0, -2).double() for values in (x, y)))
    return moments


def test_each_starts_as_the_affine_map() -> None:
    x = 2 * drawn(20, 3, 4, 4) + 1
    y = drawn(20, 5, 4, 4, seed=1)
    affine = initial_stitch(WIDE, None, seed=3)
    expected, start = affine(x), affine.affine()
    generator = torch.Generator()
    norm = NormStitch(start, WIDE, moments_of(x, y))
    assert_close(KernelStitch.around(start, 3, WIDE)(x), expected)
    assert_close(HiddenStitch.around(start, 6, WIDE, generator)(x), expected)
    assert_close(HiddenStitch.around(start, 9, WIDE, generator)(x), expected)
    assert_close(norm.eval()(x), expected, rtol=1e-4, atol=1e-5)
    assert_close(norm.train()(x), expected, rtol=1e-4, atol=1e-4)  # the batch is all there is
    few = HiddenStitch.around(start, 2, WIDE, generator)
    assert few(x).shape == expected.shape and few.count() == 2 * 3 + 2 + 5 * 2 + 5


def test_the_folded_map_is_that_of_two_batch_normalisations() -> None:
    x, y = 2 * drawn(50, 3, 4, 4) + 1, drawn(50, 5, 4, 4, seed=1)
    layer = NormStitch(initial_stitch(WIDE, None, seed=3).affine(), WIDE, moments_of(x, y))
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter += 0.3 * drawn(*parameter.shape, seed=number)
    before, after = nn.BatchNorm2d(3, eps=EPSILON), nn.BatchNorm2d(5, eps=EPSILON)
    for norm, gain, shift in ((before, layer.gain_before, layer.shift_before), (after, layer.gain_after, layer.bias)):
        norm.weight, norm.bias = nn.Parameter(gain.detach()), nn.Parameter(shift.detach())
    expected = after(F.conv2d(before(x), layer.weight[:, :, None, None]))
    assert_close(layer.train()(x), expected, rtol=1e-4, atol=1e-4)
    assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-4)
    assert_close(from_arrays(layer.arrays(), WIDE)(x), layer(x))


def test_a_fitted_kernel_is_least_squares_of_patches(toy: Path) -> None:
    (found,) = run([replace(BASE, kernel=3, epochs=0)])
    cuts, split = cut([BASE]), load_split("toy", "train")
    images = next(split.batches(100))[0]
    with torch.no_grad():
        x, y = (cuts.outputs(role, ["bn1"], images)["bn1"] for role in ("front", "end"))
    rows = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1).double().numpy()
    rows = np.c_[rows, np.ones(len(rows))]
    expected = np.linalg.lstsq(rows, y.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy(), rcond=None)[0]
    arrays = found["trans_m"]["before"]
    np.testing.assert_allclose(arrays["w"].reshape(5, -1), expected[:-1].T, atol=1e-5)
    np.testing.assert_allclose(arrays["b"], expected[-1], atol=1e-5)
    assert found["fits"]["before"] == {"rows": 48 * 64, "unknowns": 28}
    (centred,) = run([replace(BASE, kernel=3, init="random", epochs=0)])
    w = centred["trans_m"]["before"]["w"].copy()
    assert w[:, :, 1, 1].any()
    w[:, :, 1, 1] = 0
    assert not w.any()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_each_is_trained_written_and_read_back(toy: Path, family: dict[str, Any], capsys) -> None:
    (name, value), *_ = family.items()
    words = [f"--{name}"] if value is True else [f"--{name}", str(value)]
    pair = ["a3.pt", "b5.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "2", "-b", "16", "-lr", "0.01", "-d", "toy"]
    stitch_nets.main([*pair, *words, "--run-name", "r", "--controls", "all", "--ood"])
    path = Path("results/r/bn1-bn1.pkl")
    result = results.read(path)
    out = capsys.readouterr().out
    assert f"family: {'norm' if value is True else f'{name} {value}'}, {result['parameters']:,} parameters" in out
    saved = load_stitch(path, "after")
    split = load_split("toy", "val")
    images, labels = next(split.batches(100))
    with torch.no_grad():
        cuts = cut([BASE])
        x = cuts.outputs("front", ["bn1"], images)["bn1"]
        stitched = from_arrays(result["trans_m"]["after"], cuts.geometry(BASE.cut))(x)
        assert_close(saved.network(images), cuts.forward_from("bn1", stitched, images), rtol=0, atol=1e-6)
    accuracy = float((saved.network(images).argmax(1) == labels).double().mean())
    assert result["model_results"]["trans"]["acc"] == pytest.approx(accuracy)
    eval_stitch.main([str(path), "after", "--run-name", "e"])
    compare_frank_m2.main([str(path), "after", "cka", "l2", "--run-name", "c"])
    (compared,) = (results.read(file) for file in Path("results/c").glob("*.pkl"))
    assert compared["values"]["l2"] == pytest.approx(result["l2_frank"], rel=1e-4)
    assert compared["values"]["cka"] == pytest.approx(result["cka_frank"], rel=1e-4)
    assert not np.array_equal(result["trans_m"]["before"]["w2" if name == "hidden" else "w"], 0)
    assert result["trans_history"][0].keys() == result["trans_history"][max(result["trans_history"])].keys()
    assert {"constant", "shuffled", "self_random", "labels"} <= result["controls"].keys()


def test_each_of_many_is_what_it_is_alone_and_goes_on_after_a_kill(toy: Path) -> None:
    specs = [replace(BASE, **family) for family in FAMILIES]
    for spec, found in zip(specs, run(specs), strict=True):
        assert_same(run([spec])[0]["trans_m"], found["trans_m"])


def test_a_ladder_is_one_command(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pair = ["a3.pt", "b5.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "1", "-b", "16"]
    stitch_nets.main([*pair, "--family-ladder", "--run-name", "r", "--plot"])
    out = capsys.readouterr().out
    for rung in ("affine", "norm", "kernel 3", "hidden 6"):
        assert f" {rung} " in out
    assert "parameters" in out
    files = {path.stem for path in Path("results/r").glob("*.pkl")}
    assert files == {f"bn1-bn1,family={name}" for name in ("affine", "norm", "kernel3", "hidden6")}
    frame = results.table("results").set_index("path")
    assert sorted(frame["kernel"].dropna().unique()) == [0, 3] and sorted(frame["hidden"].unique()) == [0, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": 4}, "--kernel 4 has no centre"),
        ({"kernel": 3, "front_layer": "fc1", "end_layer": "fc1"}, "--kernel 3 is of maps"),
        ({"hidden": 4}, "--hidden 4 cannot start at --init ps_inv: .* takes 6 units"),
        ({"kernel": 3, "flatten": True}, "--kernel 3 excludes --flatten"),
        ({"norm": True, "low_rank": 2}, "--norm excludes --low-rank 2"),
        ({"hidden": 8, "norm": True}, "--hidden 8 excludes --norm"),
    ],
)
def test_what_cannot_be(toy: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut([replace(BASE, **change)])


def test_sums_of_patches_beyond_memory_are_refused_before_any_work(toy: Path) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match="sums of patches of 27 numbers take 0.0 GB; raise --memory above 1e-09"):
        run([replace(BASE, kernel=3)], memory=1.0)
    assert told == []


def test_arrays_that_do_not_fit_are_refused() -> None:
    kernel = {"family": "kernel", "w": np.zeros((5, 2, 3, 3), np.float32), "b": np.zeros(5, np.float32)}
    with pytest.raises(UserError, match="does not fit 3 and 5 channels"):
        from_arrays(kernel, WIDE)
    with pytest.raises(UserError, match="its w1 is no array"):
        from_arrays({"family": "hidden"}, WIDE)
