"""Classifiers of torchvision."""

import warnings
from pathlib import Path
from typing import Any

from src.core.errors import UserError, first_line
from src.core.files import parse_tensors
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
    record = _models().get_model_weights(name).DEFAULT.transforms()
    own = record.crop_size[0]
    numbers = tuple(record.mean), tuple(record.std), record.interpolation.value
    preprocessing = Preprocessing(size or own, *numbers, shorter=record.resize_size[0] / own)
    return preprocessing, OwnProcessor(lambda image: record(as_picture(image)), (preprocessing.shorter,), KEYS)


def cached(name: str) -> Path | None:
    """The file of the weights that torchvision offers for a network, where it has been downloaded."""
    models = _models()
    return in_hub_folder(models.get_model_weights(name).DEFAULT.url) if name in models.list_models(models) else None


def published(name: str, file: Path | None = None) -> State:
    """The weights that torchvision offers for a network: of a file, else it downloads them where it has not yet."""
    if file:
        return dict(parse_tensors(file.read_bytes()))
    try:
        return dict(_models().get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of torchvision:{name} cannot be downloaded ({first_line(error)}); name a file with "
            f"torchvision:{name}@PATH"
        ) from None


def _models() -> Any:
    import torchvision  # takes 2 seconds, which no one pays who has networks of ours

    return torchvision.models


SOURCE = Source(build, "DEFAULT", published, cached)
