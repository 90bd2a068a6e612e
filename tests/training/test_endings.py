"""Trainings that end badly say so, and so do those who meet their networks."""

import json
from pathlib import Path

import eval_net
import stitch_nets
import train_model
from src.core.intervals import is_chance
from src.training.endings import bad_endings, risen_loss
from studies.__main__ import main
from tests.toy import IMAGES


def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"train_loss": loss, "train_accuracy": accuracy} for loss, accuracy in pairs]


def test_chance_is_three_standard_errors_wide() -> None:
    assert is_chance(0.1, 0.1, 10_000) and is_chance(0.05, 0.1, 10) and is_chance(0.1089, 0.1, 10_000)
    assert not is_chance(0.1091, 0.1, 10_000)


def test_a_training_that_ends_at_chance_or_high_above_its_lowest_epoch_is_told() -> None:
    about = {"rate": 0.1, "chance": 0.1, "images": 1000}
    assert bad_endings(rows((2.0, 0.3), (0.4, 0.9), (0.45, 0.89)), **about) == []
    assert bad_endings([], **about) == []
    (line,) = bad_endings(rows((2.30, 0.1), (2.31, 0.11)), **about)
    assert line == (
        "the network ends at chance, right on 11.0% of its own training images, no better than one constant answer "
        "(10.0%); try a lower -lr than 0.1, or more epochs"
    )
    chance, risen = bad_endings(rows((2.0, 0.3), (0.4, 0.9), (2.32, 0.06)), **about)
    assert "ends at chance" in chance
    assert risen == "the training loss ended at 2.32, far above the 0.4 of epoch 2; try a lower -lr than 0.1"
    # as trainings end that fit their images to the last: twice of nearly nothing is nearly nothing
    assert risen_loss([0.5, 0.001, 0.05], 0.1) == "" and risen_loss([0.5, 0.3, 0.42], 0.1) == ""
    assert risen_loss([0.5, 0.3, 0.46], 0.1) and risen_loss([], 0.1) == ""


def test_scripts_and_studies_say_that_a_network_is_at_chance(toy, capsys) -> None:
    train_model.main(["-m", "toy_w3", "-d", "toy", "-e", "4", "-b", "16", "-lr", "30", "-o", "bad", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert any("ends at chance" in line and "try a lower -lr than 30" in line for line in result["warnings"])
    train_model.main(
        ["-m", "toy_w3", "-d", "toy", "-e", "20", "-b", "8", "-lr", "0.02", "--optimizer", "adam", "--json"]
    )
    result = json.loads(capsys.readouterr().out)
    assert result["warnings"] == [] and result["log"][-1]["train_accuracy"] > 0.9
    good = result["weights"]
    (bad,) = map(str, Path("bad").rglob("*.pt"))
    for weights, chance in ((bad, True), (good, False)):
        eval_net.main([weights, "--json", "--no-save"])
        found = json.loads(capsys.readouterr().out)
        assert found["constant_accuracy"] == 0.25 and found["images"] == IMAGES
        assert bool(found["warnings"]) == chance, found
        eval_net.main([weights, "--no-save"])
        assert ("warning: the network is at chance" in capsys.readouterr().out) == chance
    stitch_nets.main([good, bad, "bn1", "bn1", "-e", "0", "--no-save"])
    out = " ".join(capsys.readouterr().out.split())
    assert (
        f"warning: the end network, toy_w3 in0-gn0 ({Path(bad).name}), is at chance" in out
        and "a stitch to it means nothing" in out
    )
    assert "the front network" not in out and "after training the stitch" not in out
    Path("s.toml").write_text(f'networks = ["{good}", "{bad}"]\n[stitch]\nlayers = "bn1"\nepochs = 0\n')
    main(["worker", "s.toml", "--shard", "1/1", "--device", "cpu"])
    captured = capsys.readouterr()
    assert captured.err.count(f"the end network, toy_w3 in0-gn0 ({Path(bad).name}), is at chance: right on ") == 1
    main(["report", "s.toml"])
    page = Path("results/s/report.html").read_text()
    assert f"in0-gn0 ({Path(bad).name}), is at chance" in page


def test_a_debugged_training_is_not_told(toy, capsys) -> None:
    train_model.main(["-m", "toy_w3", "-d", "toy", "-e", "3", "-b", "16", "-lr", "30", "--json", "--debug"])
    assert json.loads(capsys.readouterr().out)["warnings"] == []
