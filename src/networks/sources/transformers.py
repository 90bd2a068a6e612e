"""Image classifiers of transformers, from a folder or by name; never with code that comes with the weights."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from src.core.errors import UserError, first_line
from src.dataset.preprocessing import Preprocessing
from src.networks.sources.library import LibraryModel, NotHere, Source, require
from src.networks.sources.offline import offline

# Pillow's numbers of interpolations, in which transformers records them
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class Logits(nn.Module):
    """An image classifier of transformers as images -> logits, its layers under their own names."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        for name, child in classifier.named_children():
            self.add_module(name, child)
        self._classifier = [classifier]  # not registered: its name would stand before every other

    def forward(self, images: Tensor) -> Tensor:
        return self._classifier[0](pixel_values=images, return_dict=True).logits

    def fresh(self) -> "Logits":
        """An untrained network of the same configuration."""
        classifier = self._classifier[0]
        with offline():
            return Logits(type(classifier)(classifier.config))


def open_classifier(name: str, *, size: int | None, download: bool = False) -> LibraryModel:
    """A trained classifier with the names of its classes: a folder's, one in the library's cache, or, with `download`,
    of its hub. No code of either runs. Raises UserError where there is none of that name.
    """
    transformers = require("transformers")
    require("safetensors")
    is_folder = Path(name).is_dir()
    here = is_folder or not download
    options = {"trust_remote_code": False, "local_files_only": here}
    try:
        # what a folder says of itself may name an adapter, a backbone or an architecture of some hub
        with _quiet(transformers), offline() if here else contextlib.nullcontext():
            config = transformers.AutoConfig.from_pretrained(name, **options)
            _require_own_attention(config)
            load = transformers.AutoModelForImageClassification.from_pretrained
            model = load(name, config=config, use_safetensors=True, **options)
            record = _record(transformers, name, options)
    except Exception as error:  # of many kinds, by format, network and version
        remedy = "" if here else "; a folder that holds it needs no network: hf:FOLDER"
        kind = NotHere if here and not is_folder else UserError
        raise kind(f"hf:{name} is no image classifier that can be opened ({first_line(error)}){remedy}") from None
    labels = tuple(model.config.id2label[number] for number in range(model.config.num_labels))
    return LibraryModel(Logits(model), _preprocessing(record, model.config, size), labels)


def _require_own_attention(config: Any) -> None:
    """Refuse a configuration whose attention would be code of some hub, which no option of the library forbids."""
    asked = getattr(config, "_attn_implementation", None)
    if asked not in (None, "eager", "sdpa"):
        raise UserError(f"its attention {asked!r} is code from elsewhere")


def _record(transformers: Any, name: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return transformers.AutoImageProcessor.from_pretrained(name, use_fast=False, **options).to_dict()
    except Exception:  # a folder without that file, or a processor that asks for other libraries
        return {}


def _preprocessing(record: dict[str, Any], config: Any, size: int | None) -> Preprocessing:
    given = record.get("crop_size") or record.get("size") or getattr(config, "image_size", 224)
    own = given if isinstance(given, int) else next(iter(given.values()))
    channels = getattr(config, "num_channels", 3)
    mean, std = (tuple(record.get(key) or (0.5,) * channels) for key in ("image_mean", "image_std"))
    return Preprocessing(size or int(own), mean, std, _INTERPOLATIONS.get(record.get("resample", 2), "bilinear"))


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _files(name: str) -> list[Path]:
    return sorted(Path(name).iterdir()) if Path(name).is_dir() else [Path(name)]


SOURCE = Source(
    open=open_classifier,
    fresh=Logits.fresh,
    code=lambda name, network: hashlib.sha256(repr(network).encode()).hexdigest(),  # its folder may lie anywhere
    files=_files,
)
