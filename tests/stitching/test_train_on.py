"""What a stitch is trained on: the data, or inputs that its front cannot tell from them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compare_nets
import eval_stitch
import stitch_nets
from src import results
from src.core.errors import UserError
from src.core.task import MULTI_LABEL, SINGLE_LABEL
from src.dataset import load_split
from src.evaluation.identical import IdenticalCache, identical_inputs
from src.evaluation.scores import AgreementCounter
from src.networks.checkpoints import load
from src.stitching import CutNetworks, StitchSpec
from src.stitching.options import combinations
from src.stitching.run import StitchPlan, stitch
from src.stitching.significance import paired_shares
from tests.paths import ROOT
from tests.same import assert_same

SAMPLE = torch.zeros(2, 1, 8, 8)
BASE = StitchSpec("bn1", "bn1", epochs=2, batch_size=16, init="ps_inv", target_type="match_later", iri_images=32)
IRI = replace(BASE, train_on="iri", iri_steps=5)
PAIR = ("a3.pt", "b3.pt", "bn1", "bn1", "-d", "toy", "-b", "16", "-e", "1", "--run-name", "r")


def run(specs: list[StitchSpec], **options: Any) -> list[Any]:
    networks = [load(file).network for file in ("a3.pt", "b3.pt")]
    cuts = CutNetworks(networks[0], networks[1], specs, SAMPLE)
    return stitch(cuts, load_split("toy", "train"), load_split("toy", "val"), StitchPlan(**options))


def test_it_is_the_stitch_of_these_inputs_scored_on_the_data(toy: Path) -> None:
    (found,) = run([IRI])
    cuts = CutNetworks(load("a3.pt").network, load("b3.pt").network, [IRI], SAMPLE)
    cache = IdenticalCache(None, {})
    made = identical_inputs(
        lambda x: cuts.outputs("front", ["bn1"], x)["bn1"], load_split("toy", "train"), "bn1", cache, steps=5, count=32
    )
    plain = replace(IRI, train_on="data", iri_images=0, iri_steps=200)
    expected: Any = stitch(cuts_of([plain]), made.split, load_split("toy", "val"))[0]
    for key in ("trans_m", "trans_fit", "model_results", "m2_sim", "match_errors"):
        assert_same(found[key], expected[key])
    assert found["identical"] == made.facts() and found["images"]["train"] == 32


def cuts_of(specs: list[StitchSpec]) -> CutNetworks:
    return CutNetworks(load("a3.pt").network, load("b3.pt").network, specs, SAMPLE)


def test_data_beside_it_are_the_same_images_unaugmented(toy: Path) -> None:
    data, iri = run([BASE, IRI])
    train = load_split("toy", "train")
    chosen = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:32].sort().values
    part = train.take(chosen).unaugmented()
    expected: Any = stitch(cuts_of([replace(BASE, iri_images=0)]), part, load_split("toy", "val"))[0]
    assert_same(data["trans_m"], expected["trans_m"])
    assert (
        len(data["trans_fit"]) == len(iri["trans_fit"]) and data["trans_history"].keys() == iri["trans_history"].keys()
    )
    apart = iri["identical"]["minus_data"]
    value = iri["model_results"]["trans"]["acc"] - data["model_results"]["trans"]["acc"]
    assert apart["value"] == pytest.approx(value) and apart["low"] <= value <= apart["high"]
    (alone,) = run([IRI])
    assert_same(alone["trans_m"], iri["trans_m"])


def test_controls_and_what_is_usual_go_with_it(toy: Path) -> None:
    spec = replace(IRI, epochs=1, early_stop=3)
    (held,) = run([spec], controls=["constant", "shuffled", "labels", "self_random", "probe"], ood=True)
    (alone,) = run([spec], ood=True)
    assert len(held["controls"]) == 5
    for key in ("trans_m", "early_stop"):
        assert_same(held[key], alone[key])
    assert held["ood"]["after"] == alone["ood"]["after"]
    (data,) = run([replace(BASE, epochs=0, iri_images=0)], ood=True)
    centre = (replace(IRI, epochs=0, init="eye"), replace(BASE, epochs=0, init="eye", iri_images=0))
    one, other = (run([spec], ood=True)[0]["ood"]["after"] for spec in centre)
    assert one == other and data["ood"]  # the reference is what the end network is used to, not what was trained on


def test_agreement_as_published() -> None:
    p, q = torch.randn(50, 4), torch.randn(50, 4)
    counts = AgreementCounter(SINGLE_LABEL, target="end")
    for part in (slice(0, 20), slice(20, 50)):
        counts.update({"end": p[part], "other": q[part]}, torch.zeros(len(p[part]), dtype=torch.int64))
    one, two = (x.double().softmax(1).numpy() for x in (p, q))
    expected = [100 * a @ b / max(a @ a, b @ b) for a, b in zip(one, two, strict=True)]
    assert counts.agreement("other")["published_agreement"] == pytest.approx(np.mean(expected))
    assert counts.agreement("end")["published_agreement"] == pytest.approx(100)
    several = AgreementCounter(MULTI_LABEL, target="end")
    several.update({"end": p, "other": q}, (p > 0).float())
    assert several.agreement("other")["published_agreement"] is None


def test_a_paired_difference_has_an_interval() -> None:
    one, other = np.array([1.0] * 70 + [0.0] * 30), np.array([1.0] * 60 + [0.0] * 40)
    apart = paired_shares(one, other)
    assert apart["value"] == pytest.approx(0.1) and 0.03 < apart["low"] < 0.1 < apart["high"] < 0.2
    shares = paired_shares(one / 2, other / 2)
    assert shares["value"] == pytest.approx(0.05) and 0 < shares["low"] < 0.05 < shares["high"]


def test_options_of_a_command() -> None:
    def specs(*words: str) -> list[StitchSpec]:
        return combinations(vars(stitch_nets.parse_args(["a", "b", "c", "d", *words])), lambda: 7)

    data, iri = specs("--train-on", "data,iri", "--iri-steps", "9", "--target-type", "match")
    assert (data.train_on, data.iri_images, data.iri_steps) == ("data", 7, 200)
    assert (iri.train_on, iri.iri_images, iri.iri_steps) == ("iri", 7, 9)
    (part,) = specs("--iri-images", "5")
    assert part.iri_images == 5 and part.train_on == "data"
    (noise,) = specs("--train-on", "iri", "--iri-steps", "0", "--target-type", "match")
    assert noise.iri_steps == 0
    with pytest.raises(UserError, match="--iri-steps 9 is of --train-on iri"):
        specs("--iri-steps", "9")


def test_the_script_says_and_keeps_it_and_goes_on(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--train-on", "data,iri", "--iri-images", "32", "--iri-steps", "3", "--controls", "untrained"]
    stitch_nets.main([*PAIR, *more])
    captured = capsys.readouterr()
    assert "train_on" in captured.out and re.search(r"minus_data +error\n", captured.out)
    assert "note: --train-on iri with --target-type hard" in captured.err
    assert "32 inputs alike at bn1, 3 steps each: about 1 s" in captured.err
    files = {path.name: path for path in Path("results/r").glob("*.pkl")}
    assert files.keys() == {"bn1-bn1,train_on=data.pkl", "bn1-bn1,train_on=iri.pkl"}
    assert len(list(Path("results/.iri").iterdir())) == 1
    iri = results.read(files["bn1-bn1,train_on=iri.pkl"])
    frame = results.table("results").set_index("train_on")
    assert frame.loc["iri", "iri_minus_data"] == iri["identical"]["minus_data"]["value"]
    eval_stitch.main([str(files["bn1-bn1,train_on=iri.pkl"]), "after", "--run-name", "e"])
    assert f"{iri['model_results']['trans']['acc']:.2%}" in capsys.readouterr().out
    stitch_nets.main([*PAIR[:-1], "s", "--train-on", "iri", "--iri-images", "32", "--iri-steps", "3"])
    captured = capsys.readouterr()
    assert "trained on 32 images that front cannot tell" in captured.out and "inputs alike" not in captured.err
    alone = results.read(Path("results/s/bn1-bn1.pkl"))
    assert alone["key"] == iri["key"]
    assert_same(alone["trans_m"], iri["trans_m"])


def test_a_batch_larger_than_the_inputs_is_refused_before_any_is_made(toy: Path, capsys) -> None:
    words = [*PAIR[:-1], "s", "--train-on", "iri", "--iri-images", "32", "--iri-steps", "3", "-b", "33"]
    with pytest.raises(SystemExit) as refused:
        stitch_nets.main(words)
    assert refused.value.code == 2 and "batch size 33 exceeds the 32 training images" in capsys.readouterr().err
    assert not Path("results").exists() or not list(Path("results").iterdir())


def test_each_stitch_of_the_same_inputs_has_a_difference_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    networks = [f"{ROOT}/model_weights/Tiny10/Digits/{name}/440.pt" for name in ("in0-gn0", "in1-gn1")]
    words = [*networks, "bn3", "bn3,bn5", "-e", "0", "-i", "ps_inv", "--resize", "--train-on", "data,iri"]
    stitch_nets.main([*words, "--iri-images", "64", "--iri-steps", "2", "--run-name", "r"])
    found = {path.stem: results.read(path) for path in Path("results/r").glob("*.pkl")}
    apart = {}
    for end in ("bn3", "bn5"):
        data, iri = (found[f"bn3-{end},train_on={kind}"] for kind in ("data", "iri"))
        apart[end] = iri["identical"]["minus_data"]["value"]
        shares = [one["model_results"]["trans"]["acc"] for one in (iri, data)]
        assert apart[end] == pytest.approx(shares[0] - shares[1]), end
    assert apart["bn3"] != apart["bn5"]


def test_nothing_is_saved_where_nothing_is_to_be(toy: Path) -> None:
    where = PAIR.index("--run-name")
    words = [*PAIR[:where], *PAIR[where + 2 :], "--train-on", "iri", "--iri-images", "32", "--iri-steps", "1"]
    stitch_nets.main([*words, "--no-save"])
    compare_nets.main([*PAIR[:4], "toy", "cka", "--on", "iri", "--iri-images", "32", "--iri-steps", "1", "--no-save"])
    assert not Path("results").exists()
