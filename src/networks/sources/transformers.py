"""Image classifiers of transformers, from a folder or by name; never with code that comes with the weights."""

import contextlib
import hashlib
import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from src.core.errors import UserError, first_line
from src.core.records import POSITIVE, PREPROCESSING, TEXT, Several, check, short
from src.dataset.labels import said_names
from src.dataset.preprocessing import SHORTER, Preprocessing
from src.networks.followed import OwnProcessor, as_picture
from src.networks.sources.library import LibraryModel, NotHere, Source, require
from src.networks.sources.offline import offline

RECORD = "preprocessor_config.json"
_LAYERS = re.compile("layers|depth|blocks|stages|repeats")
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


def open_classifier(name: str, *, asked: Collection[str] = (), download: bool = False) -> LibraryModel:
    """A trained classifier with the names of its classes: a folder's, one in the library's cache, or, with `download`,
    of its hub. No code of either runs. `asked` is what the user says of images, so that nothing else need say it.
    Raises UserError where there is none of that name.
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
            _require_stored_layers(config, Path(name))
            load = transformers.AutoModelForImageClassification.from_pretrained
            model = load(name, config=config, use_safetensors=True, **options)
            own_processor = _processor(transformers, name, options)
    except Exception as error:  # of many kinds, by format, network and version
        remedy = "" if here else "; a folder that holds it needs no network: hf:FOLDER"
        kind = NotHere if here and not is_folder else UserError
        raise kind(f"hf:{name} is no image classifier that can be opened ({first_line(error)}){remedy}") from None
    if isinstance(own_processor, Exception):
        if not {"mean", "std", "size"} <= set(asked):
            raise UserError(
                f"hf:{name}: its image processor cannot be had ({first_line(own_processor)}); say what it is to be "
                "shown: ?size=...?mean=...?std=..."
            )
        own_processor = None
    try:
        names = tuple(model.config.id2label[number] for number in range(model.config.num_labels))
        check(names, Several(TEXT), place="id2label")
        record = own_processor.to_dict() if own_processor else {}
        proposed = _proposed(record, model.config)
        processor = _own_processor(own_processor, record, proposed) if own_processor else None
    except (UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"hf:{name} says of itself what no classifier can be ({first_line(error)})") from None
    return LibraryModel(Logits(model), proposed, said_names(list(names)), processor)


def _require_own_attention(config: Any) -> None:
    """Refuse a configuration whose attention would be code of some hub, which no option of the library forbids."""
    asked = getattr(config, "_attn_implementation", None)
    if asked not in (None, "eager", "sdpa"):
        raise UserError(f"its attention {asked!r} is code from elsewhere")


def _require_stored_layers(config: Any, folder: Path) -> None:
    """Refuse more layers than a folder has arrays for, before they are built: each has one at least."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return
    stored = 0
    for file in files:
        with require("safetensors").safe_open(file, "pt") as arrays:
            stored += len(arrays.keys())
    for key, value in config.to_dict().items():
        counts = value if isinstance(value, list) else [value]
        if _LAYERS.search(key) and any(isinstance(count, int) and count > stored for count in counts):
            raise UserError(f"{key} is {short(value)}, and {stored} arrays are stored")


def _processor(transformers: Any, name: str, options: dict[str, Any]) -> Any:
    """The image processor; None where there is no record of one, the error where the record makes none."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(name, **options)
    except Exception as error:  # of many kinds; that of an absent record has no kind of its own
        there = (Path(name) / RECORD).exists() if Path(name).is_dir() else RECORD not in str(error)
        return error if there else None


def _proposed(record: dict[str, Any], config: Any) -> Preprocessing:
    """What a processor's record seems to say; what it leaves open is what running the processor shows."""
    crop = record.get("crop_size") if record.get("do_center_crop", True) else None
    own = _side(crop or record.get("size") or getattr(config, "image_size", 224))
    channels = getattr(config, "num_channels", 3)
    check(channels, POSITIVE, place="num_channels")
    mean, std = (tuple(record.get(key) or (0.5,) * channels) for key in ("image_mean", "image_std"))
    known = {"size": own, "mean": mean, "std": std}
    check(known, {key: PREPROCESSING[key] for key in known})
    kind = _INTERPOLATIONS.get(record.get("resample", 2), "bilinear")
    whole = isinstance(record.get("size"), dict) and "height" in record["size"]
    return Preprocessing(own, mean, std, kind, "squash" if whole else "crop", 1.0 if whole else SHORTER)


def _side(given: Any) -> int:
    return int(given if isinstance(given, int) else next(iter(given.values()), None) or 224)


def _own_processor(found: Any, record: dict[str, Any], proposed: Preprocessing) -> OwnProcessor:
    def prepare(image: np.ndarray, **switches: bool) -> Tensor:
        one = {"images": as_picture(image) if image.shape[2] == 3 else image.transpose(2, 0, 1)}
        return found(**one, return_tensors="pt", **switches)["pixel_values"][0]

    own = proposed.size
    shares = (_side(record.get("size") or own) / own, int(own / (record.get("crop_pct") or 1)) / own, SHORTER)
    parts = {
        "colour": ("image_mean", "image_std", "rescale_factor"),
        "size": ("size", "crop_size", "pad_size"),
        "shape": ("size", "crop_size", "crop_pct", "size_divisor"),
        "kernel": ("resample",),
    }
    if record.get("do_resize") is False:
        parts["shape"] = ("do_resize",)
    keys = {part: ", ".join(key for key in names if record.get(key) is not None) for part, names in parts.items()}
    on = [key for key, value in record.items() if key.startswith("do_") and value is True]
    return OwnProcessor(prepare, shares, keys, {key: partial(prepare, **{key: False}) for key in on})


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
