"""What a library does to images is what its networks are shown here: flat colours, patterns, photos of any shape."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from src.dataset.preprocessing import Preprocessing
from src.networks.followed import LEVELS, OwnProcessor, follow
from src.networks.opening import open_network
from src.networks.presentation import put_on_dataset
from tests.own_images import photo, write_photos

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about their own future
SQUARE = {"height": 32, "width": 32}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FOLLOWED = {
    "as it is": ("ViT", {}),
    "no normalisation": ("ViT", {"do_normalize": False, "image_std": [0.25] * 3}),
    "other rescaling": ("ViT", {"rescale_factor": 1 / 127.5}),
    "no rescaling": ("ViT", {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3}),
    "bicubic": ("ViT", {"resample": 3}),
    "nearest": ("ViT", {"resample": 0}),
    "normalised twice": ("EfficientNet", {"image_mean": MEAN, "image_std": STD}),
    "normalised once": ("EfficientNet", {"image_mean": MEAN, "image_std": STD, "include_top": False}),
    "blue first": ("MobileViT", {"size": {"shortest_edge": 36}, "crop_size": SQUARE}),
    "squashed, then cropped": ("DeiT", {"size": {"height": 36, "width": 36}, "crop_size": SQUARE}),
    "a crop that is off": ("DeiT", {"crop_size": {"height": 20, "width": 20}, "do_center_crop": False}),
    "cropped": ("CLIP", {"size": {"shortest_edge": 36}, "crop_size": SQUARE}),
    "a share": ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.88}),
}
REFUSED = {
    "do_resize": ("ViT", {"do_resize": False}),
    "resample": ("ViT", {"resample": 1}),
    "do_color_quantize": ("ImageGPT", {}),
    "do_center_crop": ("MobileViT", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}),
}


def classifier(folder: Path, kind: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """A tiny classifier of transformers and its processor, saved together."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=7,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    processor = getattr(transformers, f"{kind}ImageProcessor")(**{"size": SQUARE} | options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize("what", FOLLOWED)
@torch.no_grad()
def test_a_network_of_transformers_sees_what_its_processor_makes(tmp_path: Path, what: str) -> None:
    model, processor = classifier(tmp_path / "net", *FOLLOWED[what])
    found = open_network(f"hf:{tmp_path / 'net'}")
    side = processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].shape[-1]
    assert found.preprocessing.size == side == 32
    flat = np.full((32, 32, 3), (200, 30, 90), dtype=np.uint8)
    theirs = processor(images=Image.fromarray(flat), return_tensors="pt")["pixel_values"]
    ours = found.preprocessing(torch.from_numpy(flat).permute(2, 0, 1)[None])
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    write_photos(tmp_path / "photos", each=30)
    split = put_on_dataset([found], f"folder:{tmp_path / 'photos'}").split("val", num_workers=0)
    images = torch.cat([images for images, _ in split.batches(16)])
    files = sorted((tmp_path / "photos/val").rglob("*.jpg"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    theirs = torch.cat([processor(images=one, return_tensors="pt")["pixel_values"] for one in pictures])
    right = model(theirs).logits
    centre = right.mean(0)  # without which random weights decide alike on all images
    agree = ((found.network(images) - centre).argmax(1) == (right - centre).argmax(1)).double().mean()
    assert agree >= 0.95 and len((right - centre).argmax(1).unique()) > 2  # roundings move one or two of 60


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_followed_is_refused_by_its_key(tmp_path: Path, key: str) -> None:
    classifier(tmp_path / "net", *REFUSED[key])
    with pytest.raises(
        ValueError, match=rf"net: its own processor gives other images .*\({key}\); say .*\?\w+="
    ) as told:
        open_network(f"hf:{tmp_path / 'net'}")
    assert "\n" not in str(told.value)
    said = "?size=32?mean=0.5,0.5,0.5?std=0.5,0.5,0.5?resize=crop?interpolation=bicubic"
    seen = open_network(f"hf:{tmp_path / 'net'}{said}").preprocessing
    assert seen == Preprocessing(32, (0.5,) * 3, (0.5,) * 3, "bicubic")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b1", "vit_b_16", "inception_v3"])
def test_torchvisions_transforms_are_followed(name: str) -> None:
    from torchvision import models

    from src.networks.sources import torchvision as source

    transform = vars(models.get_model_weights(name))["DEFAULT"].transforms()
    made = source.eyes(name, None)
    found = follow(made[1], made[0], name=name)
    assert found == made[0]  # the record was read right, and need not be mended
    assert found.size == transform.crop_size[0] and round(found.size * found.shorter) == transform.resize_size[0]


@pytest.mark.parametrize("name", ["test_vit", "resnet18", "dm_nfnet_f0", "tf_efficientnet_b0", "inception_v3"])
def test_timms_transforms_are_followed(name: str) -> None:
    timm = pytest.importorskip("timm")
    from src.networks.sources import timm as source

    proposed, own = source.eyes(timm, timm.get_pretrained_cfg(name).to_dict(), 3, None)
    assert own and follow(own, proposed, name=name) == proposed
    with pytest.raises(ValueError, match=r"\(crop_mode, crop_pct\); say what it is to be shown: \?resize=\.\.\."):
        config = timm.get_pretrained_cfg(name).to_dict() | {"crop_mode": "border"}
        proposed, own = source.eyes(timm, config, 3, None)
        assert own and follow(own, proposed, name=name)


def test_what_differs_by_a_level_is_found() -> None:
    right = Preprocessing(16, (0.5,) * 3, (0.25,) * 3, resize="squash", shorter=1.0)
    image = torch.from_numpy(np.asarray(photo(0, 16, 16))).permute(2, 0, 1)[None]

    def prepare(pixels: np.ndarray, change: float = 0) -> torch.Tensor:
        small = Image.fromarray(pixels).resize((16, 16), 2)
        return right(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None])[0] + change

    own = OwnProcessor(prepare)
    assert follow(own, Preprocessing(16, (0.5,) * 3, (0.25,) * 3), name="x") == right
    moved = follow(OwnProcessor(lambda pixels: prepare(pixels, 0.04)), right, name="x")
    assert moved.mean == pytest.approx((0.49,) * 3) and moved.std == right.std
    bent = OwnProcessor(lambda pixels: prepare(pixels).clamp(max=1), keys={"colour": "do_clip"})
    with pytest.raises(ValueError, match=r"x: .*\(do_clip\).*\?mean=\.\.\.\?std="):
        follow(bent, right, name="x")
    assert LEVELS < 3 and right(image).shape == (1, 3, 16, 16)
