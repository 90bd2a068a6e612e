"""Classifiers of torchvision."""

import warnings
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn

from src.core.errors import UserError, first_line
from src.core.files import read_bytes
from src.core.tensor_files import parse_tensors
from src.dataset.labels import IMAGENET
from src.dataset.preprocessing import Preprocessing
from src.networks.followed import OwnProcessor, as_picture
from src.networks.sources.library import LibraryModel, Source, State, in_hub_folder, unknown

KEYS = {"colour": "mean, std", "size": "crop_size", "shape": "resize_size, crop_size", "kernel": "interpolation"}


def build(name: str, *, channels: int, classes: int | None, size: int | None) -> LibraryModel:
    """A fresh network; its preprocessing is that of torchvision's own weights. Raises UserError for unknown names.

    All of them take colour, whatever `channels`: grey images are shown to them three times.
    """
    models = _models()
    if name not in models.list_models(module=models):
        raise unknown("torchvision", name, models.list_models(module=models))
    preprocessing, processor = eyes(name, size)
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if size and name.startswith("vit_"):
        options["image_size"] = size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its random weights will be drawn in another way some day
        network = models.get_model(name, weights=None, **options)
    labels = IMAGENET if classes in (None, len(IMAGENET)) else None
    return LibraryModel(network, preprocessing, labels, processor)


def eyes(name: str, size: int | None) -> tuple[Preprocessing, OwnProcessor]:
    """What the transforms of a network's weights say that they do, and they themselves."""
    record = _weights(name).transforms()
    own = record.crop_size[0]
    numbers = tuple(record.mean), tuple(record.std), record.interpolation.value
    preprocessing = Preprocessing(size or own, *numbers, shorter=record.resize_size[0] / own)
    return preprocessing, OwnProcessor(lambda image: record(as_picture(image)), (preprocessing.shorter,), KEYS)


def cached(name: str) -> Path | None:
    """The file of the weights that torchvision offers for a network, where it has been downloaded."""
    models = _models()
    return in_hub_folder(_weights(name).url) if name in models.list_models(models) else None


def published(name: str, file: Path | None = None) -> State:
    """The weights that torchvision offers for a network: of a file, else it downloads them where it has not yet."""
    if file:
        return dict(parse_tensors(read_bytes(file)))
    try:
        return dict(_weights(name).get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of torchvision:{name} cannot be downloaded ({first_line(error)}); name a file with "
            f"torchvision:{name}@PATH"
        ) from None


def _models() -> Any:
    import torchvision  # takes 2 seconds, which no one pays who has networks of ours

    return torchvision.models


def as_published(name: str, network: nn.Module, preprocessing: Preprocessing) -> Preprocessing:
    """What published weights of Inception see: torchvision turns images, in the network, into those of -1 to 1."""
    if not hasattr(network, "transform_input"):
        return preprocessing
    return replace(preprocessing, mean=(0.5,) * 3, std=(0.5,) * 3)


def is_published(name: str, sha256: str) -> bool:
    """Whether a file is the published one, whose name ends with the beginning of its digest."""
    return sha256.startswith(PurePosixPath(_weights(name).url).stem.rpartition("-")[2])


def _weights(name: str) -> Any:
    return vars(_models().get_model_weights(name))["DEFAULT"]


SOURCE = Source(build, "DEFAULT", published, cached, as_published=as_published, is_published=is_published)
