"""train_model.py: where its files land, what they hold, and what it refuses to run over."""

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

import eval_net
import src.training.network
import train_model
from src import results
from src.cli import output as cli
from src.core.files import sole_maker
from src.core.tensor_files import parse_tensors
from src.dataset import Split
from src.networks import checkpoints
from src.training.loop import DEBUG_STEPS
from src.training.network_spec import TrainSpec
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
    assert header == "epoch,train_accuracy,train_loss,val_accuracy,val_loss"
    assert [row.split(",")[0] for row in rows] == ["1", "2"]
    assert [float(value) for value in rows[1].split(",")[3:]] == pytest.approx(
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
        patch.setattr(src.training.network, "write_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert "--resume goes on, --overwrite starts anew" in refusal(capsys)
    assert "it was started with lr 0.01, not 0.02" in refusal(capsys, "--resume", "-lr", "0.02")
    train("--resume")
    assert not (FOLDER / "resume.pt").exists()


@pytest.mark.parametrize(("options", "how"), [([], "--resume"), (["--no-save"], "--resume without --no-save")])
def test_the_line_of_an_interrupted_training_says_what_goes_on(
    options: list[str], how: str, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: Path, history: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(src.training.network, "write_log", interrupted)
    with pytest.raises(SystemExit) as stop:
        train_model.main([*COMMAND, *options])
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith(f"error: interrupted; {how} goes on from the last whole epoch\n")


def initial(args: argparse.Namespace) -> nn.Module:
    spec = TrainSpec.of(args)
    return train_model.initial_network(spec, train_model.images_for(spec), cli.notice).network


def test_training_starts_from_given_weights_and_keeps_its_own_head_where_sizes_differ(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = checkpoints.load("a3.pt").network.state_dict()
    args = train_model.parse_args([*COMMAND, "--init-weights", "a3.pt"])
    assert_same(initial(args).state_dict(), given)
    assert capsys.readouterr().err == ""
    state = given | {"fc2.weight": torch.zeros(7, 3), "fc2.bias": torch.zeros(7)}  # of a set of 7 classes
    torch.save(state, "seven.pt")
    args = train_model.parse_args([*COMMAND, "--init-weights", "seven.pt", "-i", "5"])
    network = initial(args)
    assert capsys.readouterr().err == "the head fc2 starts at random: it has another size in seven.pt\n"
    plain = initial(train_model.parse_args([*COMMAND, "-i", "5"])).state_dict()
    assert_same(network.state_dict(), given | {name: plain[name] for name in ("fc2.weight", "fc2.bias")})
    result = train("--init-weights", "seven.pt")
    assert len(parse_tensors(Path(result["weights"]).read_bytes())["recipe"]["init_weights"]) == 64


def test_a_finished_training_of_another_recipe_is_not_gone_on_with(toy: Path, capsys) -> None:
    train()
    before = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert "2.pt was trained with epochs 2, not 4; --overwrite starts anew" in refusal(capsys, "--resume", "-e", "4")
    assert "was trained with lr 0.01, not 0.1;" in refusal(capsys, "--resume", "-lr", "0.1")
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == before
    (FOLDER / "6.pt").unlink()  # as if it had been killed in its first epoch, which leaves no state
    assert train("--resume")["iteration"] == 6
    assert (FOLDER / "6.pt").read_bytes() == before["6.pt"]


def test_a_training_that_replaces_another_leaves_none_of_its_weights(toy: Path) -> None:
    train()
    (FOLDER / "mine.pt").touch()
    train("--overwrite", "-e", "1", "-s", "3")
    assert sorted(path.name for path in FOLDER.iterdir()) == ["3.pt", "mine.pt", "training_log.csv"]


def test_nor_does_one_that_was_interrupted_and_resumed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    write_log = src.training.network.write_log
    with monkeypatch.context() as patch:
        patch.setattr(src.training.network, "write_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train("--overwrite", "-e", "3", "-s", "5")
    assert src.training.network.write_log is write_log and (FOLDER / "resume.pt").exists()
    (FOLDER / "7.pt").write_text("of another program")
    train("--resume", "-e", "3", "-s", "5")
    assert sorted(path.name for path in FOLDER.iterdir()) == ["5.pt", "7.pt", "9.pt", "training_log.csv"]


def test_weights_of_unknown_origin_are_not_resumed(toy: Path, capsys) -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "7.pt").write_text("of another program")
    assert "7.pt is not of a training by this script; give --overwrite or -o" in refusal(capsys, "--resume")
    assert [path.name for path in FOLDER.iterdir()] == ["7.pt"]


def test_only_one_training_fills_a_folder_at_a_time(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FOLDER.mkdir(parents=True)
    with sole_maker(FOLDER / "training_log.csv"):
        for options in (), ("--resume",), ("--overwrite",):
            assert "another run is making" in refusal(capsys, "--run-name", "other", *options)
    assert not any(FOLDER.iterdir()) and not list(Path("results").rglob("*.pkl"))
    train()


def test_a_training_that_fails_at_once_leaves_no_folder_and_takes_no_state(toy: Path, capsys) -> None:
    assert "exceeds" in refusal(capsys, "-b", "1000")
    assert not Path("snapshots").exists() or not any(Path("snapshots").iterdir())
    FOLDER.mkdir(parents=True)
    (FOLDER / "resume.pt").touch()
    assert "no weight file" in refusal(capsys, "--overwrite", "--init-weights", "missing.pt")
    assert [path.name for path in FOLDER.iterdir()] == ["resume.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv2.weight": torch.zeros(3, 2, 3, 3)}, "conv2.weight has the shape (3, 2, 3, 3), expected (3, 3, 3, 3)"),
        ({"conv2.weight": None}, "conv2.weight is missing"),
        ({"fc2.bias": None}, "fc2.bias is missing"),
        ({"fc3.bias": torch.zeros(1)}, "fc3.bias is unexpected"),
    ],
)
def test_weights_that_lack_or_add_anything_but_another_head_are_refused(
    toy: Path, capsys: pytest.CaptureFixture[str], change: dict, message: str
) -> None:
    state = checkpoints.load("a3.pt").network.state_dict() | change
    torch.save({name: value for name, value in state.items() if value is not None}, "w.pt")
    assert f"w.pt does not fit toy_w3: {message}" in refusal(capsys, "--init-weights", "w.pt")
    assert not FOLDER.exists()


def test_weights_of_another_architecture_or_none_are_refused(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "b5.pt is for the model toy_w5, not toy_w3" in refusal(capsys, "--init-weights", "b5.pt")
    assert "no weight file x.pt" in refusal(capsys, "--init-weights", "x.pt")


def test_a_set_without_an_official_validation_split_says_so(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "toy has no split 'valid'; choose from train, val" in refusal(capsys, "--validate-on", "valid")


def seen_in_training(monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[dict, list[Split], str]:
    """The result of a training, and the images that it was given, training and validation."""
    splits = []

    def spy(spec, start, train, val, **options):
        splits.extend([train, val])
        return trained(spec, start, train, val, **options)

    trained = train_model.train_network
    with monkeypatch.context() as patch:
        patch.setattr(train_model, "train_network", spy)
        result = train(*options)
    return result, splits, Path(result["weights"]).parent.name


def test_a_network_learns_of_fewer_images_and_of_wrong_labels(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, (whole, validation), _ = seen_in_training(monkeypatch)
    options = ("--train-fraction", "0.5", "--shuffle-labels", "1", "--run-name", "r")
    result, (fewer, same), folder = seen_in_training(monkeypatch, *options)
    told = capsys.readouterr().err
    assert "training on 24 of 48 images, alike of each class" in told
    assert "the labels of 24 of them are shuffled" in told
    assert folder == "in0-gn0-f0.5-s1" and result["iteration"] == 2  # of 24 images
    assert fewer.labels.bincount().tolist() == [6] * 4
    assert_same(same.labels, validation.labels)
    loaded = checkpoints.load(result["weights"])
    assert (loaded.train_fraction, loaded.shuffle_labels, loaded.seeds) == (0.5, 1.0, folder)
    assert loaded.recipe and loaded.recipe["train_fraction"] == 0.5 and loaded.recipe["shuffle_labels"] == 1.0
    assert results.read(Path(f"results/r/train_model-Toy_w3-Toy-{folder}.pkl"))["iteration"] == 2
    eval_net.main([result["weights"], "--run-name", "e"])
    assert f"toy_w3 {folder} (toy)" in capsys.readouterr().out
    assert Path(f"results/e/eval_net-toy_w3-toy-{folder}-2.pkl").exists()
    _, (other, _), _ = seen_in_training(monkeypatch, *options, "-g", "1")
    assert (other.labels != fewer.labels).any()
    assert "train_fraction" not in (checkpoints.load(FOLDER / "6.pt").recipe or {})
    assert len(whole) == 48


def test_a_resumed_training_sees_the_images_of_the_first(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = ("--train-fraction", "0.7", "--shuffle-labels", "0.5"), FOLDER.with_name("in0-gn0-f0.7-s0.5")
    whole = train("-o", "whole", *options)
    with monkeypatch.context() as patch:
        patch.setattr(src.training.network, "write_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(*options)
    other = folder.with_name("in0-gn0-f0.7-s1")
    folder.rename(other)
    assert "started with shuffle_labels 0.5, not 1.0" in refusal(capsys, *options[:3], "1", "--resume")
    other.rename(folder)
    resumed = train(*options, "--resume")
    assert Path(resumed["weights"]).read_bytes() == Path(whole["weights"]).read_bytes()


def test_debug_takes_a_few_batches_and_says_so_everywhere(toy: Path, capsys) -> None:
    result = train("--debug", "-b", "4", "--run-name", "r")
    assert result["iteration"] == 2 * DEBUG_STEPS < 2 * 48 // 4
    assert f"debug: only {DEBUG_STEPS} batches an epoch" in capsys.readouterr().out
    assert (checkpoints.load(result["weights"]).recipe or {})["debug"] is True
    assert results.read(Path("results/r/train_model-Toy_w3-Toy-in0-gn0.pkl"))["params"]["debug"] is True


def test_mixed_precision_trains_nearly_the_same_network_and_is_told(toy: Path) -> None:
    exact, mixed = train("-o", "exact"), train("-o", "mixed", "--amp")
    losses = [[row["train_loss"] for row in result["log"]] for result in (exact, mixed)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
    loaded = checkpoints.load(mixed["weights"])
    assert loaded.recipe and loaded.recipe["amp"] is True
    assert all(value.dtype != torch.bfloat16 for value in loaded.network.state_dict().values())
