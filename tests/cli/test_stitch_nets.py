"""stitch_nets.py as users run it: every option alone and together, on files, and what it wrote."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import eval_stitch
import src.stitching.run
import src.stitching.validation
import stitch_nets
from src import results
from src.dataset import load_split
from src.networks import presentation as on_data
from src.results.saved_stitch import load_stitch
from src.stitching import INITS, MASKS, spec_names
from src.stitching.masks import SPELLINGS
from src.training.loop import DEBUG_STEPS
from tests.paths import ROOT

SAMPLE = torch.zeros(2, 1, 8, 8)

WEIGHTS = ROOT / "model_weights" / "Tiny10" / "Digits"
KINDS = {"full": [], "low-rank": ["--low-rank", "2"], "orthogonal": ["--orthogonal"], "flatten": ["--flatten"]}
UNRESTRICTED = ("ridge", "soft-match", "relative")  # maps that no restriction goes with: tests of closed forms
RESTRICTABLE = [init for init in INITS if init not in UNRESTRICTED]
MATRIX = list(itertools.product(RESTRICTABLE, sorted(MASKS.keys() - SPELLINGS.keys()), KINDS))


def stitch(front: str, end: str, front_layer: str, end_layer: str, *options: str) -> dict:
    """Run the script and open what it wrote."""
    stitch_nets.main([front, end, front_layer, end_layer, "--run-name", "r", "--overwrite", *options])
    return results.read(Path("results/r") / f"{front_layer}-{end_layer}.pkl")


@pytest.fixture
def train_states(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the scripts train, as it is when they are done."""
    kept = []
    original = src.stitching.run.fit_together

    def spy(courses, **options):
        kept.extend(train_state for course in courses for train_state in course.train_states)
        return original(courses, **options)

    monkeypatch.setattr(src.stitching.run, "fit_together", spy)
    return kept


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        stitch_nets.main(list(arguments))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def is_allowed(init: str, mask: str, kind: str) -> bool:
    restricted = kind in ("low-rank", "orthogonal")
    return not (restricted and mask != "identity") and not (kind == "orthogonal" and init == "ones-zeros")


def test_excluded_combinations_are_refused(toy, capsys) -> None:
    for init, mask, kind in MATRIX:
        if not is_allowed(init, mask, kind):
            assert "excludes" in refused(capsys, "a3.pt", "b3.pt", "bn1", "bn1", "-i", init, "-m", mask, *KINDS[kind])
    assert not list(toy.rglob("*.pkl"))


@pytest.mark.parametrize("is_square", [True, False], ids=["square", "wide"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_trains_and_reads_back(kind, is_square, toy, train_states, capsys) -> None:
    allowed = [(init, mask) for init, mask, other in MATRIX if other == kind and is_allowed(init, mask, kind)]
    allowed = [(init, mask) for init, mask in allowed if INITS[init].needs_square == is_square]
    inits, masks = (",".join(dict.fromkeys(names)) for names in zip(*allowed, strict=True))
    ends = ["a3.pt", "b3.pt" if is_square else "b5.pt", "bn1", "bn1"]
    options = ["-i", inits, "-m", masks, *KINDS[kind], "-e", "1", "-b", "16", "--seed", "3", "--run-name", "r"]
    stitch_nets.main([*ends, *options])
    told = capsys.readouterr().err
    specs = [one.objective.spec for one in train_states]
    assert [(spec.init, spec.mask) for spec in specs] == allowed
    paths = [f"results/r/{name}.pkl" for name in spec_names(specs)]
    images, _ = next(load_split("toy", "val").batches(48))
    for spec, path, train_state in zip(specs, paths, train_states, strict=True):
        maps, cuts = results.read(Path(path))["trans_m"], train_state.objective.cuts
        first, last = maps["before"]["w"], maps["after"]["w"]
        # a mask that keeps nothing of the init leaves zeros, which a ReLU behind them never lets go
        empty = f"--mask {spec.mask} keeps no weight of --init {spec.init};" in told and not first.any()
        assert empty or not np.array_equal(first, last), path
        with torch.no_grad():
            expected = cuts.logits(spec, train_state.trained, cuts.front_activations([spec], images), images)
            assert_close(load_stitch(Path(path), "after").network(images), expected, atol=1e-6, rtol=1e-6)
    for kind_of_map, key in (("before", "before"), ("after", "trans")):
        eval_stitch.main(["results/r", kind_of_map, "--run-name", "e"])
        rows = results.read(Path(f"results/e/eval_stitch-r-{kind_of_map}.pkl"))["stitches"]
        assert {row["stitch"] for row in rows} == set(paths)
        for row in rows:
            scores = results.read(Path(row["stitch"]))["model_results"][key]
            assert row["acc"] == scores["acc"] and abs(row["loss"] - scores["loss"]) < 1e-6, row["stitch"]


def test_networks_stay_bit_identical_and_only_the_stitch_learns(toy, monkeypatch) -> None:
    original, checked = src.stitching.run.fit_together, []

    def parts_of(train_state) -> list:
        cuts = train_state.objective.cuts
        cuts.share([train_state.objective.spec], SAMPLE)
        return [*cuts._heads.values(), *cuts._tails.values()]

    def spy(courses, **options):
        ((one,),) = (course.train_states for course in courses)
        parts = parts_of(one)
        before = [{key: value.clone() for key, value in part.state_dict().items()} for part in parts]
        original(courses, **options)
        for part, state in zip(parts, before, strict=True):
            assert all(torch.equal(part.state_dict()[key], value) for key, value in state.items())
            assert all(parameter.grad is None for parameter in part.parameters())
            checked.append(len(state))
        assert all(parameter.grad is not None for parameter in one.trained.parameters())

    monkeypatch.setattr(src.stitching.run, "fit_together", spy)
    stitch("a3.pt", "b5.pt", "bn1", "bn1", "-e", "3", "-b", "16", "--target-type", "soft_12", "--cka-reg", "0.1")
    assert len(checked) == 3 and all(checked)


def test_the_result_has_the_published_keys_and_opens_without_the_project(toy) -> None:
    result = stitch("a3.pt", "b5.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "2", "-b", "16", "-s", "2")
    assert {"params", "trans_fit", "trans_history", "trans_m", "model_results", "hits", "m2_sim", "git"} <= set(result)
    assert {"cka", "cka_frank", "cka_ps_inv", "l2", "l2_frank", "l2_ps_inv", "runner_code", "format"} <= set(result)
    maps = result["trans_m"]
    assert set(maps) == {"before", "after", "diff", "ps_inv", "ps_frank", "mask", "ls_train"}
    assert all(value["w"].shape == (5, 3, 1, 1) and value["b"].shape == (5,) for value in maps.values())
    assert_close(maps["diff"]["w"], maps["after"]["w"] - maps["before"]["w"])
    assert_close(maps["ps_frank"]["b"], maps["ps_inv"]["b"] - maps["after"]["b"])
    assert list(result["trans_history"]) == [0, 4, 6]  # 3 batches an epoch; every 2 x 2 epochs, and after the last
    assert_close(result["trans_history"][0]["transform.weight"], maps["before"]["w"])
    assert result["cka_group_at"] is None
    assert isinstance(result["trans_fit"], pd.DataFrame) and result["trans_fit"].shape == (2, 4)
    assert set(result["model_results"]) >= {"front", "end", "trans", "ps_inv"}
    assert result["l2"] is None  # 3 and 5 channels
    for counts in result["hits"].values():
        assert sum(counts.values()) == 48
    hits = result["hits"]["m2_frank"]
    assert (hits["rr"] + hits["rw"]) / 48 == result["model_results"]["end"]["acc"]
    code = "import pickle, sys; print(sorted(pickle.load(open(sys.argv[1], 'rb')))); print('src' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "results/r/bn1-bn1.pkl"], capture_output=True, text=True, check=True
    )
    assert "trans_m" in done.stdout and done.stdout.endswith("False\n")


def test_an_interrupted_run_is_neither_thrown_away_nor_begun_anew_in_silence(toy, capsys) -> None:
    command = ("a3.pt", "b5.pt", "bn1", "bn1", "-e", "1", "-b", "16", "--run-name", "r")
    stitch_nets.main([*command, "--resume"])
    assert "no results/r/bn1-bn1.resume.pt to go on from" in capsys.readouterr().err
    Path("results/r/bn1-bn1.pkl").unlink()
    state = Path("results/r/bn1-bn1.resume.pt")
    state.write_bytes(b"an hour of work")
    assert "is of an interrupted run; --resume goes on, --overwrite starts anew" in refused(capsys, *command)
    assert state.read_bytes() == b"an hour of work"
    stitch_nets.main([*command, "--overwrite"])
    assert not state.exists()


def test_words_that_would_be_ignored_are_refused(toy, capsys) -> None:
    np.save("x.npy", np.ones((4, 3)))
    assert "saved activations are for compare_nets.py" in refused(capsys, "features:x.npy", "b5.pt", "bn1", "bn1")
    command = ("a3.pt", "b5.pt", "bn1", "bn1", "-e", "0", "-i", "ps_inv")
    assert "--format is of the pictures that --plot draws" in refused(capsys, *command, "--format", "pdf")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("front", "end"), [("a3", "b5"), ("b5", "a3"), ("a3", "b3")])
def test_an_orthogonal_stitch_of_any_shape_trains_and_stays_orthogonal(toy, front, end, optimizer) -> None:
    options = ("--orthogonal", "--optimizer", optimizer, "-wd", "0.1", "-lr", "0.01", "-e", "3", "-b", "16")
    result = stitch(f"{front}.pt", f"{end}.pt", "bn1", "bn1", *options)
    before, w = (result["trans_m"][name]["w"][:, :, 0, 0].astype(np.float64) for name in ("before", "after"))
    product = w @ w.T if len(w) <= len(w.T) else w.T @ w
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-5)
    assert np.abs(w - before).max() > 1e-3


@pytest.mark.parametrize("kind", [[], ["--orthogonal"], ["--low-rank", "2"], ["-m", "random-permutation"]])
def test_the_history_holds_the_map_of_every_kind(toy, kind) -> None:
    result = stitch("a3.pt", "b5.pt", "bn1", "bn1", "-e", "2", "-b", "16", "-s", "3", *kind)
    for iteration, name in ((0, "before"), (6, "after")):
        entry = result["trans_history"][iteration]
        w = (
            entry["transform.weight"]
            if "transform.weight" in entry
            else entry["transform.left"] @ entry["transform.right"]
        )
        assert_close(w.reshape(5, 3, 1, 1), result["trans_m"][name]["w"], atol=1e-6, rtol=1e-6)
        assert_close(entry["transform.bias"], result["trans_m"][name]["b"])


def test_a_cka_over_groups_is_said(toy, monkeypatch, capsys) -> None:
    exact = stitch("a3.pt", "a3.pt", "bn1", "bn1", "-e", "0", "--flatten")
    monkeypatch.setattr("src.stitching.cka.STORE_BYTES", 4 * 2 * 3 * 64 * 24)  # 24 images of 3 x 8 x 8 on both sides
    grouped = stitch("a3.pt", "a3.pt", "bn1", "bn1", "-e", "0", "--flatten")
    assert exact["cka_group_at"] is None and grouped["cka_group_at"] == 24
    assert "groups of 24 images" in capsys.readouterr().err
    assert grouped["cka_frank"] != exact["cka_frank"] and abs(grouped["cka"] - 1) < 1e-6


@pytest.mark.parametrize("shared", [True, False])
def test_a_constant_has_no_cka_but_an_l2(shared, toy, monkeypatch) -> None:
    monkeypatch.setattr("src.stitching.run.can_share", lambda *_: shared)
    # the one seed in a few whose permutation keeps no weight of the identity: the stitch gives its bias everywhere
    result = stitch("a3.pt", "b3.pt", "bn1", "bn1", "-i", "eye", "-m", "random-permutation", "-e", "0", "--seed", "0")
    assert not result["trans_m"]["after"]["w"].any()
    assert np.isnan(result["cka_frank"]) and np.isfinite(result["cka"])
    assert result["l2_frank"] == pytest.approx(0.248, abs=1e-3)


def test_equal_commands_give_equal_results(toy) -> None:
    options = ("-i", "ps_inv", "-e", "2", "-b", "16")
    first, second = (stitch("a3.pt", "b5.pt", "bn1", "bn1", *options) for _ in range(2))
    other = stitch("a3.pt", "b5.pt", "bn1", "bn1", *options, "--seed", "1")
    for result, provenance in itertools.product((first, second), ("git", "runner_code")):
        del result[provenance]
    assert pickle.dumps(first) == pickle.dumps(second)
    assert not np.array_equal(first["trans_m"]["after"]["w"], other["trans_m"]["after"]["w"])


def test_features_flatten_and_resize_geometries(toy) -> None:
    result = stitch("a3.pt", "b5.pt", "fc1", "fc1", "-i", "ps_inv", "-e", "1", "-b", "16")
    assert result["trans_m"]["after"]["w"].shape == (5, 3)
    result = stitch("a3.pt", "b5.pt", "pool", "fc1", "--flatten", "-e", "1", "-b", "16")
    assert result["trans_m"]["after"]["w"].shape == (5, 12)
    result = stitch("a3.pt", "b5.pt", "pool", "conv2", "--resize", "-e", "1", "-b", "16", "-i", "ps_inv")
    assert result["trans_m"]["after"]["w"].shape == (5, 3, 1, 1)


def test_a_perfect_stitch_is_found_exactly(toy) -> None:
    result = stitch("a3.pt", "a3.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "0")
    scores = result["model_results"]
    assert_close(result["trans_m"]["before"]["w"][:, :, 0, 0], np.eye(3, dtype="float32"), atol=1e-5, rtol=0)
    assert scores["trans"]["acc"] == scores["end"]["acc"]
    assert abs(scores["trans"]["loss"] - scores["end"]["loss"]) < 1e-5
    assert result["m2_sim"]["after"]["same_class_out"] == 1 and result["hits"]["m2_frank"]["rw"] == 0
    assert abs(result["cka_frank"] - 1) < 1e-6 and result["l2_frank"] < 1e-9 and result["l2"] == 0


def test_training_lowers_the_loss_and_penalties_act(toy) -> None:
    def trained(*options: str) -> dict:
        return stitch("a3.pt", "b5.pt", "bn1", "bn1", "-e", "12", "-b", "16", "-lr", "0.03", *options)

    plain = trained()
    assert plain["trans_fit"]["train_loss"].iloc[-1] < plain["trans_fit"]["train_loss"].iloc[0]
    sparse, less_similar = trained("--l1", "20"), trained("--cka-reg", "5")
    assert np.abs(sparse["trans_m"]["after"]["w"]).mean() < np.abs(plain["trans_m"]["after"]["w"]).mean() / 2
    assert less_similar["cka_frank"] < plain["cka_frank"]
    soft = trained("--target-type", "soft_2", "--temperature", "3")
    assert not np.array_equal(soft["trans_m"]["after"]["w"], plain["trans_m"]["after"]["w"])
    decayed = trained("-wd", "1", "--optimizer", "sgd")
    assert np.abs(decayed["trans_m"]["after"]["w"]).mean() < np.abs(plain["trans_m"]["after"]["w"]).mean()


def test_debug_runs_a_few_batches_and_says_so(toy, capsys) -> None:
    result = stitch("a3.pt", "b5.pt", "bn1", "bn1", "-e", "1", "-b", "4", "-s", "1", "--debug")
    assert result["params"]["debug"] is True
    assert max(result["trans_history"]) == DEBUG_STEPS < 48 // 4
    assert "epoch 1 of 1: train_loss" in capsys.readouterr().err


def test_resume_gives_what_an_uninterrupted_run_gives(toy, monkeypatch, capsys) -> None:
    command = ("a3.pt", "b5.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "4", "-b", "16")
    whole = stitch(*command)
    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    evaluate = src.stitching.validation.tally
    monkeypatch.setattr(src.stitching.validation, "tally", interrupted)
    with pytest.raises(SystemExit) as stop:
        stitch_nets.main([*command, "--run-name", "s"])
    assert stop.value.code == 130 and not Path("results/s/bn1-bn1.pkl").exists()
    capsys.readouterr()
    monkeypatch.setattr(src.stitching.validation, "tally", evaluate)
    original = Path("a3.pt").read_bytes()
    Path("a3.pt").write_bytes(Path("b3.pt").read_bytes())
    assert "it was started with front weights" in refused(capsys, *command, "--run-name", "s", "--resume")
    Path("a3.pt").write_bytes(original)
    stitch_nets.main([*command, "--run-name", "s", "--resume"])
    lines = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["going on after epoch 2 of 4", "epoch 3 of 4", "epoch 4 of 4"]
    resumed = results.read(Path("results/s/bn1-bn1.pkl"))
    assert [path.name for path in Path("results/s").iterdir()] == ["bn1-bn1.pkl"]
    for name in ("trans_fit", "trans_history", "trans_m", "model_results"):
        assert pickle.dumps(whole[name]) == pickle.dumps(resumed[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a3.pt", "b5.pt", "bn1", "bn2"], "Toy has no layer 'bn2'; close: bn1"),
        (["a3.pt", "b5.pt", "bn1", "pool"], r"(3, 8, 8).*(5, 2, 2).*--flatten"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "-i", "eye"], "--init eye needs equal sizes"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "-r", "4"], "rank 4 exceeds 3"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "-r", "0"], "'0' is not a whole number above 0"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "--temperature", "0"], "'0' is not a number above 0"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "--temperature", "2"], "it divides the logits of soft targets"),
        (["a3.pt", "no.pt", "bn1", "bn1"], "no weight file no.pt"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "-b", "100"], "batch size 100 exceeds the 48 training images"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "--device", "cuda:7"], "cuda:7"),
        (
            ["a3.pt", "b5.pt", "bn1", "bn1", "-d", "mnist"],
            "b5.pt decides between 4 other classes than those of mnist (in alphabetical order 'a' against '0')",
        ),
        (["a3.pt", str(WEIGHTS / "in0-gn0/440.pt"), "bn1", "bn1"], "a3.pt for toy.*440.pt for digits"),
        (["a3.pt", "b5.pt", "bn1", "bn1", "-lr", "1e30", "--optimizer", "sgd", "-b", "16"], "the loss is .* in epoch"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, toy, capsys) -> None:
    import re

    error = refused(capsys, *arguments)
    pattern = message if "*" in message and "(" not in message else re.escape(message).replace(r"\.\*", ".*")
    assert re.search(pattern, error), error
    assert not list(toy.rglob("*.pkl"))


def test_an_existing_result_is_refused_before_any_work(toy, capsys, monkeypatch) -> None:
    stitch("a3.pt", "b5.pt", "bn1", "bn1", "-e", "0")
    capsys.readouterr()
    content = Path("results/r/bn1-bn1.pkl").read_bytes()
    monkeypatch.setattr(on_data, "load_split", lambda *a, **k: pytest.fail("work was done"))
    error = refused(capsys, "a3.pt", "b5.pt", "bn1", "bn1", "--run-name", "r")
    assert "exists already; give --overwrite" in error
    assert Path("results/r/bn1-bn1.pkl").read_bytes() == content


def test_the_demo_networks_stitch(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    front, end = (str(WEIGHTS / seeds / "440.pt") for seeds in ("in0-gn0", "in1-gn1"))
    result = stitch(front, end, "bn3", "bn3", "-i", "ps_inv", "-e", "1")
    assert result["model_results"]["end"]["acc"] >= 0.97 and result["model_results"]["trans"]["acc"] >= 0.97
    assert result["params"]["dataset"] is None and result["weights"]["front"]["dataset"] == "digits"
    assert "ps_inv" in capsys.readouterr().out
    assert len(load_split("digits", "val")) == sum(result["hits"]["m2_frank"].values())


@pytest.mark.data
@pytest.mark.reference
def test_the_reference_pair_on_cifar10(reference, numbers, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = [str(reference / f"model_weights/Tiny10/CIFAR10/{seeds}/110000.pt") for seeds in ("in0-gn0", "in10-gn10")]
    result = stitch(*weights, "bn3", "bn3", "-d", "cifar10", "-i", "ps_inv", "-e", "0", "--no-similarity")
    published = numbers["stitch bn3 bn3, in0 -> in10"]
    scores = result["model_results"]
    assert abs(scores["ps_inv"]["acc"] - published["type ps_inv (fitted on val)"]["acc"]) < 2e-4
    assert abs(scores["ps_inv"]["loss"] - published["type ps_inv (fitted on val)"]["loss"]) < 1e-4
    train_fit = published["least squares fitted on train without augmentation"]["acc"]
    assert abs(scores["before"]["acc"] - train_fit) < 2e-4 and scores["trans"] == scores["before"]
    agreement = published["agreement of model 1 and model 2"]
    for key in ("crossentropy", "same_class_out", "rel_acc"):
        assert abs(result["m2_sim"]["m1"][key] - agreement[key]) < 2e-4, key


SOFT = ("--target-type", "soft_12", "--cka-reg", "-0.1", "--l1", "1")


@pytest.mark.parametrize("options", [(), ("-r", "2"), ("--orthogonal",), ("-m", "semi-match"), SOFT])
def test_mixed_precision_trains_nearly_the_same_stitch(toy, options) -> None:
    command = ("a3.pt", "b3.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "2", "-b", "16", *options)
    exact, mixed = stitch(*command), stitch(*command, "--amp")
    np.testing.assert_array_equal(exact["trans_m"]["before"]["w"], mixed["trans_m"]["before"]["w"])
    after, amp = (result["trans_m"]["after"]["w"] for result in (exact, mixed))
    assert amp.dtype == np.float32 and not np.array_equal(amp, after)
    assert_close(amp, after, atol=0.01, rtol=0)
    assert_close(mixed["trans_fit"]["train_loss"], exact["trans_fit"]["train_loss"], atol=0, rtol=0.02)
    assert exact["model_results"]["end"] == mixed["model_results"]["end"], "evaluations are float32"


def test_moved_weights_are_found_by_their_digest_and_named(toy, capsys) -> None:
    stitch("a3.pt", "b5.pt", "bn1", "bn1", "-e", "1", "-b", "16")
    place = Path("model_weights/Toy/kept")
    place.mkdir(parents=True)
    Path("a3.pt").rename(place / "first.pt")
    Path("model_weights/other.pt").write_bytes(b"another file")
    capsys.readouterr()
    eval_stitch.main(["results/r/bn1-bn1.pkl", "after", "--no-save"])
    assert f"front: {place.resolve() / 'first.pt'}" in capsys.readouterr().err
    Path("a3.pt").write_bytes(Path("b3.pt").read_bytes())  # another network in its place
    eval_stitch.main(["results/r/bn1-bn1.pkl", "after", "--no-save"])
    assert f"front: {place.resolve() / 'first.pt'}" in capsys.readouterr().err
    (place / "first.pt").unlink()
    with pytest.raises(SystemExit):
        eval_stitch.main(["results/r/bn1-bn1.pkl", "after", "--no-save"])
    assert "a3.pt has changed since" in capsys.readouterr().err


def test_a_folder_is_evaluated_stitch_by_stitch(toy, capsys) -> None:
    command = ["a3.pt", "b5.pt", "bn1,conv2", "bn1", "-e", "1", "-b", "16", "--run-name", "r"]
    stitch_nets.main(command)
    Path("results/r/notes.txt").write_text("mine")
    Path("results/r/eval_net-x.pkl").write_bytes(pickle.dumps({"acc": 1.0}))
    capsys.readouterr()
    eval_stitch.main(["results/r", "after", "--run-name", "e"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["stitch", "bn1-bn1", "conv2-bn1"]
    result = results.read(Path("results/e/eval_stitch-r-after.pkl"))
    for row in result["stitches"]:
        assert row["acc"] == results.read(Path(row["stitch"]))["model_results"]["trans"]["acc"]
    with pytest.raises(SystemExit):
        eval_stitch.main(["results/e", "after"])
    assert "no result of stitch_nets.py in results/e" in capsys.readouterr().err


def test_weights_that_only_moved_do_not_hinder_a_resumed_run(toy, monkeypatch) -> None:
    command = ["b5.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "3", "-b", "16"]
    stitch_nets.main(["a3.pt", *command, "--run-name", "whole"])
    calls, tally = [], src.stitching.validation.tally

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tally(*arguments, **options)

    monkeypatch.setattr(src.stitching.validation, "tally", interrupted)
    with pytest.raises(SystemExit):
        stitch_nets.main(["a3.pt", *command, "--run-name", "s"])
    monkeypatch.setattr(src.stitching.validation, "tally", tally)
    Path("moved").mkdir()
    Path("a3.pt").rename("moved/a.pt")
    stitch_nets.main(["moved/a.pt", *command, "--run-name", "s", "--resume"])
    whole, resumed = (results.read(Path(f"results/{run}/bn1-bn1.pkl")) for run in ("whole", "s"))
    assert whole["key"] == resumed["key"]
    assert pickle.dumps(whole["trans_m"]) == pickle.dumps(resumed["trans_m"])


def test_git_is_asked_once_for_all_stitches_of_a_command(toy, monkeypatch) -> None:
    asked, run = [], subprocess.run
    monkeypatch.setattr(results.subprocess, "run", lambda words, **how: asked.append(words) or run(words, **how))
    stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "-e", "0", "-i", "ps_inv,random,eye", "--run-name", "r"])
    assert asked == [["git", "rev-parse", "HEAD", "--abbrev-ref", "HEAD"]]
    found = [results.read(path)["git"] for path in Path("results/r").glob("*.pkl")]
    assert len(found) == 3 and all(set(git) == {"branch", "commit"} for git in found)
    in_checkout = run([*asked[0]], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert [found[0]["commit"], found[0]["branch"]] == (in_checkout or [None, None])
