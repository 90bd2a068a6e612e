"""Write model_weights/README.md from the weight files beside it: python -m model_weights.catalogue

Everything in the table is read from the files or measured with them, so it needs the data sets that they are for.
"""

import csv
import hashlib
import shlex
from pathlib import Path

import train_model
from src.core.files import atomic_write
from src.dataset import load_split
from src.evaluation.evaluate import evaluate
from src.networks import checkpoints
from src.networks.checkpoints import Checkpoint

HERE = Path(__file__).parent
README = HERE / "README.md"
INTRODUCTION = """# Trained networks

Made by this repository's `train_model.py`, with the commands below. All on a CPU, except six of Tiny10 on CIFAR-10:
`in1-gn1` to `in4-gn4`, `in1-gn1-f0.5` and `in0-gn0-s1` were trained on a GPU (NVIDIA H200, torch 2.11), with
convolutions in TF32; such a run need not repeat to the bit, nor one with `--amp` on another processor. A folder
`in<i>-gn<j>` says the seeds of the initial weights and of the order of images; beside each weight file lies the log
of its training. Accuracy and loss are those of all validation images, as `eval_net.py` prints them; the training
accuracy is that of the log's last row, on augmented images and the labels that training saw. `-f0.1` says that a
network saw a tenth of the training images of each class, `-s1` that all labels were shuffled among the images. Where
the file's iteration is not the last of its training, it is the snapshot of that iteration.

This page is written by `python -m model_weights.catalogue`.

"""
COLUMNS = ("network", "command", "epochs", "training accuracy", "accuracy", "loss", "kB", "SHA-256")


def weight_files() -> list[Path]:
    """The shipped weight files, in the order of the table."""
    return sorted(HERE.glob("*/*/*/*.pt"))


def command(checkpoint: Checkpoint) -> str:
    """The command line that trains a network as its file says it was trained, defaults left out."""
    parts = ["-m", checkpoint.model, "-d", checkpoint.dataset]
    parts += ["-i", str(checkpoint.init_seed), "-g", str(checkpoint.gradient_seed)]
    flags = {"epochs": "-e", "batch_size": "-b", "optimizer": "-opt", "lr": "-lr", "weight_decay": "-wd"}
    flags |= {"train_fraction": "--train-fraction", "shuffle_labels": "--shuffle-labels"}
    defaults = vars(train_model.parse_args([]))
    recipe = checkpoint.recipe or {}
    for name, flag in flags.items():
        if recipe.get(name, defaults[name]) != defaults[name]:
            parts += [flag, f"{recipe[name]:g}" if isinstance(recipe[name], float) else str(recipe[name])]
    parts += [f"--{name}" for name in ("cosine", "amp", "tf32") if recipe.get(name)]
    return shlex.join(["python", "train_model.py", *parts])


def row(path: Path) -> str:
    """A line of the table: a file's name, its training, its scores, its size and digest."""
    checkpoint = checkpoints.load(path)
    scores = evaluate(checkpoint.network, load_split(str(checkpoint.dataset), "val"))
    content = path.read_bytes()
    with (path.parent / "training_log.csv").open() as log:
        last = list(csv.DictReader(log))[-1]
    cells = (
        f"`{path.relative_to(HERE).as_posix()}`",
        f"`{command(checkpoint)}`",
        str((checkpoint.recipe or {})["epochs"]),
        f"{float(last['train_accuracy']):.2%}",
        f"{scores['acc']:.2%}",
        f"{scores['loss']:.4f}",
        f"{len(content) / 1e3:.0f}",
        f"`{hashlib.sha256(content).hexdigest()}`",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|--:|--:|--:|--:|--:|---|", *map(row, weight_files())]
    with atomic_write(README) as file:
        file.write((INTRODUCTION + "\n".join(lines) + "\n").encode())
    print(README)


if __name__ == "__main__":
    main()
