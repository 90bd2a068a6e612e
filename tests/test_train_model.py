"""train_model.py: where its files land, what they hold, and what it refuses to run over."""

from pathlib import Path

import pytest
import torch

import train_model
from src import checkpoints, results
from src.files import parse_tensors
from tests.same import assert_same

COMMAND = ("-m", "toy_w3", "-d", "toy", "-e", "2", "-b", "16", "-s", "2", "-lr", "0.01")
FOLDER = Path("snapshots/Toy_w3/Toy/in0-gn0")


def train(*options: str) -> dict:
    return train_model.run(train_model.parse_args([*COMMAND, *options]))


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        train_model.main([*COMMAND, *options])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_weights_and_log_land_in_the_folder_of_the_network(toy: Path) -> None:
    result = train("--run-name", "r")
    assert sorted(path.name for path in FOLDER.iterdir()) == ["2.pt", "4.pt", "6.pt", "training_log.csv"]
    header, *rows = (FOLDER / "training_log.csv").read_text().splitlines()
    assert header == "train_accuracy,train_loss,val_accuracy,val_loss"
    assert len(rows) == 2
    assert [float(value) for value in rows[1].split(",")[2:]] == pytest.approx(
        [result["val"]["acc"], result["val"]["loss"]]
    )
    last = checkpoints.load(FOLDER / "6.pt")
    assert (last.model, last.dataset, last.init_seed, last.gradient_seed) == ("toy_w3", "toy", 0, 0)
    assert parse_tensors((FOLDER / "6.pt").read_bytes())["recipe"]["lr"] == 0.01
    assert results.read(Path("results/r/train_model-Toy_w3-Toy-in0-gn0.pkl"))["weights"] == str(FOLDER / "6.pt")


def test_seeds_decide_the_weights_and_nothing_else_does(toy: Path) -> None:
    def weights(folder: str, *options: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(folder))  # the global generator must not matter
        return checkpoints.load(train("-o", folder, *options)["weights"]).network.state_dict()

    first = weights("a")
    assert_same(weights("bb"), first)
    for option in ("-i", "-g"):
        assert any((value != first[name]).any() for name, value in weights("c" + option, option, "1").items())


def test_an_existing_training_is_refused_and_stays(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train()
    before = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert "holds a training already; give --overwrite or -o" in refusal(capsys)
    assert "6.pt exists, so this training is finished; --overwrite starts anew" in refusal(capsys, "--resume")
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == before
    for options in (("--overwrite",), ("--overwrite", "--resume")):
        train(*options)
        assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == before


def test_resume_names_the_argument_that_differs(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: Path, history: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_model, "write_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert "--resume goes on, --overwrite starts anew" in refusal(capsys)
    assert "it was started with lr 0.01, not 0.02" in refusal(capsys, "--resume", "-lr", "0.02")
    train("--resume")
    assert not (FOLDER / "resume.pt").exists()
