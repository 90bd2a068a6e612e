"""Sewing from Python: what stitch_nets.py makes of the same networks and images; modules are left as they are."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stitch_nets
from src import load_results, open_network, results, sew
from src.networks.presentation import put_on_dataset

IMAGES = 48


def network(seed: int, width: int = 4, classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(
                nn.Conv2d(width, width, 3),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(36 * width, classes),
            ),
        )


def data(images: int = IMAGES) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(images) % 3


def test_figures_are_those_of_the_script(toy: Path) -> None:
    """Two networks that prepare images alike, on the images as they see them."""
    stitch_nets.main(["a3.pt", "b5.pt", "bn1", "conv2", "-i", "ps_inv", "-e", "0", "--run-name", "r"])
    kept = load_results("results/r/bn1-conv2.pkl")
    opened = [open_network(name) for name in ("a3.pt", "b5.pt")]
    on_data = put_on_dataset(opened, "toy")
    splits = [next(on_data.split(name, device=torch.device("cpu")).batches(IMAGES)) for name in ("train", "val")]
    sewn = sew(opened[0].network, opened[1].network, "bn1", "conv2", splits[0], val=splits[1], init="ps_inv", epochs=0)
    for stage in ("ps_inv", "ls_train", "after"):
        for part, array in kept["trans_m"][stage].items():
            assert np.allclose(sewn.record["trans_m"][stage][part], array, atol=1e-5)
    rows = sewn.frame().set_index("row")
    table = load_results("results/r").iloc[0]
    for stage in ("front", "end", "after", "ps_inv"):
        assert rows.loc[stage, "accuracy"] == table[f"accuracy_{stage}"]
    assert rows.loc["after", "cka"] == pytest.approx(table["cka_after"], abs=1e-6)
    assert str(sewn).splitlines()[1:3] == results_text(kept)[1:3]


def results_text(kept: dict[str, Any]) -> list[str]:
    from src.results.stitch_text import stitch_table

    return stitch_table(kept).splitlines()


def test_the_modules_are_left_as_they_were_and_their_halves_work() -> None:
    front, end, (images, labels) = network(0), network(1, 5), data()
    front.train()
    before = [copy.deepcopy(one.state_dict()) for one in (front, end)]
    sewn = sew(front, end, "2", "2", (images, labels.numpy()), init="ps_inv", epochs=2, lr=0.01, seed=3)
    assert front.training and all(value.requires_grad for value in front.parameters())
    for one, state in zip((front, end), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    stitched, rows = sewn.network(), sewn.frame().set_index("row")
    with torch.no_grad():
        by_hand = end.eval()[3:](sewn.stitch()(front.eval()[:3](images)))
        assert torch.allclose(stitched(images), by_hand, atol=1e-5) and not stitched.training
        accuracy = (stitched(images).argmax(1) == labels).double().mean()
        assert rows.loc["after", "accuracy"] == pytest.approx(float(accuracy))
        least = (sewn.stitch("ps_inv")(front[:3](images)) - end[:3](images)).square().mean()
        assert float(least) == pytest.approx(rows.loc["ps_inv", "l2"], rel=1e-4)
    assert rows.loc["ps_inv", "l2"] <= rows.loc["after", "l2"]
    assert len(sewn.record["trans_fit"]) == 2 and "the 48 images that it was fitted to" in str(sewn)


def test_training_brings_a_random_start_near() -> None:
    front, end, (images, labels) = network(0), network(1), data()
    sewn = sew(front, end, "2", "2", images, val=(images, labels), epochs=20, lr=0.03, target_type="match")
    rows = sewn.frame().set_index("row")
    assert rows.loc["after", "l2"] < 0.5 * rows.loc["before", "l2"]
    assert np.isnan(rows.loc["end", "accuracy"])  # labels of one side alone say nothing
    staged = sew(
        front, end, "2", "2", (images, labels), epochs="1,1", target_type="match,hard", controls="constant,self"
    )
    assert staged.record["params"]["stage_epochs"] == "1,1" and {"constant", "self"} <= set(staged.frame()["row"])


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({"kernel": 3}, "kernel 3"),
        ({"hidden": 8, "init": "ps_inv"}, "hidden 8"),
        ({"norm": True}, "norm"),
        ({"low_rank": 2}, "affine"),
        ({"mask": "semi-match"}, "affine"),
        ({"orthogonal": True, "init": "orthogonal"}, "affine"),
        ({"flatten": True}, "affine"),
        ({"whiten": True}, "affine"),
        ({"init": "ridge:0.1", "weight_decay": 0, "optimizer": "sgd", "cosine": True}, "affine"),
        ({"target_type": "match_later", "match_layers": "3,4"}, "affine"),
        ({"target_type": "soft_12", "temperature": 2, "l1": 0.01}, "affine"),
        ({"early_stop": 1, "epochs": 3, "batch_size": 8, "save_frequency": 1}, "affine"),
        ({"iri_images": 24, "batch_size": 8}, "affine"),
    ],
)
def test_every_option_of_a_stitch_is_taken(options: dict[str, Any], family: str) -> None:
    sewn = sew(network(0), network(1), "2", "2", data(), **{"epochs": 1, "lr": 0.01, **options})
    assert {name: sewn.record["params"][name] for name in options} == options
    assert sewn.stitch().count() == sewn.record["parameters"] or family == "norm"
    assert family == "affine" or f"family: {family}" in str(sewn)
    with torch.no_grad():
        assert sewn.network()(data()[0]).shape == (IMAGES, 3)


def test_statistics_of_its_own_and_fresh_fronts() -> None:
    front, end = network(0), network(1)
    how: dict[str, Any] = {"init": "ps_inv", "epochs": 1, "train_end_norm": True}
    sewn = sew(front, end, "2", "2", data(), fresh=network, controls="untrained", **how)
    images, labels = data()
    rows = sewn.frame().set_index("row")
    accuracy = (sewn.network()(images).argmax(1) == labels).double().mean()
    assert rows.loc["after", "accuracy"] == pytest.approx(float(accuracy)) and "untrained" in rows.index
    own = sewn.network("ps_inv")(images)
    assert not torch.allclose(sewn.network()(images), own, atol=1e-3)


def test_networks_need_not_see_pictures() -> None:
    """Words in, and several labels an image out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [
            nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 7), nn.ReLU(), nn.Linear(7, 2)) for _ in "ab"
        ]
        words, labels = torch.randint(0, 9, (40, 5)), torch.randint(0, 2, (40, 2)).float()
    rows = sew(nets[0], nets[1], "3", "3", (words, labels), init="ps_inv", epochs=1).frame().set_index("row")
    truth = ((nets[1](words) > 0) == labels.bool()).double().mean()
    assert rows.loc["end", "accuracy"] == pytest.approx(float(truth))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 2}, "unknown option 'epoch'; close: epochs; known are batch_size"),
        ({"epochs": -1}, "epochs: -1 is not a whole number, 0 or more"),
        ({"init": "psinv"}, "init: "),
        ({"train_on": "iri"}, "train_on 'iri' makes images of whole numbers"),
        ({"controls": "nobody"}, "unknown control 'nobody'"),
        ({"controls": "untrained"}, "no untrained network of the front's architecture can be made"),
        ({"low_rank": 9}, "rank 9 exceeds 4"),
        ({"front_layer": "nowhere"}, "has no layer 'nowhere'"),
        ({"data": data()[0]}, "target_type 'hard' needs labels"),
        ({"data": (data()[0], torch.full((IMAGES,), 7))}, "labels go from 7 to 7, and end has 3 classes"),
        ({"data": (data()[0], torch.zeros(5))}, "48 images and labels of the shape (5,)"),
        ({"data": torch.zeros(4)}, "images have the shape (4,)"),
        ({"data": (data()[0] * torch.nan, data()[1])}, "images hold NaN or infinite values"),
        ({"data": (data()[0].byte(), data()[1])}, "the networks do not take such images (("),
        ({"data": (data()[0].repeat(1, 2, 1, 1), data()[1])}, "the networks do not take such images ((2, "),
        (
            {"end": nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())},
            "the end network returns values of the shape",
        ),
        ({"end": "resnet"}, "a str is no torch.nn.Module"),
        ({"front": network(0, classes=5), "target_type": "soft_1"}, "front decides between other classes than end"),
    ],
)
def test_what_cannot_be_sewn_is_one_line(options: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {
        "front": network(0),
        "end": network(1),
        "front_layer": "2",
        "end_layer": "1",
        "data": data(),
    }
    with pytest.raises(ValueError) as caught:
        sew(**{**usual, "epochs": 1, **options})
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_divergence_is_said() -> None:
    with pytest.raises(FloatingPointError, match="diverged|lower"):
        sew(network(0), network(1), "2", "2", data(), epochs=2, lr=1e30)


def test_results_are_a_table_or_a_file(toy: Path) -> None:
    stitch_nets.main(["a3.pt", "b3.pt", "bn1", "bn1", "-e", "0", "--run-name", "r"])
    assert len(load_results("results")) == 1
    assert load_results(Path("results/r/bn1-bn1.pkl")).keys() == results.read(Path("results/r/bn1-bn1.pkl")).keys()
    assert open_network(Path("a3.pt")).network is not None
