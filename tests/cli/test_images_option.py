"""--images N: a fixed part of the images in every script and in studies, carried by results and keys."""

import json
from pathlib import Path

import pytest

import compare_frank_m2
import compare_nets
import eval_net
import eval_stitch
import stitch_nets
import train_model
from src import results
from src.studies.schema import Study
from src.studies.store import Store
from src.training.folder import recipe_of
from studies.__main__ import main as studies

PAIR = ["a3.pt", "b3.pt", "bn1", "bn1"]


def printed(capsys, script, command: list[str]) -> dict:
    capsys.readouterr()
    script.main([*command, "--json", "--no-save"])
    return json.loads(capsys.readouterr().out)


def test_every_script_takes_so_many_images(toy, capsys) -> None:
    assert printed(capsys, eval_net, ["a3.pt", "--images", "12"])["images"] == 12
    stitch = printed(capsys, stitch_nets, [*PAIR, "-e", "1", "-b", "8", "--images", "16"])
    assert stitch["images"] == {"train": 16, "val": 16} and stitch["params"]["images"] == 16
    compared = printed(capsys, compare_nets, [*PAIR, "toy", "cka", "--images", "12"])
    assert compared["health"]["images"]["images"] == 12
    stitch_nets.main([*PAIR, "-e", "0", "--run-name", "r"])
    saved = ["results/r/bn1-bn1.pkl", "after"]
    assert printed(capsys, compare_frank_m2, [*saved, "l2", "--images", "12"])["params"]["images"] == 12
    assert printed(capsys, eval_stitch, [*saved, "--images", "12"])["params"]["images"] == 12


def test_weights_say_how_many_images_they_saw_and_a_resumed_run_must_agree(toy, capsys) -> None:
    command = ["-m", "toy_w3", "-d", "toy", "-e", "2", "-b", "8", "-o", "w"]
    train_model.main([*command, "--images", "24"])
    (path,) = Path("w").rglob("*.pt")
    assert path.stem == "6" and recipe_of(path)["images"] == 24  # two epochs of three batches
    with pytest.raises(SystemExit):
        train_model.main([*command, "--resume", "--run-name", "again"])
    assert "was trained with images 24, not None" in capsys.readouterr().err
    train_model.main([*command, "--overwrite"])
    (path,) = Path("w").rglob("*.pt")
    assert path.stem == "12" and "images" not in recipe_of(path)


def test_keys_carry_it_and_stay_what_they_are_without_it(toy) -> None:
    for name, more in (("whole", []), ("part", ["--images", "16"]), ("all", ["--images", "48"])):
        stitch_nets.main([*PAIR, "-e", "0", "--run-name", name, *more])
    keys = {name: results.read(f"results/{name}/bn1-bn1.pkl")["key"] for name in ("whole", "part", "all")}
    assert keys["whole"] == keys["all"] != keys["part"]
    text = 'pairs = [["a3.pt", "b3.pt"]]\n{}[stitch]\nlayers = "bn1"\nepochs = 0\n'
    text += '[compare]\nlayers = "bn1"\nmetrics = "cka"\n'
    for name, line in (("whole", ""), ("part", "images = 16\n")):
        Path(f"{name}.toml").write_text(text.format(line))
        studies(["worker", f"{name}.toml", "--shard", "1/1", "--device", "cpu", "-o", "s"])
        found = [results.read(path) for path in Path("s", name).glob("*.pkl")]
        (stitch,) = [result for result in found if "trans_m" in result]
        assert stitch["key"] == keys[name] and stitch["images"]["val"] == (16 if line else 48)
        assert stitch["params"]["images"] == (16 if line else None)
    studies(["report", "part.toml", "-o", "s"])
    assert "--images 16" in Path("s/part/report.html").read_text()


def test_networks_that_depend_on_the_batch_are_stitched_where_a_study_allows_it(toy, capsys) -> None:
    Path("nets.py").write_text(
        "from torch import nn\n\ndef make(classes, channels):\n"
        "    norm = nn.BatchNorm2d(3, track_running_stats=False)\n"
        "    return nn.Sequential(nn.Conv2d(channels, 3, 3), norm, nn.Flatten(), nn.Linear(108, classes))\n"
    )
    text = 'pairs = [["nets.py:make#0", "nets.py:make#1"]]\ndataset = "toy"\n{}[stitch]\nlayers = "0"\nepochs = 0\n'
    Path("s.toml").write_text(text.format(""))
    with pytest.raises(SystemExit):
        studies(["s.toml", "--dry-run"])
    assert "batch" in capsys.readouterr().err
    Path("s.toml").write_text(text.format("batch_dependent = true\n"))
    plan = Store(Path("results/s")).plan(Study(Path("s.toml")))
    assert len(plan.names) == 1
    studies(["worker", "s.toml", "--shard", "1/1", "--device", "cpu"])
    assert len(list(Path("results/s").glob("*.pkl"))) == 1
