"""Networks whose answers are no function of the image: noted with the module, and refused where a stitch needs one."""

from pathlib import Path

import pytest
import torch

import eval_stitch
import stitch_nets
from src.networks.architectures import untrained
from src.networks.opening import open_network
from src.networks.presentation import put_on_dataset
from src.networks.source_spec import Named
from src.networks.steadiness import tried
from tests.paths import ROOT

DIGITS = f"{ROOT}/model_weights/Tiny10/Digits/in0-gn0/440.pt"
NETS = """
import pathlib
import torch
import torch.nn.functional as F
from torch import nn

class Drops(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(F.dropout(self.relu(self.conv(x))).mean((2, 3)))

class Deep(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.body, self.head = Drops(8, channels), nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.body(x))

def normed(classes, channels, **options):
    norm = nn.BatchNorm2d(8, **options)
    layers = nn.Conv2d(channels, 8, 3, stride=2), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, classes))

def steady(classes, channels):
    return normed(classes, channels)

def untracked(classes, channels):
    return normed(classes, channels, track_running_stats=False)

def removed(classes, channels):
    network = normed(classes, channels)
    network[1].running_mean = network[1].running_var = None
    return network

def within(classes, channels):
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, nn.Linear(8, classes))

def loads(classes, channels):
    network, file = normed(classes, channels), pathlib.Path("loaded.pt")
    if file.exists():
        network.load_state_dict(torch.load(file))
    else:
        torch.save(network.state_dict(), file)
    return network
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("function", "by_chance", "by_batch"),
    [
        ("steady", None, None),
        ("Drops", "Drops", None),
        ("Deep", "body (Drops)", None),
        ("untracked", None, "1 (BatchNorm2d)"),
        ("removed", None, "1 (BatchNorm2d)"),
        ("within", None, "3 (BatchNorm1d)"),
    ],
)
def test_the_module_that_leaves_the_image_is_named(function: str, by_chance: str | None, by_batch: str | None) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = open_network(Named(f"nets.py:{function}#1"), dataset="digits")
    assert (found.by_chance, found.by_batch) == (by_chance, by_batch)
    assert torch.equal(torch.get_rng_state(), state) and not found.network.training
    notes = " ".join(put_on_dataset([found], "digits").notes)
    assert ("draws at random" in notes, "others of its batch" in notes) == (bool(by_chance), bool(by_batch))


def test_networks_of_ours_are_steady() -> None:
    found = open_network(DIGITS)
    assert tried(found.network, channels=1, size=32) == (None, None)


@pytest.mark.parametrize("function", ["untracked", "removed"])
def test_what_depends_on_the_batch_is_stitched_when_asked_for(function: str) -> None:
    pair = [f"nets.py:{function}#1", DIGITS, "2", "bn3", "-d", "digits", "--resize", "-e", "1", "--run-name", "r"]
    for words in (pair, [pair[1], pair[0], "bn3", "2", *pair[4:]]):
        with pytest.raises(ValueError, match=r"by 1 \(BatchNorm2d\), so a stitch .* --batch-dependent stitches it"):
            stitch_nets.run(stitch_nets.parse_args(words))
    stitch_nets.main([*pair, "--batch-dependent", "--controls", "untrained"])
    eval_stitch.main(["results/r/2-bn3.pkl", "after", "--no-save", "--front-model", pair[0]])


def test_a_control_that_would_not_be_untrained_is_refused() -> None:
    pair = ["nets.py:loads#1", DIGITS, "2", "bn3", "-d", "digits", "--resize", "-e", "0", "--no-save"]
    with pytest.raises(ValueError, match=r"nets\.py:loads gives the same weights whatever the seed.* behind an @"):
        stitch_nets.run(stitch_nets.parse_args([*pair, "--controls", "untrained"]))
    stitch_nets.run(stitch_nets.parse_args(pair))
    front = open_network("lenet#5", dataset="digits")
    with pytest.raises(ValueError, match="lenet of seed 5, untrained, has the weights of lenet#5; give another --seed"):
        untrained(front, 5)
    untrained(front, 6)
