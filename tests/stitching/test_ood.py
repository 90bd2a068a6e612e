"""Whether stitched activations look like end's own: known answers."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stitch_nets
from src import results
from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.cutting.parts import later_layers, tail, tails
from src.dataset import DATASETS, load_split
from src.metrics.algebra.moments import Affine
from src.networks.checkpoints import load
from src.stitching import ConstantStitch, ControlSpec, CutNetworks, StitchLayer, StitchSpec
from src.stitching.controls import prepare_controls
from src.stitching.ood import Scores, _Kept, _Reference, auroc, out_of_distribution
from tests.toy import SIZE

SAMPLE = torch.zeros(2, 1, SIZE, SIZE)
BASE = StitchSpec("bn1", "bn1", epochs=0)


def scores(
    w: torch.Tensor, b: torch.Tensor, *, shuffled: bool = False, constant: bool = False, layer: str = "bn1"
) -> Scores:
    """What a network stitched to itself by a map of three channels gets at each layer."""
    network = load("b3.pt").network
    spec = replace(BASE, front_layer=layer, end_layer=layer)
    train, val = load_split("toy", "train"), load_split("toy", "val")
    cuts = CutNetworks(network, network, [spec], SAMPLE)
    if shuffled:
        cuts, (train, val, _) = prepare_controls(cuts, [spec], ["shuffled"], (train, val, train), fresh=None)
        spec = ControlSpec.of(spec, "partner")
    if constant:
        spec = ControlSpec.of(spec, "front", constant=True)
    geometry = cuts.geometry(spec.cut)
    sewn = ConstantStitch(b, geometry) if constant else StitchLayer(Affine(w.double(), b.double()), geometry)
    return out_of_distribution(cuts, {"one": (spec, sewn)}, train, val)["one"]


def test_the_network_itself_cannot_be_told_apart(toy: Path) -> None:
    found = scores(torch.eye(3), torch.zeros(3))
    assert list(found) == ["bn1", "conv2", "relu", "pool", "fc1", "fc2", "logits"]  # the ReLU's last call counts
    for place, values in found.items():
        assert values["auroc"] == pytest.approx(0.5, abs=1e-3) == values["auroc_signed"], place
        assert values["fpr95"] == pytest.approx(0.95, abs=0.03) and values["l2_relative"] < 1e-9, place


def test_other_images_have_the_same_distribution_and_another_activation(toy: Path) -> None:
    plain, other = (scores(torch.eye(3), torch.zeros(3), shuffled=shuffled) for shuffled in (False, True))
    for key in ("auroc", "auroc_signed", "fpr95"):
        assert other["bn1"][key] == pytest.approx(plain["bn1"][key], abs=1e-3)
    assert other["bn1"]["l2_relative"] > 0.5


def test_noise_is_far_above_and_a_constant_closer_than_any(toy: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    wild = scores(20 * torch.randn(3, 3, generator=generator), 20 * torch.randn(3, generator=generator))
    assert wild["bn1"]["auroc"] > 0.99 and wild["bn1"]["auroc_signed"] > 0.99 and wild["bn1"]["fpr95"] < 0.01
    network = load("b3.pt").network
    with torch.no_grad():
        images = next(load_split("toy", "train").batches(48))[0]
        mean = network.get_submodule("bn1")(network.get_submodule("conv1")(images)).mean((0, 2, 3))
    still = scores(torch.zeros(3, 3), mean, constant=True)
    assert still["bn1"]["auroc_signed"] < 0.01 and still["bn1"]["auroc"] > 0.9
    assert still["bn1"]["l2_relative"] == pytest.approx(1, abs=0.1)


def test_what_end_never_does_is_far_however_little_the_rest_differs() -> None:
    """A channel that is always 0 in end's own activations, and not in the stitched ones."""
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(500, 4, generator=generator), torch.randn(300, 4, generator=generator)
    own[:, 0] = other[:, 0] = 0
    stitched = other.clone()
    stitched[:, 0] = torch.randn(300, generator=generator)
    reference = _Reference(["x"], SINGLE_LABEL)
    reference.learn({"x": own})
    reference.merge()
    assert auroc(reference.distances("x", stitched).numpy(), reference.distances("x", other).numpy()) > 0.99
    assert reference.distances("x", other).mean() == pytest.approx(3, abs=0.5)


def test_the_distance_is_that_of_mahalanobis(toy: Path) -> None:
    """Against one written out with numpy, of features."""
    network = load("b3.pt").network
    w, b = torch.tensor([[1.0, 0.2, 0], [0, 0.5, 0], [0.1, 0, 2]]), torch.tensor([0.1, -0.2, 0.3])
    found = scores(w, b, layer="fc1")["fc1"]
    part = {}
    for name in ("train", "val"):
        x: list[np.ndarray] = []
        handle = network.get_submodule("fc1").register_forward_hook(lambda _m, _i, out, x=x: x.append(np.asarray(out)))
        with torch.no_grad():
            network(next(load_split("toy", name).batches(48))[0])
        handle.remove()
        part[name] = x[0].astype(float)
    mean, precision = part["train"].mean(0), np.linalg.inv(np.cov(part["train"].T, bias=True))

    def d2(x: np.ndarray) -> np.ndarray:
        return np.einsum("ni,ij,nj->n", x - mean, precision, x - mean)

    stitched = part["val"] @ w.double().numpy().T + b.double().numpy()
    usual = np.median(d2(part["train"]))
    own, other = np.abs(d2(part["val"]) - usual), np.abs(d2(stitched) - usual)
    assert found["auroc"] == pytest.approx(auroc(other, own), abs=1e-3)
    assert found["auroc_signed"] == pytest.approx(auroc(d2(stitched), d2(part["val"])), abs=1e-3)
    expected = ((stitched - part["val"]) ** 2).mean() / part["val"].var(0).mean()
    assert found["l2_relative"] == pytest.approx(expected, rel=1e-4)


def test_independent_labels_have_an_energy_each(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "toy", replace(DATASETS["toy"], task=MULTI_LABEL))
    b = torch.tensor([1.0, -1.0, 0.5, -2.0])
    found = scores(torch.eye(4), b, layer="fc2")["logits"]
    with torch.no_grad():
        train, val = (load("b3.pt").network(next(load_split("toy", name).batches(48))[0]) for name in ("train", "val"))
    usual, own, stitched = (-np.log1p(np.exp(x.double().numpy())).sum(1) for x in (train, val, val + b))
    assert found["auroc_signed"] == pytest.approx(auroc(stitched, own), abs=1e-6)
    centre = np.median(usual)
    assert found["auroc"] == pytest.approx(auroc(np.abs(stitched - centre), np.abs(own - centre)), abs=1e-6)


def test_auroc_counts_pairs() -> None:
    assert auroc(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])) == (1 + 1.5 + 2) / 6
    assert auroc(np.ones(3), np.ones(4)) == 0.5


def test_later_layers_and_tails_of_several(toy: Path) -> None:
    network = load("a3.pt").network
    assert later_layers(network, "pool", SAMPLE) == ["flatten", "fc1", "fc2"]
    assert later_layers(network, "fc2", SAMPLE) == []
    x, images = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 1, SIZE, SIZE)
    several = tails(network, "conv2", ["pool", "fc1", ""])(x, images)
    for layer, found in zip(("pool", "fc1", ""), several, strict=True):
        torch.testing.assert_close(found, tail(network, "conv2", layer)(x, images))


def test_the_script_says_and_keeps_it(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["a3.pt", "b3.pt", "bn1", "bn1", "-e", "1", "-b", "16", "--ood", "--controls", "constant,untrained"]
    stitch_nets.main([*command, "--run-name", "r"])
    printed = capsys.readouterr().out
    assert "at bn1" in printed and "AUROC 0.5, fpr95 0.95" in printed
    assert max(map(len, printed.splitlines())) <= 80
    found = results.read(toy / "results/r/bn1-bn1.pkl")
    assert found["ood"].keys() == {"before", "after", "ps_inv", "constant", "untrained"}
    for row, ending in {"before": "_before", "after": "_frank", "ps_inv": "_ps_inv"}.items():
        assert found["ood"][row]["bn1"]["l2_relative"] == pytest.approx(found[f"l2_relative{ending}"], rel=1e-5)
    (row,) = results.table(toy / "results").to_dict("records")
    assert row["ood_auroc_after"] == found["ood"]["after"]["bn1"]["auroc"]


def test_a_layer_that_is_called_logits_is_not_mixed_up_with_the_logits(toy: Path) -> None:
    layers = {"conv": nn.Conv2d(1, 3, 3), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    head, splits = nn.Linear(3, 4), [load_split("toy", split) for split in ("train", "val")]
    spec = replace(BASE, front_layer="conv", end_layer="conv")
    found = []
    for name in ("logits", "head"):
        network = nn.Sequential(OrderedDict(layers | {name: head})).eval()
        cuts = CutNetworks(network, network, [spec], SAMPLE)
        sewn = StitchLayer(Affine(2 * torch.eye(3).double(), torch.zeros(3).double()), cuts.geometry(spec.cut))
        found.append(out_of_distribution(cuts, {"one": (spec, sewn)}, *splits)["one"])
    assert list(found[0]) == ["conv", "pool", "logits"] and found[1].keys() - found[0].keys() == {"head"}
    for place, values in found[0].items():
        assert values == pytest.approx(found[1][place]), place


def test_a_stitch_of_the_whole_network_is_judged_by_the_logits(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stitch_nets.main(["a3.pt", "b3.pt", "", "", "-e", "0", "--ood", "--run-name", "r"])
    assert "at the output" in capsys.readouterr().out
    found = results.read(toy / "results/r/output-output.pkl")["ood"]["after"]
    assert list(found) == ["logits"]
    (row,) = results.table(toy / "results").to_dict("records")
    assert row["ood_auroc_after"] == found["logits"]["auroc"]


def test_later_layers_are_laid_out_as_was_asked(toy: Path) -> None:
    network = load("b3.pt").network
    cuts = CutNetworks(network, network, [BASE], SAMPLE, layouts=("channels_last", "channels_last"))
    names, _ = cuts.downstream("bn1")
    assert "conv2" in names
    assert cuts.outputs("end", ["conv2"], SAMPLE)["conv2"].shape == (2, SIZE, 3, SIZE)


def test_what_is_kept_of_images_lies_in_one_tensor_a_place() -> None:
    kept, addresses = _Kept(5), []
    for images in (2, 2, 1):
        kept.add("x", torch.full((images,), float(images)))
        addresses += [values.data_ptr() for values, _ in kept._kept.values()]
    assert len(addresses) == 3 and len(set(addresses)) == 1
    assert kept.read()["x"].tolist() == [2, 2, 2, 2, 1]
