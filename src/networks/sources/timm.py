"""Classifiers of timm."""

from pathlib import Path
from typing import Any

from src.core.errors import UserError, first_line
from src.dataset.labels import IMAGENET
from src.dataset.preprocessing import INTERPOLATIONS, Preprocessing
from src.networks.followed import OwnProcessor, as_picture
from src.networks.sources.library import LibraryModel, Source, State, in_hub_folder, require, unknown


def build(name: str, *, channels: int, classes: int | None, size: int | None) -> LibraryModel:
    """A fresh network; its preprocessing is timm's record of it. Raises UserError for unknown names."""
    timm = require("timm")
    if not timm.is_model(name):
        raise unknown("timm", name, timm.list_models())
    record = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"in_chans": channels} | ({} if classes is None else {"num_classes": classes})
    own = record.input_size[-1] if record else 224
    network = None
    if size not in (None, own):
        try:  # transformers must know the size, convolutions do not even take it
            network = timm.create_model(name, pretrained=False, img_size=size, **options)
        except TypeError:
            network = None
    try:
        network = network or timm.create_model(name, pretrained=False, **options)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm:{name} cannot be made ({first_line(error)})") from None
    config = network.pretrained_cfg
    preprocessing, processor = eyes(timm, config, channels, size)
    labels = IMAGENET if network.num_classes == len(IMAGENET) else None
    return LibraryModel(network, preprocessing, labels, processor)


def eyes(
    timm: Any, config: dict[str, Any], channels: int, size: int | None
) -> tuple[Preprocessing, OwnProcessor | None]:
    """What timm's record of a network says that it does to images, and timm's own transform; that is for colour."""
    settings = timm.data.resolve_data_config(config)
    own, share = settings["input_size"][-1], settings["crop_pct"]
    mean, std = (_of_channels(settings[key], channels) for key in ("mean", "std"))
    kind = settings["interpolation"] if settings["interpolation"] in INTERPOLATIONS else "bicubic"
    resize, shorter = "squash" if settings["crop_mode"] == "squash" else "crop", max(1.0, int(own / share) / own)
    preprocessing = Preprocessing(size or own, mean, std, kind, resize, shorter)
    if channels != 3:
        return preprocessing, None
    transform = timm.data.create_transform(**settings, is_training=False)
    keys = {"colour": "mean, std", "size": "input_size", "shape": "crop_mode, crop_pct", "kernel": "interpolation"}
    return preprocessing, OwnProcessor(lambda image: transform(as_picture(image)), (shorter,), keys)


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def cached(name: str) -> Path | None:
    """The file of the weights that timm offers for a network, where it has been downloaded."""
    timm = require("timm")
    record = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if record and record.hf_hub_id:
        repository, _, revision = record.hf_hub_id.partition("@")
        look_up = require("huggingface_hub").try_to_load_from_cache
        for file in [record.hf_hub_filename] if record.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]:
            if isinstance(found := look_up(repository, file, revision=revision or None), str):
                return Path(found)
    return in_hub_folder(record.url) if record and record.url else None


def published(name: str, file: Path | None = None) -> State:
    """The weights that timm offers for a network: of a file, else it downloads them where it has not yet."""
    timm = require("timm")
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}} if file else {}
    try:
        return timm.create_model(name, pretrained=True, **overlay).state_dict()
    except Exception as error:  # of many kinds, by what stands between us and the weights
        raise UserError(
            f"the weights of timm:{name} cannot be had ({first_line(error)}); name a file with timm:{name}@PATH"
        ) from None


SOURCE = Source(build, "pretrained", published, cached)
