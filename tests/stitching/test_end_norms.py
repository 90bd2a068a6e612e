"""BatchNorm statistics of the end network that follow a stitch: its own, kept, and used by every reader."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import compare_frank_m2
import eval_stitch
import stitch_nets
from src import results
from src.core.errors import UserError
from src.dataset import load_split
from src.models import build_model
from src.networks.checkpoints import load
from src.results.saved_stitch import load_stitch
from src.stitching import CutNetworks, StitchObjective, StitchSpec, initial_stitch
from src.stitching.run import StitchPlan, stitch
from tests.same import assert_same

SAMPLE = torch.zeros(2, 1, 8, 8)
BASE = StitchSpec("bn1", "conv1", epochs=2, batch_size=16, train_end_norm=True)  # bn1 of the end is behind it
PAIR = ("a3.pt", "b3.pt", "bn1", "conv1", "-d", "toy", "-b", "16", "-lr", "0.05", "--train-end-norm")


def cut(specs: list[StitchSpec]) -> CutNetworks:
    return CutNetworks(load("a3.pt").network, load("b3.pt").network, specs, SAMPLE)


def run(specs: list[StitchSpec], **options: Any) -> list[Any]:
    return stitch(cut(specs), load_split("toy", "train"), load_split("toy", "val"), StitchPlan(**options))


def test_a_step_is_that_of_the_network_in_training_mode(toy: Path) -> None:
    cuts, split = cut([BASE]), load_split("toy", "train")
    layer = initial_stitch(cuts.geometry(BASE.cut), None, seed=1)
    layer.norms = cuts.end_norms("conv1")
    layer.train()
    images, labels = next(split.batches(16))
    loss, _ = StitchObjective(cuts, BASE, layer, split.spec.task)(cuts.share([BASE], images), images, labels)
    loss.backward()
    end = load("b3.pt").network.train()
    assert isinstance(end.bn1, nn.BatchNorm2d)
    twin = initial_stitch(cuts.geometry(BASE.cut), None, seed=1)
    stitched = twin(cuts.outputs("front", ["bn1"], images)["bn1"])
    end.conv1.register_forward_hook(lambda *_: stitched)  # pyright: ignore
    expected = split.spec.task.loss(end(images), labels)
    expected.backward()
    assert_close(loss, expected)
    assert_close(layer.weight.grad, twin.weight.grad)
    assert_close(layer.norms.arrays()["end:bn1.running_mean"], end.bn1.running_mean.numpy())  # pyright: ignore
    assert_close(layer.norms.arrays()["end:bn1.running_var"], end.bn1.running_var.numpy())  # pyright: ignore
    before = load("b3.pt").network.state_dict()
    assert_same(dict(cuts.networks["end"].state_dict()), dict(before))  # the donor keeps its own


def test_each_has_its_own_and_is_what_it_is_alone(toy: Path) -> None:
    specs = [BASE, replace(BASE, seed=1), replace(BASE, train_end_norm=False), replace(BASE, target_type="match_later")]
    together = run(specs, controls=["constant", "self_random", "untrained"][:2], ood=True)
    for spec, found in zip(specs, together, strict=True):
        (alone,) = run([spec], controls=["constant", "self_random"], ood=True)
        for key in ("trans_m", "model_results", "ood", "controls", "match_errors"):
            assert_same(alone[key], found[key])
    means = [found["trans_m"]["after"].get("end:bn1.running_mean") for found in together]
    assert means[2] is None and not np.array_equal(means[0], means[1])
    assert "end:bn1.running_mean" not in together[0]["trans_m"]["before"]


def test_every_reader_uses_them(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stitch_nets.main([*PAIR, "-e", "2", "--run-name", "r"])
    path = Path("results/r/bn1-conv1.pkl")
    result = results.read(path)
    saved = load_stitch(path, "after")
    images, labels = next(load_split("toy", "val").batches(100))
    with torch.no_grad():
        logits = saved.network(images)
        end = load("b3.pt").network.eval()
        for kind in ("running_mean", "running_var"):
            getattr(end.bn1, kind).copy_(torch.as_tensor(result["trans_m"]["after"][f"end:bn1.{kind}"]))
        x = cut([BASE]).outputs("front", ["bn1"], images)["bn1"]
        w, b = (torch.as_tensor(result["trans_m"]["after"][key]) for key in ("w", "b"))
        end.conv1.register_forward_hook(lambda *_: nn.functional.conv2d(x, w, b))  # pyright: ignore
        assert_close(logits, end(images))
    accuracy = float((logits.argmax(1) == labels).double().mean())
    assert result["model_results"]["trans"]["acc"] == pytest.approx(accuracy)
    capsys.readouterr()
    eval_stitch.main([str(path), "after", "--run-name", "e"])
    assert f"accuracy {accuracy:.2%}" in capsys.readouterr().out
    compare_frank_m2.main([str(path), "after", "l2", "-l", "bn1", "--run-name", "c"])
    (compared,) = (results.read(file) for file in Path("results/c").glob("*.pkl"))
    with torch.no_grad():
        own = load("b3.pt").network.eval()
        expected = (end.bn1(nn.functional.conv2d(x, w, b)) - own.bn1(own.conv1(images))).square().mean()  # pyright: ignore
    assert compared["values"]["l2"] == pytest.approx(float(expected), rel=1e-4)


def test_a_run_that_was_killed_goes_on_with_them(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import src.stitching.validation as stitching

    stitch_nets.main([*PAIR, "-e", "3", "--run-name", "whole"])
    original, count = stitching.tally, 0

    def interrupted(*given: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return original(*given, **options)

    monkeypatch.setattr(stitching, "tally", interrupted)
    with pytest.raises(SystemExit):
        stitch_nets.main([*PAIR, "-e", "3", "--run-name", "cut"])
    monkeypatch.setattr(stitching, "tally", original)
    stitch_nets.main([*PAIR, "-e", "3", "--run-name", "cut", "--resume"])
    one, other = (results.read(Path(f"results/{run}/bn1-conv1.pkl")) for run in ("whole", "cut"))
    assert_same(one["trans_m"], other["trans_m"])


def test_a_network_without_batchnorm_behind_the_stitch_is_refused(toy: Path) -> None:
    with pytest.raises(UserError, match="--train-end-norm: Toy has no BatchNorm behind fc1"):
        cut([replace(BASE, front_layer="fc1", end_layer="fc1")])


def test_residual_networks_keep_all_their_statistics() -> None:
    torch.manual_seed(0)
    networks = [build_model("resnet20_w1", channels=3, classes=10, size=32).eval() for _ in range(2)]
    spec = StitchSpec("layer2.0.add", "layer2.0.add", train_end_norm=True)
    cuts = CutNetworks(networks[0], networks[1], [spec], torch.zeros(2, 3, 32, 32))
    norms = cuts.end_norms("layer2.0.add")
    assert len(norms.names) > 5 and all(name.startswith(("layer2", "layer3")) for name in norms.names)
