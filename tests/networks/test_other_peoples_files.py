"""Checkpoints, paths and class names as other people keep them: each gives the right value, or one line."""

import argparse
import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import compare_nets
import eval_net
import stitch_nets
import train_model
from src.dataset.labels import CIFAR10, IMAGENET, is_numbered, said_names
from src.networks.architectures import architecture
from src.networks.class_names import classes_of
from src.networks.opening import open_network
from src.networks.presentation import put_on_dataset
from src.networks.source_spec import Named
from src.networks.weight_files import read_weights
from tests.own_images import digits_of, write_arrays, write_folder
from tests.paths import ROOT

NETS = """
from torch import nn

def make(classes, channels):
    body = nn.Sequential(nn.Conv2d(channels, 6, 5, stride=2), nn.ReLU(), nn.BatchNorm2d(6))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, classes))

class Tied(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(3, classes, 3)
        self.again = self.first

    def forward(self, x):
        return self.again(x).mean((2, 3))

def tied(classes):
    return Tied(classes)
"""


def make(seed: int = 0) -> nn.Sequential:
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scope["make"](10, 3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nets.py in it, and a folder of pictures of ten classes."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pictures", 3, names="abcdefghij", colour=True)
    return tmp_path


def opened(text: str, dataset: str | None = None) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return open_network(Named(text), dataset=dataset, on_message=lines.append), lines


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def raw() -> dict[str, Tensor]:
    return dict(make(0).state_dict())


def averaged() -> dict[str, Tensor]:
    return dict(make(1).state_dict())


BESIDE = {
    "epoch": 3,
    "args": argparse.Namespace(lr=0.1, model="x"),
    "best": np.float64(0.9),
    "history": [np.int64(3), {"a": np.arange(3)}],
    "path": Path("x"),
}
ORDINARY = {
    "DataParallel": (lambda: under("module.", raw()), "'module.' before its names"),
    "compiled": (lambda: under("_orig_mod.", raw()), "'_orig_mod.' before its names"),
    "compiled, in parallel": (lambda: under("module._orig_mod.", raw()), "'module.' before its names"),
    "Lightning": (
        lambda: {"state_dict": under("model.", raw()), "epoch": 3, "pytorch-lightning_version": "2"},
        "'model.' before its names",
    ),
    "Lightning with a loss": (
        lambda: {"state_dict": under("model.", raw()) | {"criterion.weight": torch.ones(3)}},
        "without it criterion.weight is left out",
    ),
    "net": (lambda: {"net": under("module.", raw()), "acc": 93.1, "epoch": 199}, "under 'net' are taken"),
    "model": (lambda: {"model": raw(), "optimizer": {"state": {}, "param_groups": []}}, "under 'model' are taken"),
    "model_state_dict": (lambda: {"model_state_dict": raw(), "loss": torch.tensor(0.3)}, "'model_state_dict' are"),
    "wrapped twice": (lambda: {"state": 1, "model": {"state_dict": raw()}}, "under 'model.state_dict' are taken"),
    "SWA": (lambda: under("module.", raw()) | {"n_averaged": torch.tensor(5)}, "without it n_averaged is left out"),
    "neighbours": (lambda: {"state_dict": raw(), **BESIDE}, "under 'state_dict' are taken"),
    "neighbours within": (lambda: raw() | {"epoch": 3, "best": np.float64(0.9)}, ""),
    "both": (lambda: {"model": raw(), "ema": averaged()}, "under 'model' are taken; the averaged ones are under 'ema'"),
    "both, as timm": (lambda: {"state_dict": raw(), "state_dict_ema": averaged()}, "?weights=ema"),
    "both, by prefix": (lambda: under("model.", raw()) | under("ema.", averaged()), "behind 'ema.': ?weights=ema"),
    "averaged alone": (lambda: {"ema": raw()}, "which are averaged; there are no others"),
}


@pytest.mark.parametrize("what", ORDINARY)
@torch.no_grad()
def test_ordinary_checkpoints_load_with_a_note(here: Path, what: str) -> None:
    content, note = ORDINARY[what]
    torch.save(content(), "w.pt")
    found, lines = opened("nets.py:make@w.pt", "folder:pictures")
    assert_close(found.network(found.sample), make(0).eval()(found.sample), rtol=0, atol=0)
    assert len(lines) == bool(note) + (what in ("Lightning", "Lightning with a loss", "net"))
    assert all(line.startswith("note: w.pt: ") and "\n" not in line for line in lines)
    assert note in " ".join(lines)
    if what.startswith("both"):
        found, lines = opened("nets.py:make@w.pt?weights=ema", "folder:pictures")
        assert_close(found.network(found.sample), make(1).eval()(found.sample), rtol=0, atol=0)
        assert lines and "?weights" not in " ".join(lines)


def test_averaged_weights_are_asked_for_where_there_are_some(here: Path) -> None:
    torch.save({"model": raw()}, "w.pt")
    for text in ("nets.py:make@w.pt", f"{ROOT}/model_weights/Tiny10/Digits/in0-gn0/440.pt"):
        with pytest.raises(ValueError, match=r"\.pt holds no averaged weights; leave out \?weights=ema"):
            opened(f"{text}?weights=ema", "folder:pictures")
    with pytest.raises(ValueError, match="names no file with weights of two kinds; leave out"):
        opened("nets.py:make#0?weights=ema", "folder:pictures")


@torch.no_grad()
def test_tied_weights_are_written_once(here: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture(Named("nets.py:tied"), channels=3, classes=10, size=32).network
    safetensors.save_model(network, "w.safetensors")
    torch.save({name: value for name, value in network.state_dict().items() if name.startswith("first")}, "half.pt")
    for file in ("w.safetensors", "half.pt"):
        found, lines = opened(f"nets.py:tied@{file}", "folder:pictures")
        assert_close(found.network(found.sample), network(found.sample), rtol=0, atol=0)
        assert not lines


class Runs:
    def __reduce__(self):
        return __import__("subprocess").check_call, (["touch", "ran"],)


@pytest.mark.parametrize("what", ["a whole network", "one in a wrapper", "what runs"])
def test_what_is_no_state_dict_is_refused_and_never_run(here: Path, what: str) -> None:
    content: Any = {"a whole network": make(), "one in a wrapper": {"model": make(), "epoch": 3}, "what runs": Runs()}
    torch.save(content[what], "w.pt")
    with pytest.raises(
        ValueError, match=r"w\.pt holds a whole \S+, .*save its weights alone: torch\.save\(.*\)"
    ) as told:
        opened("nets.py:make@w.pt", "folder:pictures")
    assert "\n" not in str(told.value)
    torch.save({"state_dict": raw(), "other": Runs()}, "w.pt")
    opened("nets.py:make@w.pt", "folder:pictures")
    torch.save(raw() | {"0.0.weight": Runs()}, "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds no state dict of tensors"):
        opened("nets.py:make@w.pt", "folder:pictures")
    assert not Path("ran").exists()


def test_what_still_does_not_fit_shows_three_names_of_each_side(here: Path) -> None:
    torch.save({"state_dict": under("backbone.", raw())}, "w.pt")
    with pytest.raises(
        ValueError, match=r"0\.0\.weight is missing, and 7 more; it has (backbone\S+, ){3}\.\.\. where 0"
    ):
        opened("nets.py:make@w.pt", "folder:pictures")


@pytest.mark.parametrize("folder", ["runs", "digits/runs", "cifar10/runs", "imagenet", "Tiny10/Digits"])
def test_a_foreign_file_is_the_same_wherever_it_lies(here: Path, folder: str) -> None:
    Path(folder).mkdir(parents=True)
    torch.save(raw(), f"{folder}/w.pt")
    (plain, _), torch_state = opened(f"nets.py:make@{folder}/w.pt", "digits"), raw()
    assert (plain.labels, plain.dataset, plain.preprocessing.channels) == (None, None, 3)
    assert read_weights(Path(folder, "w.pt")).facts["dataset"] is None
    on_data = put_on_dataset([plain], "digits")
    assert on_data.labelled and on_data.networks[0].labels == tuple("0123456789")
    by_model = open_network(f"{folder}/w.pt", model=Named("nets.py:make"), dataset="digits")
    assert by_model.facts() | {"path": ""} == plain.facts() | {"path": ""}
    assert_close(dict(by_model.network.state_dict()), torch_state, rtol=0, atol=0)


def test_imagenet_heads_of_libraries_are_known(here: Path) -> None:
    network = architecture("torchvision:mobilenet_v3_small", channels=3, classes=None, size=None).network
    torch.save(network.state_dict(), "w.pt")
    assert opened("torchvision:mobilenet_v3_small@w.pt?size=32")[0].labels == IMAGENET
    assert opened("torchvision:mobilenet_v3_small#0?size=32")[0].labels is None
    pytest.importorskip("timm")
    torch.save(architecture("timm:test_resnet", channels=3, classes=None, size=None).network.state_dict(), "t.pt")
    assert opened("timm:test_resnet@t.pt?size=32")[0].labels == IMAGENET


def test_names_that_only_count_are_none() -> None:
    assert said_names(["LABEL_0", "LABEL_1"]) is None and said_names(["a", "LABEL_1"]) == ("a", "LABEL_1")
    assert is_numbered(["0", "10", "1", *"23456789"]) and is_numbered(["00", "01"]) and not is_numbered(["1", "2"])
    assert not is_numbered(["0", "a"])


def test_equal_numbers_of_classes_are_taken_in_an_order_that_is_said(here: Path) -> None:
    torch.save(raw(), "w.pt")
    network, _ = opened("nets.py:make@w.pt", "folder:pictures")
    on_data = put_on_dataset([network, network], "folder:pictures")
    assert on_data.labelled and on_data.comparable
    assert on_data.notes[0] == (
        "nets.py:make@w.pt does not say what its 10 classes are; they are taken for those of folder:pictures, in this "
        "order: a, b, c, d, ...; ?classes= says another"
    )
    write_arrays(here / "a.npz")
    on_data = put_on_dataset([network], "arrays:a.npz")
    assert on_data.labelled and on_data.networks[0].labels == tuple("0123456789")


def test_what_is_only_counted_takes_the_names_of_the_network(here: Path) -> None:
    """CIFAR-10's classes on arrays without names: label 3 is the fourth class; a folder of numbers goes by these."""
    torch.save(raw(), "w.pt")
    network, _ = opened("nets.py:make@w.pt?classes=cifar10", "folder:pictures")
    assert network.labels == CIFAR10
    write_arrays(here / "a.npz")
    on_data = put_on_dataset([network], "arrays:a.npz")
    assert on_data.labelled and on_data.answers == CIFAR10
    assert (
        on_data.notes[0]
        == "arrays:a.npz names no classes; its 0, 1, 2, 3, ... are airplane, automobile, bird, cat, ..."
    )
    assert torch.equal(on_data.split("val").labels, torch.tensor(digits_of("val", 3)[1]))
    write_folder(here / "shuffled", names="9876543210")  # the folder 9 holds zeros
    on_data = put_on_dataset([network], "folder:shuffled")
    assert torch.equal(on_data.split("val").labels.sort().values, torch.tensor(digits_of("val", 3)[1]))
    assert on_data.labelled and not put_on_dataset([network], "digits").labelled
    assert not put_on_dataset([network], "folder:pictures").labelled


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("fashion", ""),
        ("names.txt", ""),
        ("cifar100", "classes has 100 names, and the network decides between 10"),
        ("nothing", r"\?classes=nothing is neither a data set nor a file with a name a line"),
        ("twice.txt", "twice.txt: its lines are no names of classes that differ"),
        ("w.pt", "w.pt is no text of a name a line"),
        ("", "classes is '', not a data set or a file"),
    ],
)
def test_classes_are_said_behind_the_spec(here: Path, classes: str, message: str) -> None:
    torch.save(raw(), "w.pt")
    Path("names.txt").write_text("\n".join("klmnopqrst") + "\n\n")
    Path("twice.txt").write_text("a\na\n")
    if message:
        with pytest.raises(ValueError, match=message):
            opened(f"nets.py:make@w.pt?classes={classes}", "digits")
    else:
        assert opened(f"nets.py:make@w.pt?classes={classes}", "digits")[0].labels == classes_of(classes)


def test_a_function_that_takes_classes_asks_for_a_data_set(here: Path) -> None:
    with pytest.raises(ValueError, match=r"^nets\.py:make takes classes; name the data set .* with -d$"):
        open_network(Named("nets.py:make#3"))


def trained(path: str, seed: int) -> float:
    """A network trained in a plain loop on pictures in -1 to 1, its state dict saved; its accuracy in that loop."""
    images, labels = (torch.as_tensor(values) for values in digits_of("train", 30))
    held, right = (torch.as_tensor(values) for values in digits_of("val", 20))
    network = make(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(6):
            for part in torch.randperm(len(images)).split(50):
                optimizer.zero_grad()
                shown = images[part, None].expand(-1, 3, -1, -1) / 127.5 - 1
                nn.functional.cross_entropy(network(shown), labels[part]).backward()
                optimizer.step()
    torch.save({"net": network.state_dict(), "epoch": 6}, path)
    with torch.no_grad():
        said = network.eval()(held[:, None].expand(-1, 3, -1, -1) / 127.5 - 1).argmax(1)
    return (said == right).double().mean().item()


def test_ones_own_networks_on_ones_own_folder_just_work(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a new user does: two networks of a plain loop, a folder of classes, and nothing trained here."""
    write_folder(here / "own", 20, names="abcdefghij", colour=True)
    accuracies = [trained(f"{number}.pt", number) for number in (0, 1)]
    said = "?mean=0.5,0.5,0.5?std=0.5,0.5,0.5"
    specs = [f"nets.py:make@{number}.pt{said}" for number in (0, 1)]
    for spec, wanted in zip(specs, accuracies, strict=True):
        found = eval_net.run(eval_net.parse_args([spec, "-d", "folder:own", "--no-save"]))
        assert found["acc"] == pytest.approx(wanted, abs=1e-9) and wanted > 0.5
    again = eval_net.run(eval_net.parse_args([f"0.pt{said}", "-m", "nets.py:make", "-d", "folder:own", "--no-save"]))
    assert again["acc"] == pytest.approx(accuracies[0], abs=1e-9)
    err = capsys.readouterr().err
    assert "is shown 32 x 32, mean 0.5, deviation 0.5; resize: whole images, bilinear" in err
    assert "has changed" not in err and "is not what it was" not in err
    words = [*specs, "0.1", "0.1", "-d", "folder:own", "-i", "ps_inv", "-e", "1", "--no-save"]
    (result,) = stitch_nets.run(stitch_nets.parse_args(words))
    for role, wanted in zip(("front", "end"), accuracies, strict=True):
        assert result["model_results"][role]["acc"] == pytest.approx(wanted, abs=1e-9)
    assert result["model_results"]["trans"]["acc"] > 0.3


def test_the_line_that_refuses_names_a_command_that_mends(here: Path) -> None:
    write_folder(here / "five", 3, names="vwxyzvwxyz", colour=True)
    torch.save(raw(), "w.pt")
    with pytest.raises(ValueError, match="decides between 10 other classes") as told:
        on_data = put_on_dataset([opened("nets.py:make@w.pt?classes=fashion", "folder:five")[0]], "folder:five")
        on_data.require_decisions()
    command = re.search(r"train_model\.py (.*)$", str(told.value))
    assert command
    words = shlex.split(command[1].replace("?classes=fashion", ""))
    weights = train_model.run(train_model.parse_args([*words, "-e", "1", "-b", "8", "--no-save"]))["weights"]
    found = eval_net.run(eval_net.parse_args([f"nets.py:make@{weights}", "--no-save"]))
    assert found["images"] == 30 and found["dataset"] == "folder:five"
    body = read_weights(Path(weights)).state
    assert torch.equal(body["0.0.weight"], raw()["0.0.weight"])


def test_a_part_of_a_networks_classes_is_matched_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Digits 1, 4 and 7, and a network of all ten: by hand, and by the script."""
    path = f"{ROOT}/model_weights/Tiny10/Digits/in0-gn0/440.pt"
    write_folder(here / "all", 20)
    for split, name in itertools.product(("train", "val"), "0235689"):
        shutil.rmtree(here / "all" / split / name)
    network = open_network(path)
    on_data = put_on_dataset([network], "folder:all")
    assert on_data.labelled and on_data.answers == tuple("0123456789") and on_data.part == [1, 4, 7]
    assert on_data.notes[-1] == "folder:all has 3 of 10 classes; decisions are among all 10"
    images, labels = zip(*on_data.split("val").batches(500), strict=True)
    assert sorted(set(labels[0].tolist())) == [1, 4, 7]
    with torch.no_grad():
        logits = network.network(images[0])
    found = eval_net.run(eval_net.parse_args([path, "-d", "folder:all", "--no-save"]))
    assert found["acc"] == pytest.approx((logits.argmax(1) == labels[0]).double().mean().item(), abs=1e-9)
    among = torch.tensor([1, 4, 7])[logits[:, [1, 4, 7]].argmax(1)]
    assert found["part"]["acc"] == pytest.approx((among == labels[0]).double().mean().item(), abs=1e-9)
    out = capsys.readouterr().out
    assert "among 10 classes: accuracy" in out and "among the 3 of folder:all: accuracy" in out
    other = f"{ROOT}/model_weights/Tiny10/Digits/in1-gn1/440.pt"
    words = [path, other, "bn5", "bn5", "folder:all", "disagreement", "abs_acc_diff", "--no-save"]
    assert set(compare_nets.run(compare_nets.parse_args(words))["values"]) == {"disagreement", "abs_acc_diff"}
    stitch = [path, other, "bn5", "bn5", "-d", "folder:all", "-b", "30", "-e", "1", "--controls", "all", "--no-save"]
    (result,) = stitch_nets.run(stitch_nets.parse_args(stitch))
    assert result["model_results"]["front"]["acc"] == pytest.approx(found["acc"], abs=1e-9)


def test_what_needs_no_labels_is_measured_of_networks_of_any_classes(here: Path) -> None:
    """Two networks of the digits on pictures of other things disagree by so much, whatever these are called."""
    specs = [f"{ROOT}/model_weights/Tiny10/Digits/in{seed}-gn{seed}/440.pt" for seed in (0, 1)]
    words = [*specs, "bn5", "bn5", "folder:pictures", "disagreement", "jsd", "abs_acc_diff", "--no-save"]
    found = compare_nets.run(compare_nets.parse_args(words))
    assert set(found["values"]) == {"disagreement", "jsd"} and set(found["refused"]) == {"abs_acc_diff"}
    on_data = put_on_dataset([open_network(spec) for spec in specs], "folder:pictures")
    images, _ = next(on_data.split("val").batches(500))
    one, other = (network.network(images).argmax(1) for network in on_data.networks)
    assert found["values"]["disagreement"] == pytest.approx((one != other).double().mean().item())
