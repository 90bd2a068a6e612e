"""The shipped networks are what model_weights/README.md says they are."""

import csv
import hashlib
import shlex
from pathlib import Path

import pytest

import train_model
from model_weights.catalogue import COLUMNS, HERE, README, command, weight_files
from src.dataset import DATASETS, load_split
from src.evaluation.evaluate import evaluate
from src.networks import checkpoints
from src.training.network_spec import TrainSpec

FILES = weight_files()
DOWNLOADED = [path for path in FILES if DATASETS[str(checkpoints.load(path).dataset)].root]
LEAST = {
    "Tiny10/CIFAR10": 0.86,
    "ResNet20_w1/CIFAR10": 0.89,
    "ResNet20_w2/CIFAR10": 0.91,
    "Tiny10/MNIST": 0.99,
    "LeNet/MNIST": 0.985,
    "Tiny10/Digits": 0.99,
    "ViT_w96/Digits": 0.97,
    "ViT_w96/CIFAR10": 0.8,
    "Tiny10/CIFAR10-f0.1": 0.70,
    "Tiny10/CIFAR10-f0.5": 0.82,
    "Tiny10/CIFAR10-s1": 0.08,  # chance is 0.1
}


def table() -> dict[Path, dict[str, str]]:
    rows = {}
    for line in README.read_text().splitlines():
        if line.startswith("| `"):
            cells = dict(zip(COLUMNS, (cell.strip().strip("`") for cell in line.strip("| ").split("|")), strict=True))
            rows[HERE / cells["network"]] = cells
    return rows


def name(path: Path) -> str:
    return path.relative_to(HERE).as_posix()


def test_the_table_lists_the_files_and_they_are_small() -> None:
    assert list(table()) == FILES
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 30e6


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_the_one_that_was_measured_and_tells_how_it_was_made(path: Path) -> None:
    cells, checkpoint = table()[path], checkpoints.load(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == cells["SHA-256"] == checkpoint.sha256
    assert f"{path.stat().st_size / 1e3:.0f}" == cells["kB"]
    assert command(checkpoint) == cells["command"]
    args = train_model.parse_args(shlex.split(cells["command"])[2:])
    assert TrainSpec.of(args).facts() == checkpoint.recipe
    assert path.parent == checkpoints.weight_folder(HERE, args.model, args.dataset, checkpoint.seeds)
    assert (checkpoint.init_seed, checkpoint.gradient_seed) == (args.init_noise, args.gradient_noise)
    assert path.stem == str(checkpoint.iteration)
    with (path.parent / "training_log.csv").open() as log:
        rows = list(csv.DictReader(log))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == args.epochs == int(cells["epochs"])
    assert f"{float(rows[-1]['train_accuracy']):.2%}" == cells["training accuracy"]
    assert abs(float(rows[-1]["val_accuracy"]) - float(cells["accuracy"].strip("%")) / 100) < 0.01


def check_accuracy(path: Path) -> None:
    cells, checkpoint = table()[path], checkpoints.load(path)
    scores = evaluate(checkpoint.network, load_split(str(checkpoint.dataset), "val"))
    assert abs(scores["acc"] - float(cells["accuracy"].strip("%")) / 100) <= 1e-4
    assert scores["loss"] == pytest.approx(float(cells["loss"]), abs=1e-4)
    variant = checkpoint.seeds.removeprefix(f"in{checkpoint.init_seed}-gn{checkpoint.gradient_seed}")
    assert scores["acc"] >= LEAST[path.parent.parent.relative_to(HERE).as_posix() + variant]


@pytest.mark.parametrize("path", [path for path in FILES if path not in DOWNLOADED], ids=name)
def test_accuracy_on_what_is_embedded(path: Path) -> None:
    check_accuracy(path)


@pytest.mark.data
@pytest.mark.parametrize("path", DOWNLOADED, ids=name)
def test_accuracy_on_real_images(path: Path) -> None:
    check_accuracy(path)
