"""Networks in front of images: of their own data set or another, with one preprocessing or each its own."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from src.cutting.freeze import freeze
from src.cutting.parts import head, layer_names, tail
from src.dataset import DATASETS, load_split
from src.dataset.preprocessing import Preprocessing, wrap_preprocessing
from src.evaluation.evaluate import evaluate
from src.networks import checkpoints
from src.networks.presentation import put_on_dataset
from src.networks.state_dicts import head_of
from tests.paths import ROOT

WEIGHTS = ROOT / "model_weights"
MNIST = WEIGHTS / "Tiny10/MNIST/in0-gn0/1872.pt"
DIGITS = WEIGHTS / "Tiny10/Digits/in0-gn0/440.pt"


def test_preprocessing_does_what_is_written_to_each_channel() -> None:
    images = torch.randint(0, 256, (3, 2, 5, 5), dtype=torch.uint8)
    before = images.clone()
    seen = Preprocessing(5, (0.5, 0.25), (0.1, 2.0))(images)
    mean, std = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1), torch.tensor([0.1, 2.0]).view(1, 2, 1, 1)
    assert_close(seen, (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert seen.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, before)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic", "nearest"])
def test_images_of_another_size_are_interpolated_in_the_range_of_pixels(kind: str) -> None:
    images = torch.zeros(1, 1, 6, 6)
    images[..., 3:] = 255
    seen = Preprocessing(12, (0.0,), (1 / 255,), kind)(images)
    assert seen.shape == (1, 1, 12, 12) and seen.min() >= 0 and seen.max() <= 255.001
    assert_close(seen.mean(), images.mean(), rtol=0.02, atol=0)
    smaller = Preprocessing(3, (0.0,), (1 / 255,), kind)(images)
    assert smaller.shape == (1, 1, 3, 3) and (smaller[..., 0] < 10).all() and (smaller[..., 2] > 245).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size 0 is not positive"),
        ({"mean": (0.0, 1.0)}, "number of channels"),
        ({"std": (0.0,)}, "is not positive"),
        ({"std": (float("nan"),)}, "is not positive"),
        ({"mean": (float("inf"),)}, "is not finite"),
        ({"interpolation": "cubic"}, "'cubic' is none of bilinear, bicubic, nearest"),
    ],
)
def test_numbers_that_normalise_nothing_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"size": 4, "mean": (0.5,), "std": (0.5,)} | change)


def test_a_network_keeps_its_own_numbers_on_the_images_of_another_set() -> None:
    """The published range for MNIST networks on digits is .61 to .66; normalised by the digits' numbers it differs."""
    network = checkpoints.load(MNIST)
    on_data = put_on_dataset([network], "digits")
    assert on_data.labelled
    assert on_data.notes == [f"{MNIST} was trained on mnist, and is shown digits"]
    own = evaluate(network.network, on_data.split("val"))["acc"]
    assert 0.55 < own < 0.7
    assert evaluate(network.network, load_split("digits", "val"))["acc"] != own
    images, _ = next(on_data.split("val").batches(4))
    raw, _ = next(load_split("digits", "val").with_preprocessing(None).batches(4))
    assert_close(images, (raw / 255 - 0.1307) / 0.3081, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_says_how() -> None:
    digits = checkpoints.load(DIGITS)
    two = replace(digits, preprocessing=Preprocessing(32, (0.5, 0.5), (0.5, 0.5)))
    with pytest.raises(ValueError, match="of 2 channels, and those of cifar10 have 3"):
        put_on_dataset([two], "cifar10")


def test_images_of_another_size_or_colour_are_noted() -> None:
    digits = checkpoints.load(DIGITS)
    large = replace(digits, preprocessing=replace(digits.preprocessing, size=64))
    on_data = put_on_dataset([large], None)
    assert on_data.sample.shape == (2, 1, 64, 64) and on_data.notes == [f"{DIGITS} sees images enlarged from 32 to 64"]
    notes = put_on_dataset([digits], "stl10").notes
    assert [line.removeprefix(f"{DIGITS} ") for line in notes] == [
        "was trained on digits, and is shown stl10",
        "sees images reduced from 96 to 32",
        "takes grey, and is shown the brightness of stl10",
    ]
    colourful = replace(digits, preprocessing=Preprocessing(32, (0.5,) * 3, (0.5,) * 3))
    assert put_on_dataset([colourful], None).notes == [
        f"{DIGITS} takes colour, and is shown the grey of digits as all of its channels"
    ]


def test_grey_becomes_colour_and_colour_brightness() -> None:
    """By ITU-R BT.601, as PIL has it; alone, and beside a network that sees the same images in its own way."""
    colours = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    grey = Preprocessing(4, (0.5,), (0.25,))(colours)
    weights = torch.tensor([299, 587, 114]).view(1, 3, 1, 1)
    brightness = (colours.double() * weights).sum(1, keepdim=True) / 1000
    assert_close(grey, ((brightness / 255 - 0.5) / 0.25).float(), rtol=0, atol=1e-5)
    back = Preprocessing(4, (0.5,) * 3, (0.25,) * 3)(colours[:, :1])
    assert torch.equal(back[:, 0], back[:, 2])
    assert_close(back[:, 0], (colours[:, 0] / 255 - 0.5) / 0.25, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_grey_and_a_colour_network_share_images() -> None:
    digits = checkpoints.load(DIGITS)
    preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    colourful = replace(digits, network=nn.Conv2d(3, 10, 32).eval(), preprocessing=preprocessing)
    on_data = put_on_dataset([digits, colourful], "digits")
    assert on_data.shared is None and on_data.sample.shape == (2, 1, 32, 32)
    images, _ = next(on_data.split("val").batches(4))
    alone, _ = next(load_split("digits", "val").with_preprocessing(preprocessing).batches(4))
    assert torch.equal(on_data.networks[1].network(images), colourful.network(alone))


@torch.no_grad()
def test_classes_in_another_order_are_matched_by_name() -> None:
    digits = checkpoints.load(DIGITS)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    turned = replace(digits, network=copy.deepcopy(digits.network), labels=tuple("3140592687"), path="turned")
    last = turned.network.get_submodule(head_of(turned.network))
    for values in (last.weight, last.bias):  # the same network, which says class 3 first
        values.copy_(values[order].clone())  # pyright: ignore
    on_data = put_on_dataset([turned, digits], "digits")
    assert on_data.labelled and on_data.reordered == [True, False]
    assert on_data.notes == ["turned has the classes of digits in another order; they are matched by name"]
    images, _ = next(on_data.split("val").batches(32))
    assert_close(on_data.networks[0].network(images), digits.network(images))
    given = head(digits.network, "bn3")(images)
    assert_close(tail(on_data.networks[0].network, "bn3")(given, images), digits.network(images))
    found = [evaluate(one.network, on_data.split("val")) for one in on_data.networks]
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0]["acc"] > 0.9
    assert layer_names(on_data.networks[0].network) == layer_names(digits.network)


def test_classes_are_compared_by_name() -> None:
    network = checkpoints.load(MNIST)
    assert not put_on_dataset([network], "fashion").labelled
    with pytest.raises(
        ValueError,
        match=r"10 other classes than those of fashion \(.* '0' against 'Ankle boot'\).*--freeze-body -d f",
    ):
        put_on_dataset([network], "fashion").require_decisions()
    put_on_dataset([network], "fashion").require_decisions(labelled=False)
    put_on_dataset([network], "digits").require_decisions()


def test_networks_of_different_sets_need_one_to_look_at() -> None:
    pair = [checkpoints.load(MNIST), checkpoints.load(DIGITS)]
    with pytest.raises(ValueError, match=r"are for different data sets: .* for mnist, .* for digits; name one with -d"):
        put_on_dataset(pair, None)
    with pytest.raises(ValueError, match="is for no data set of ours; name one with -d"):
        put_on_dataset([replace(pair[0], dataset=None)], None)
    assert put_on_dataset([replace(pair[0], dataset=None), pair[1]], None).dataset == "digits"


@pytest.mark.parametrize("same", [True, False])
@torch.no_grad()
def test_each_network_of_a_pair_sees_what_it_would_see_alone(same: bool) -> None:
    pair = [checkpoints.load(DIGITS), checkpoints.load(DIGITS if same else MNIST)]
    on_data = put_on_dataset(pair, "digits")
    assert (on_data.shared is not None) == same
    images, _ = next(on_data.split("val").batches(8))
    assert on_data.sample.shape[1:] == images.shape[1:]
    for one, seeing in zip(pair, on_data.networks, strict=True):
        assert (seeing.network is one.network) == same
        assert layer_names(seeing.network) == layer_names(one.network)
        alone, _ = next(put_on_dataset([one], "digits").split("val").batches(8))
        activation, last = head(one.network, "bn3")(alone), one.network(alone)
        assert torch.equal(head(seeing.network, "bn3")(images), activation)
        assert torch.equal(freeze(head(seeing.network, "bn3"))(images), freeze(head(one.network, "bn3"))(alone))
        assert torch.equal(seeing.network(images), last)
        for layer in ("bn3", "conv1"):  # the second depends on nothing but its own output
            given = head(one.network, layer)(alone)
            assert torch.equal(tail(seeing.network, layer)(given, images), tail(one.network, layer)(given, alone))


@torch.no_grad()
def test_a_network_that_cannot_be_traced_sees_too() -> None:
    class Winding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
            self.shift = nn.Parameter(torch.ones(4))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.conv(images)
            return self.fc((x if x.sum() > 0 else -x).mean((2, 3)) + self.shift)

    network, preprocessing = Winding().eval(), Preprocessing(6, (0.5,), (0.25,))
    images = torch.randint(0, 256, (3, 1, 6, 6), dtype=torch.uint8)
    seeing = wrap_preprocessing(network, preprocessing)
    assert torch.equal(seeing(images), network(preprocessing(images)))
    assert torch.equal(head(seeing, "conv")(images), network.conv(preprocessing(images)))
    given = torch.randn(3, 4, 4, 4)
    assert torch.equal(tail(seeing, "conv")(given, images), tail(network, "conv")(given, preprocessing(images)))
    assert type(seeing).__name__ == "Winding" and type(network) is Winding


def test_training_images_are_augmented_before_anyone_preprocesses_them() -> None:
    def batch(preprocessing: Preprocessing | None) -> torch.Tensor:
        order, augment = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        return next(
            load_split("digits", "train").with_preprocessing(preprocessing).batches(16, order=order, augment=augment)
        )[0]

    raw, preprocessing = batch(None), replace(DATASETS["digits"].preprocessing, size=40)
    wanted = F.interpolate(raw, size=(40, 40), mode="bilinear", antialias=True, align_corners=False)
    assert_close(batch(preprocessing), (wanted / 255 - 0.3058) / 0.3241, rtol=1e-4, atol=1e-4)
    assert raw.max() > 200


def test_what_networks_say_is_asked_wherever_they_are() -> None:
    on_data = put_on_dataset([checkpoints.load(MNIST), checkpoints.load(DIGITS)], "digits")
    assert on_data.comparable and not on_data.missing_columns
    for network in on_data.networks:
        network.network.to("meta")
    assert on_data.comparable


def test_classes_of_others_must_stand_in_one_order_and_unknown_ones_may_be_the_same() -> None:
    digits = checkpoints.load(DIGITS)
    letters = replace(digits, labels=tuple("abcdefghij"), path="letters")
    turned, unknown = replace(letters, labels=tuple("jabcdefghi")), replace(digits, labels=None, path="unknown")
    assert (
        put_on_dataset([letters, letters], "digits").comparable
        and not put_on_dataset([letters, turned], "digits").comparable
    )
    assert not put_on_dataset([letters, digits], "digits").comparable
    on_data = put_on_dataset([unknown, digits], "digits")
    assert on_data.comparable and on_data.shares_classes == [True, True] and not on_data.missing_columns
    assert on_data.notes[0].startswith(
        "unknown does not say what its 10 classes are; they are taken for those of digits"
    )
    on_data.require_for({"soft_12": ("front", "end")})
    with pytest.raises(ValueError, match="letters does not decide between the classes of .*440.pt, so it cannot teach"):
        put_on_dataset([letters, digits], "digits").require_for({"hard": (), "soft_1": ("front",)})
