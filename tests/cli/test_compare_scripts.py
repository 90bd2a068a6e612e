"""compare_nets.py, compare_frank_m2.py, eval_net.py and layer_info.py as users run them."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import compare_frank_m2
import compare_nets
import eval_net
import eval_stitch
import layer_info
import stitch_nets
from src import results
from src.cutting.parts import head
from src.dataset import load_split
from src.metrics import MEASURES, METRICS
from src.networks import checkpoints
from tests.paths import ROOT

DIGITS = [str(ROOT / f"model_weights/Tiny10/Digits/{seeds}/440.pt") for seeds in ("in0-gn0", "in1-gn1")]


def written(pattern: str) -> dict:
    (path,) = Path("results").rglob(pattern)
    return results.read(path)


def activation(weights: str, layer: str, split: str, dataset: str = "digits") -> np.ndarray:
    network = checkpoints.load(weights).network
    with torch.no_grad():
        parts = [head(network, layer)(images) for images, _ in load_split(dataset, split).batches(100)]
    return torch.cat(parts).numpy()


def test_compare_nets_matches_a_plain_computation(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    compare_nets.main([*DIGITS, "bn3", "bn3", "digits", "cka", "l2"])
    result = written("compare_nets-bn3-bn3.pkl")
    x, y = (activation(weights, "bn3", "val").reshape(359, -1).astype(np.float64) for weights in DIGITS)
    assert abs(result["values"]["l2"] - ((x - y) ** 2).mean()) < 1e-6
    centre = np.eye(359) - 1 / 359
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert abs(result["values"]["cka"] - (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())) < 1e-6
    printed = capsys.readouterr().out
    assert f"{result['values']['cka']:.6f}" in printed and "biased - debiased CKA" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert result["health"]["images"]["images"] == 359


def test_every_method_runs_alone_and_all_together(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*DIGITS, "fc", "fc", "digits"]
    compare_nets.main([*options, *MEASURES, "-t", "train", "--run-name", "all"])
    together = results.read(Path("results/all/compare_nets-fc-fc-train.pkl"))["values"]
    for name in MEASURES:
        compare_nets.main([*options, name, "-t", "train", "-b", "77", "--run-name", name])
        alone = results.read(Path(f"results/{name}/compare_nets-fc-fc-train.pkl"))["values"][name]
        assert MEASURES[name].number(alone) == pytest.approx(MEASURES[name].number(together[name]), abs=1e-6)


def test_views_and_groups(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*DIGITS, "bn5", "bn5", "digits"]
    compare_nets.main([*options, "cca", "cka", "--view", "channels", "--run-name", "c"])
    assert set(results.read(Path("results/c/compare_nets-bn5-bn5.pkl"))["views"].values()) == {"channels"}
    compare_nets.main([*options, "cka", "-g", "120", "--run-name", "g"])
    assert "mean over groups" in " ".join(capsys.readouterr().out.split())
    x, y = (activation(weights, "bn5", "val").reshape(359, -1).astype(np.float64) for weights in DIGITS)
    expected = [
        METRICS["cka"].of_rows(torch.tensor(x[a:b]), torch.tensor(y[a:b]))
        for a, b in ((0, 120), (120, 240), (240, 359))
    ]
    grouped = results.read(Path("results/g/compare_nets-bn5-bn5.pkl"))["values"]["cka"]
    assert grouped == pytest.approx(np.average(expected, weights=[120, 120, 119]), abs=1e-5)


def test_refusals_are_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        ([*DIGITS, "bn5", "bn5", "digits", "cca"], "cca of 2592 features needs at least 2594 images.*--view channels"),
        ([*DIGITS, "bn5", "bn6", "digits", "l2"], "l2"),
        ([*DIGITS, "bn5", "bn5", "folder:nowhere", "cka"], "no folder nowhere"),
        ([*DIGITS, "bn5", "bn5", "digits", "cosine"], "invalid choice: 'cosine'"),
    ):
        with pytest.raises(SystemExit) as stop:
            compare_nets.main(arguments)
        captured = capsys.readouterr()
        assert stop.value.code == 2 and captured.err.count("\n") == 1, captured.err
        assert re.search(message, captured.err), captured.err
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_method_that_shapes_refuse_leaves_the_others_alone(toy, monkeypatch, capsys) -> None:
    """The layers have 3 and 5 channels, so that they have no l2."""
    pytest.importorskip("matplotlib")
    pair = ["a3.pt", "b5.pt", "bn1", "bn1", "toy"]
    for others in (["cka"], ["jsd"], ["cka", "--intervals"]):
        name = "".join(others)
        compare_nets.main([*pair, "l2", *others, "--plot", "--run-name", name])
        assert capsys.readouterr().out.count("l2: no value: l2 needs activations of one shape") == 1
        found = results.read(Path(f"results/{name}/compare_nets-bn1-bn1.pkl"))
        assert list(found["values"]) == others[:1] and list(found["refused"]) == ["l2"]
    compare_nets.main(["a3.pt", "b5.pt", "bn1,conv2", "bn1,conv2", "toy", "l2", "cka", "--plot", "--run-name", "g"])
    assert "l2: no value for 4 of 4 pairs" in capsys.readouterr().out
    monkeypatch.setattr("src.evaluation.layer_grid.feed", lambda *_, **__: pytest.fail("work was done"))
    for layers in (["bn1", "bn1"], ["bn1,conv2", "bn1,conv2"]):
        with pytest.raises(SystemExit, match="2"):
            compare_nets.main(["a3.pt", "b5.pt", *layers, "toy", "l2"])
        assert capsys.readouterr().err.startswith("error: l2 needs activations of one shape")


def test_compare_frank_m2_agrees_with_the_stitch_result(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    stitch_nets.main([*DIGITS, "bn3", "bn3", "-i", "ps_inv", "-e", "1", "--run-name", "s"])
    path = Path("results/s/bn3-bn3.pkl")
    stitched = results.read(path)
    for kind, key in (("before", "before"), ("after", "frank"), ("ps_inv", "ps_inv")):
        compare_frank_m2.main([str(path), kind, "cka", "l2", "l2_relative", "--run-name", kind])
        values = results.read(Path(f"results/{kind}/compare_frank_m2-bn3-bn3-{kind}.pkl"))["values"]
        assert values["cka"] == pytest.approx(stitched[f"cka_{key}"], abs=1e-6)
        for name in ("l2", "l2_relative"):
            assert values[name] == pytest.approx(stitched[f"{name}_{key}"], rel=1e-5)
    compare_frank_m2.main([str(path), "after", "l2", "-l", "fc"])
    later = written("compare_frank_m2-bn3-bn3-after-fc.pkl")["values"]["l2"]
    assert later > 0
    with pytest.raises(SystemExit):
        compare_frank_m2.main([str(path), "after", "l2", "-l", "bn1"])


def test_layer_info_lists_what_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    layer_info.main(["nbntiny10"])
    layer_info.main(["resnet20_w2", "-d", "cifar100"])
    table = written("layer_info-resnet20_w2-cifar100.pkl")["layers"].set_index("layer")
    assert isinstance(table, pd.DataFrame)
    assert table.loc["layer2.0.add", "output"] == "64 x 16 x 16" and table.loc["layer2.0.add", "stitch"] == "channels"
    assert table.loc["fc", "output"] == "100" and table.loc["fc", "parameters"] == 128 * 100 + 100
    assert "layer3.2.relu" in capsys.readouterr().out


def test_eval_net_on_shipped_digits(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for weights in DIGITS:
        eval_net.main([weights])
    (first, _) = sorted(Path("results").rglob("eval_net-*.pkl"))
    result = results.read(first)
    assert result["acc"] >= 0.97 and result["images"] == 359 and "accuracy 99" in capsys.readouterr().out
    plain = tmp_path / "plain.pt"
    torch.save(checkpoints.load(DIGITS[0]).network.state_dict(), plain)
    with pytest.raises(SystemExit):
        eval_net.main([str(plain)])
    assert "does not say its model" in capsys.readouterr().err
    eval_net.main([str(plain), "-m", "tiny10", "-d", "digits", "--run-name", "p"])


def test_moved_and_changed_weights(tmp_path, monkeypatch, capsys, toy) -> None:
    stitch_nets.main(["a3.pt", "b5.pt", "bn1", "bn1", "-e", "1", "-b", "16", "--run-name", "s"])
    Path("a3.pt").rename("moved.pt")
    for arguments, code in (([], 2), (["--front-model", "moved.pt"], None), (["--front-model", "b3.pt"], 2)):
        try:
            eval_stitch.main(["results/s/bn1-bn1.pkl", "after", *arguments])
        except SystemExit as stop:
            assert stop.code == code and capsys.readouterr().err.splitlines()[-1].startswith("error: ")
        else:
            assert code is None


def test_moved_weights_that_say_nothing_are_known_from_the_result(toy) -> None:
    folder = Path("Toy_w3/Toy/in0-gn0")
    folder.mkdir(parents=True)
    torch.save(checkpoints.load("a3.pt").network.state_dict(), folder / "0.pt")
    stitch_nets.main([str(folder / "0.pt"), "b5.pt", "bn1", "bn1", "-e", "0", "--run-name", "s"])
    (folder / "0.pt").rename("moved.pt")
    eval_stitch.main(["results/s/bn1-bn1.pkl", "after", "--front-model", "moved.pt", "--run-name", "e"])
    stitched, evaluated = (
        results.read(Path("results/s/bn1-bn1.pkl")),
        results.read(Path("results/e/eval_stitch-bn1-bn1-after.pkl")),
    )
    assert evaluated["acc"] == stitched["model_results"]["trans"]["acc"]


def test_both_splits_share_a_folder(toy) -> None:
    for split in ("val", "train"):
        eval_net.main(["a3.pt", "-t", split, "--run-name", "r"])
    names = [path.name for path in sorted(Path("results/r").iterdir())]
    assert names == ["eval_net-toy_w3-toy-in0-gn0-a3-train.pkl", "eval_net-toy_w3-toy-in0-gn0-a3.pkl"]


def float32_cka(*files: str) -> float:
    """What float32 sums give on the kind of processor that made the published figures."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if "openblas" not in blas or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the published sums need OpenBLAS on x86-64, not {blas} on {platform.machine()}")
    module = ROOT / "tests/float32_cka.py"
    surroundings = os.environ | {"OPENBLAS_CORETYPE": "Haswell"}
    run = subprocess.run([sys.executable, module, *files], env=surroundings, capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.data
@pytest.mark.reference
class TestReference:
    """Numbers that the published scripts gave; float32 sums made each CKA a little too large (docs/differences.md)."""

    def test_eval_net(self, reference, numbers, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        for seeds, expected in numbers["eval_net Tiny10/CIFAR10"].items():
            eval_net.main([str(reference / f"model_weights/Tiny10/CIFAR10/{seeds}/110000.pt"), "--run-name", seeds])
            result = results.read(Path(f"results/{seeds}/eval_net-tiny10-cifar10-{seeds}-110000.pkl"))
            assert abs(result["acc"] - expected["acc"]) < 1e-4 and abs(result["loss"] - expected["loss"]) < 1e-4

    def test_eval_stitch(self, reference, numbers, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        published = numbers["stitch bn3 bn3, in0 -> in10"]
        for kind, key in (("after", "published_bn3-bn3.pkl, type after"), ("ps_inv", "type ps_inv (fitted on val)")):
            eval_stitch.main([str(reference / "published_bn3-bn3.pkl"), kind, "--run-name", kind])
            result = results.read(Path(f"results/{kind}/eval_stitch-published_bn3-bn3-{kind}.pkl"))
            assert abs(result["acc"] - published[key]["acc"]) < 1e-4
            assert abs(result["loss"] - published[key]["loss"]) < 1e-4

    def test_compare_nets_and_the_float32_error_of_the_published_cka(self, reference, numbers, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        weights = [str(reference / f"model_weights/Tiny10/CIFAR10/in{i}-gn{i}/110000.pt") for i in (0, 10)]
        compare_nets.main([*weights, "bn5", "bn5", "cifar10", "cka", "l2", "--run-name", "c"])
        values = results.read(Path("results/c/compare_nets-bn5-bn5.pkl"))["values"]
        published = json.loads((reference / "numbers.json").read_text())
        published = published["compare_nets Tiny10 in0 in10, val, all 10000 images"]["bn5"]
        assert values["l2"] == pytest.approx(published["l2"], abs=1e-5)
        # float64 truth, by two other formulas: 0.8372354
        assert values["cka"] == pytest.approx(0.8372354, abs=1e-6)
        for weight, name in zip(weights, "xy", strict=True):
            np.save(f"{name}.npy", activation(weight, "bn5", "val", "cifar10").reshape(10_000, -1))
        assert float32_cka("x.npy", "y.npy") == pytest.approx(published["cka"], abs=1e-6)


def test_a_folder_is_compared_stitch_by_stitch(toy, capsys) -> None:
    stitch_nets.main(["a3.pt", "b5.pt", "bn1,conv2", "bn1", "-e", "0", "--run-name", "r"])
    capsys.readouterr()
    compare_frank_m2.main(["results/r", "before", "cka", "jsd", "l2", "--run-name", "c"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:2]] == [["stitch", "cka", "jsd", "l2"]]
    rows = results.read(Path("results/c/compare_frank_m2-r-before.pkl"))["stitches"]
    for row, line, name in zip(rows, lines[2:], ("bn1-bn1", "conv2-bn1"), strict=False):
        compare_frank_m2.main([f"results/r/{name}.pkl", "before", "cka", "jsd", "l2", "--run-name", name])
        alone = results.read(Path(f"results/{name}/compare_frank_m2-{name}-before.pkl"))
        assert row["values"] == alone["values"] and row["stitch"] == f"results/r/{name}.pkl"
        assert line.split() == [name, *(f"{row['values'][method]:.4f}" for method in ("cka", "jsd", "l2"))]


def test_networks_of_other_classes_have_no_decisions_to_compare_and_all_else(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "from torch import nn\n\n\ndef seven():\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 7))\n"
    )
    pair = [DIGITS[0], "nets.py:seven", "bn8", "3", "digits"]
    for options in ([], ["--intervals"]):
        compare_nets.main([*pair, "jsd", "cka", "--overwrite", "--run-name", "r", *options])
        assert capsys.readouterr().out.count("jsd: no value: 10 and 7 outputs, where digits has 10 classes") == 1
        found = results.read(Path("results/r/compare_nets-bn8-3.pkl"))
        assert list(found["values"]) == ["cka"] and list(found["refused"]) == ["jsd"]
    for methods in (["jsd"], ["jsd", "l2"]):
        with pytest.raises(SystemExit, match="2"):
            compare_nets.main([*pair, *methods])
        assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["note:", "error:"]


def test_a_stitch_too_keeps_what_can_be_compared(toy, capsys) -> None:
    """`cca` of 3 channels by 5 in the view of images needs more images than there are."""
    stitch_nets.main(["a3.pt", "b5.pt", "bn1", "bn1", "-e", "0", "-i", "ps_inv", "--run-name", "s"])
    command = ["results/s/bn1-bn1.pkl", "after", "--view", "images"]
    capsys.readouterr()
    compare_frank_m2.main([*command, "cca", "jsd", "--run-name", "c"])
    assert "cca: no value: cca of" in capsys.readouterr().out
    found = results.read(next(toy.rglob("results/c/*.pkl")))
    assert list(found["values"]) == ["jsd"] and list(found["refused"]) == ["cca"]
    with pytest.raises(SystemExit, match="2"):
        compare_frank_m2.main([*command, "cca", "--run-name", "d"])
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cca of")
    assert not list(toy.rglob("results/d/*.pkl"))


def test_decisions_are_not_compared_by_the_number_of_a_class(toy, capsys) -> None:
    """As many classes, of other names: what needs no labels is compared."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    np.savez("n.npz", x_val=images, y_val=np.arange(8) % 4, classes=np.array(["p", "q", "r", "s"]))
    words = ["a3.pt", "b3.pt", "bn1", "bn1", "arrays:n.npz"]
    found = compare_nets.run(compare_nets.parse_args([*words, "cka", "disagreement", "abs_acc_diff"]))
    assert set(found["values"]) == {"cka", "disagreement"}
    assert "not both known to have the classes of arrays:n.npz" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        compare_nets.main([*words, "abs_acc_diff"])


def test_damaged_results_in_a_folder_are_named(toy, capsys) -> None:
    stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "-e", "0", "--run-name", "f"])
    Path("results/f/torn.pkl").write_bytes(Path("results/f/bn1-bn1.pkl").read_bytes()[:500])
    for script, more in ((eval_stitch, []), (compare_frank_m2, ["cka"])):
        script.main(["results/f", "after", *more, "--no-save"])
        assert "left out: cannot read results/f/torn.pkl" in capsys.readouterr().err


def test_a_stitch_of_an_untrained_network_is_opened_again(toy) -> None:
    stitch_nets.main(["toy_w3#0", "b3.pt", "bn1", "bn1", "-e", "0", "--run-name", "u"])
    assert results.read(Path("results/u/bn1-bn1.pkl"))["params"]["dataset"] == "toy"
    eval_stitch.main(["results/u/bn1-bn1.pkl", "after", "--no-save"])
    compare_frank_m2.main(["results/u/bn1-bn1.pkl", "after", "cka", "--no-save"])


def test_a_set_of_which_one_diverged_is_gone_on_with(toy) -> None:
    words = ["a3.pt", "b3.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "1", "-b", "16", "--optimizer", "sgd"]
    words += ["-lr", "1e-3,1e38", "--run-name", "d"]
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit) as stop:
            stitch_nets.main([*words, *more])
        assert stop.value.code == 2
        assert [path.name for path in Path("results/d").glob("*.pkl")] == ["bn1-bn1,lr=0.001.pkl"]
