"""Real weights of two ImageNet classifiers of different libraries, stitched on images of other classes."""

from pathlib import Path
from typing import Any

import pytest
import torch

import stitch_nets
from src.dataset import Split, load_split
from src.networks import presentation as on_data

IMAGES = {"train": 60, "val": 32}
DEPTHS = {"features.3": "blocks.1", "features.6": "blocks.2", "features.13": "blocks.4"}

pytestmark = [pytest.mark.reference, pytest.mark.data]


@pytest.fixture
def command(reference: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """MobileNetV2 to EfficientNet-Lite0 at 160 x 160, with a few of CIFAR-10's images in place of all."""
    pytest.importorskip("timm")

    def some(dataset: str, split: str, **options: Any) -> Split:
        return load_split(dataset, split, **options).take(torch.arange(IMAGES[split]))

    monkeypatch.setattr(on_data, "load_split", some)
    monkeypatch.chdir(tmp_path)
    folder = reference / "imagenet"
    return [
        f"torchvision:mobilenet_v2@{folder}/mobilenet_v2-b0353104.pth?size=160",
        f"timm:tf_efficientnet_lite0@{folder}/tf_efficientnet_lite0.pt?size=160",
        *(",".join(layers) for layers in (DEPTHS, DEPTHS.values())),
        *["--pairs", "zip", "-d", "cifar10", "--resize", "-i", "ps_inv", "-e", "0", "--no-save", "--no-similarity"],
    ]


def test_stitched_networks_decide_as_the_end_network_far_more_often_than_a_constant(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target-type", "soft_2", "--controls", "constant"]
    found = stitch_nets.run(stitch_nets.parse_args([*command, *options]))
    for result in found:
        constant = result["controls"]["constant"]["same_class_out"]
        assert result["m2_sim"]["after"]["same_class_out"] > constant + 0.15
        assert result["model_results"]["trans"]["acc"] is None and result["hits"]["m2_frank"] is None
    assert "hooks" not in capsys.readouterr().err  # its padded convolutions are steps of a graph


def test_what_needs_labels_is_refused(command: list[str]) -> None:
    with pytest.raises(
        ValueError, match="has no accuracy there; train a head for them: train_model.py -m .* --freeze-body -d cifar10"
    ):
        stitch_nets.run(stitch_nets.parse_args([*command, "--target-type", "hard", "-e", "1"]))
