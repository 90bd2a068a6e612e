"""Many stitches at once: each as it would be alone, to the last bit, whatever happens to the others."""

import importlib
import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import src.stitching.moments
import src.stitching.run
import src.stitching.validation
import stitch_nets
from src import results
from src.dataset import load_split
from src.networks.checkpoints import load
from src.results.frame import CACHE
from src.stitching import INITS, MASKS, TARGETS, CutNetworks, StitchSpec
from src.stitching.layer import KINDS
from src.stitching.masks import SPELLINGS
from src.stitching.run import Callbacks, StitchPlan, stitch
from tests.same import assert_same

SAMPLE = torch.zeros(2, 1, 8, 8)
BASE = StitchSpec("bn1", "bn1", epochs=2, batch_size=16, save_frequency=1)
CHANGES: list[dict[str, Any]] = [
    *(dict(kind.options) for kind in KINDS.values()),
    {"flatten": True},
    {"cka_reg": 0.1},
    {"l1": 0.1},
    {"optimizer": "sgd"},
    {"kernel": 3, "init": "ps_inv"},
    {"hidden": 8},
    {"norm": True},
    {"whiten": True},
    {"whiten": True, "mask": "semi-match", "init": "ps_inv", "l1": 0.1},
    {"whiten": True, "low_rank": 2},
    {"front_layer": "pool", "end_layer": "conv2", "resize": True},
    {"front_layer": "fc1", "end_layer": "fc1"},
]


def specs_of_every_kind() -> list[StitchSpec]:
    inits = [f"{init}:9" if init == "relative" else init for init in INITS]
    changes = [{"init": init} for init in [*inits, "ridge:0.1"]] + [
        {"mask": mask, "init": "ps_inv"} for mask in sorted(MASKS.keys() - SPELLINGS.keys())
    ]
    changes += [{"target_type": target} for target in TARGETS] + CHANGES
    return list(dict.fromkeys(replace(BASE, **change) for change in changes))


def run(specs: list[StitchSpec], *, front: str = "a3.pt", end: str = "b3.pt", **options: Any) -> list[Any]:
    networks = [load(file).network for file in (front, end)]
    cuts = CutNetworks(networks[0], networks[1], specs, SAMPLE)
    return stitch(cuts, load_split("toy", "train"), load_split("toy", "val"), StitchPlan(**options))


def test_each_of_many_is_what_it_is_alone(toy: Path) -> None:
    specs = specs_of_every_kind()
    together = run(specs)
    for spec, found in zip(specs, together, strict=True):
        (alone,) = run([spec])
        assert_same(alone, found)


def test_seeds_have_batches_of_their_own_and_share_the_rest(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    original = src.stitching.moments.feed
    monkeypatch.setattr(src.stitching.moments, "feed", lambda *a, **o: passes.append(o["title"]) or original(*a, **o))
    specs = [replace(BASE, init="ps_inv", seed=seed) for seed in (0, 1, 2)]
    found = run(specs)
    assert passes == ["moments on train"]
    maps = [result["trans_m"]["after"]["w"].tobytes() for result in found]
    assert len(set(maps)) == 3 and len({result["trans_m"]["before"]["w"].tobytes() for result in found}) == 1
    for spec, result in zip(specs, found, strict=True):
        assert_same(run([spec])[0]["trans_m"], result["trans_m"])


def test_without_similarity_the_rest_is_the_same(toy: Path) -> None:
    specs = [replace(BASE, init=init, front_layer=layer) for init in ("ps_inv", "random") for layer in ("bn1", "conv2")]
    for full, lean in zip(run(specs), run(specs, similarity=False), strict=True):
        assert full["cka_frank"] is not None and lean["cka_frank"] is None and lean["cka"] is None
        for key in ("l2", "l2_frank", "l2_relative_ps_inv"):
            assert lean[key] == pytest.approx(full[key], rel=1e-12)
        assert_same(full["model_results"], lean["model_results"])


def test_l2_is_the_mean_squared_difference(toy: Path) -> None:
    spec = replace(BASE, init="ps_inv", epochs=1)
    (found,) = run([spec])
    networks = [load(file).network.eval() for file in ("a3.pt", "b3.pt")]
    images, _ = next(load_split("toy", "val").batches(1000))
    with torch.no_grad():
        x, y = (network.bn1(network.conv1(images)).double() for network in networks)  # type: ignore[operator]
    for name, suffix in (("after", "_frank"), ("ps_inv", "_ps_inv"), ("ls_train", "_ls_train")):
        w, b = (torch.as_tensor(found["trans_m"][name][key]).double() for key in ("w", "b"))
        mapped = torch.einsum("oi,nihw->nohw", w[:, :, 0, 0], x) + b[:, None, None]
        squared = (mapped - y).square().mean().item()
        variance = (y - y.mean((0, 2, 3), keepdim=True)).square().mean().item()
        assert found[f"l2{suffix}"] == pytest.approx(squared, rel=1e-5)
        assert found[f"l2_relative{suffix}"] == pytest.approx(squared / variance, rel=1e-5)
    assert found["l2"] == pytest.approx((x - y).square().mean().item(), rel=1e-5)


def test_a_network_stitched_to_itself_is_at_no_distance(toy: Path) -> None:
    (found,) = run([replace(BASE, init="eye", epochs=0)], end="a3.pt")
    assert found["l2"] == 0 and found["l2_frank"] == 0 and str(found["l2_frank"]) == "0.0"
    assert found["model_results"]["trans"] == found["model_results"]["end"]


def test_a_little_memory_takes_groups_and_says_so(toy: Path) -> None:
    specs = [replace(BASE, init="ps_inv", end_layer=end) for end in ("bn1", "conv1", "conv2")]
    notices: list[str] = []
    few = run(specs, memory=1, callbacks=Callbacks(notices.append))
    assert notices == ["3 stitches in 3 groups, to stay below 1e-09 GB of moments"]
    for one, other in zip(run(specs), few, strict=True):
        assert_same(one["trans_m"], other["trans_m"])
        assert_same(one["model_results"], other["model_results"])


def test_equal_maps_are_scored_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    original = CutNetworks.forward_through
    monkeypatch.setattr(CutNetworks, "forward_through", lambda self, *given: ran.append("") or original(self, *given))
    run([replace(BASE, init="ps_inv", epochs=0)])
    assert len(ran) == 2  # before, after and ls_train are one; ps_inv is the other; one batch


def test_labels_of_other_classes_leave_what_needs_them_empty(toy: Path) -> None:
    spec = replace(BASE, init="ps_inv", target_type="soft_2", epochs=1)
    (labelled,), (unlabelled,) = run([spec]), run([spec], labelled=False)
    assert unlabelled["model_results"]["trans"] == {"loss": None, "acc": None}
    assert unlabelled["hits"]["m2_frank"] is None and unlabelled["constant_accuracy"] is None
    assert unlabelled["m2_sim"]["after"]["rel_acc"] is None
    assert unlabelled["m2_sim"]["after"]["same_class_out"] == labelled["m2_sim"]["after"]["same_class_out"]
    assert_same(unlabelled["trans_m"], labelled["trans_m"])


# the script

COMMAND = ("a3.pt", "b3.pt", "bn1,conv2", "bn1,conv2", "-i", "ps_inv", "-e", "2", "-b", "16", "--seed", "0,1")


def test_a_front_of_unknown_classes_agrees_but_has_no_accuracy(toy: Path) -> None:
    spec = replace(BASE, target_type="soft_12")
    (known,), (unknown,) = run([spec]), run([spec], front_labelled=False)
    assert unknown["model_results"].pop("front") == {"loss": None, "acc": None}
    del known["model_results"]["front"]
    for figures, other in ((known["m2_sim"].pop("m1"), unknown["m2_sim"].pop("m1")),):
        assert other == figures | {"rel_acc": None}
    assert unknown["intervals"].pop("front").keys() == {"same_class_out"} and known["intervals"].pop("front")
    assert_same(unknown, known)


@pytest.mark.parametrize(("where", "call", "states"), [("validation", 2, 1), ("outcome", 1, 2)])
def test_a_set_killed_in_training_is_resumed_to_the_same(
    where: str, call: int, states: int, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the first epoch of the second seed, and behind the last one, when all that is left is to be scored."""
    stitch_nets.main([*COMMAND, "--run-name", "whole"])
    module = importlib.import_module(f"src.stitching.{where}")
    count, original = 0, module.tally

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, "tally", interrupted)
    with pytest.raises(SystemExit):
        stitch_nets.main([*COMMAND, "--run-name", "cut"])
    monkeypatch.setattr(module, "tally", original)
    left = list(Path("results/cut").glob("*.resume.pt"))
    assert not list(Path("results/cut").glob("*.pkl")) and len(left) == states
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 2 of 2")]
    assert len(last) == 1  # of the whole run
    with pytest.raises(SystemExit):
        stitch_nets.main([*COMMAND, "--run-name", "cut"])
    assert "is of an interrupted run; --resume goes on" in capsys.readouterr().err
    kept = {path: path.read_bytes() for path in Path("results/cut").glob("*.resume.pt")}
    for other in (["-e", "1"], ["--seed", "5,6"], ["-lr", "0.5"]):  # the last of an option counts
        with pytest.raises(SystemExit):
            stitch_nets.main([*COMMAND, "--run-name", "cut", "--resume", *other])
        assert "it was started with other options, layers" in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in Path("results/cut").glob("*.resume.pt")}
    stitch_nets.main([*COMMAND, "--run-name", "cut", "--resume"])
    assert last == [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 2 of 2")]
    names = sorted(path.name for path in Path("results/whole").glob("*.pkl"))
    left = sorted(path.name for path in Path("results/cut").iterdir())
    assert len(names) == 8 and left == [CACHE, *names]
    assert "conv2-bn1,seed=1.pkl" in names
    for name in names:
        one, other = (results.read(Path("results") / run / name) for run in ("whole", "cut"))
        assert one["key"] == other["key"]
        for key in ("trans_fit", "trans_history", "trans_m", "model_results"):
            assert pickle.dumps(one[key]) == pickle.dumps(other[key])


def test_one_that_diverges_has_no_result_and_the_others_do(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["a3.pt", "b3.pt", "bn1", "bn1", "-e", "2", "-b", "16", "--optimizer", "sgd", "-lr", "0.01,1e30"]
    with pytest.raises(SystemExit) as stop:
        stitch_nets.main([*command, "--run-name", "r"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "error: 1 of 2 stitches diverged and have no result; bn1-bn1,lr=1e+30: the loss is" in captured.err
    assert [path.name for path in Path("results/r").glob("*.pkl")] == ["bn1-bn1,lr=0.01.pkl"]
    alone = ["a3.pt", "b3.pt", "bn1", "bn1", "-e", "2", "-b", "16", "--optimizer", "sgd", "-lr", "0.01"]
    stitch_nets.main([*alone, "--run-name", "s"])
    one, other = (results.read(Path(path)) for path in ("results/r/bn1-bn1,lr=0.01.pkl", "results/s/bn1-bn1.pkl"))
    assert_same(one["trans_m"], other["trans_m"])
    assert one["key"] == other["key"]


def test_zip_takes_the_first_with_the_first(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stitch_nets.main(["a3.pt", "b3.pt", "bn1,conv2", "conv*", "--pairs", "zip", "-e", "0", "--run-name", "r"])
    assert {path.name for path in Path("results/r").glob("*.pkl")} == {"bn1-conv1.pkl", "conv2-conv2.pkl"}
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table[1:4]] == [["front", "end"], ["bn1", "conv1"], ["conv2", "conv2"]]
    with pytest.raises(SystemExit):
        stitch_nets.main(["a3.pt", "b3.pt", "bn1,conv2", "bn1", "--pairs", "zip"])
    assert "--pairs zip needs as many front layers as end layers, not 2 and 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-i", "eye,best"], "unknown init 'best'"),
        (["-r", "1,9"], "rank 9 exceeds 3"),
        (["-r", "1,full", "-m", "semi-match"], "--low-rank 1 excludes --mask semi-match"),
        (["-lr", "0.1,0"], "'0' is not a number above 0"),
        (["--resume"], "--resume needs the --run-name"),
        (["--no-save", "--plot"], "--no-save excludes --plot"),
    ],
)
def test_what_is_refused_alone_refuses_the_command(options, message, toy: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", *options])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
    assert not list(toy.rglob("*.pkl"))


def test_a_result_per_stitch_holds_its_own_settings(toy: Path) -> None:
    stitch_nets.main([*COMMAND, "-r", "1,full", "--run-name", "r", "--no-similarity"])
    table = results.table("results/r")
    assert len(table) == 16 and table["key"].nunique() == 16
    for names in itertools.product(("bn1", "conv2"), ("bn1", "conv2")):
        rows = table[(table["front_layer"] == names[0]) & (table["end_layer"] == names[1])]
        assert (
            sorted(rows["seed"]) == [0, 0, 1, 1] and sum(rank is None or rank != rank for rank in rows["low_rank"]) == 2
        )
    assert np.isnan(table["cka_after"]).all() and not np.isnan(table["l2_after"]).any()


def test_no_save_writes_nothing(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(toy.rglob("*"))
    stitch_nets.main([*COMMAND, "--no-save"])
    stitch_nets.main([*COMMAND[:2], "bn1", "bn1", "-e", "1", "-b", "16", "--no-save", "--json"])
    assert sorted(toy.rglob("*")) == before
    assert '"result": null' in capsys.readouterr().out
