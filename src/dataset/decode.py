"""Image files -> bytes of one size, in worker processes.

PIL decodes. torchvision.io gives the same pixels of JPEG files in less time, but is to be removed from torchvision;
reduced-scale decoding (PIL's draft mode) gives other pixels. benchmarks/decode.py has the rate of each.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from src.core.errors import UserError
from src.core.files import is_failing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")  # and all that end in ;16: more than a byte a value
_LONGEST = 4  # sides; of longer images only the middle is looked at


@dataclass(frozen=True, slots=True)
class Target:
    """What files are decoded to, (channels, side, side) uint8; grey for 1 channel, RGB for 3.

    The shorter side is brought to `shorter` pixels, with `squash` both sides whatever the shape, and the middle taken;
    an image of `kept` x `kept` stays as it is, and where `side` is larger its edges are repeated around it. The text of
    a target is part of keys: what is usual is not said there.
    """

    channels: int
    shorter: int
    side: int
    kept: int | None = None
    squash: bool = False
    interpolation: str = "bilinear"

    def __repr__(self) -> str:
        text = f"Target(channels={self.channels}, shorter={self.shorter}, side={self.side}, kept={self.kept}"
        text += ", squash=True" * self.squash
        return text + (f", interpolation={self.interpolation!r})" if self.interpolation != "bilinear" else ")")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side


class Files(Sequence[Path]):
    """Many files below one folder: 100 bytes each instead of 1,000, which forked workers share."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self._names = np.array([os.fsencode(name) for name in names], dtype=bytes)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self.folder / os.fsdecode(bytes(self._names[index]))

    def take(self, index: Sequence[int]) -> "Files":
        other = Files(self.folder, ())
        other._names = self._names[np.asarray(index, dtype=np.int64)]
        return other


def look_at(file: Path) -> tuple[tuple[int, int], int]:
    """Width and height of an image and whether it is grey (1) or colour (3), from its first bytes.

    Raises UserError, with the file, for what `decode` cannot read for certain.
    """
    with _named(file), _opened(file) as image:
        return image.size, 1 if image.mode in _GREY else 3


def decode(file: Path, target: Target) -> Tensor:
    """The bytes of one image, target.shape; raises UserError, with the file and the reason."""
    with _named(file):
        return fit_pixels(_pixels(file, target.channels), target)


def decode_batches(
    files: Sequence[Path], target: Target, batches: Sequence[Sequence[int]], *, num_workers: int, pin: bool
) -> Iterator[Tensor]:
    """The images of each batch of indices, (n, *target.shape), decoded by `num_workers` processes.

    Raises UserError for an image that cannot be read, OSError where a disk failed or a process died.
    """
    loader = DataLoader(
        _Decoder(files, target),
        batch_size=None,  # an item of the decoder is a batch
        sampler=batches,
        num_workers=min(num_workers, len(batches)),
        pin_memory=pin,
        generator=Generator(),  # its own, so that torch's global one is left as it was
    )
    try:
        for images in loader:
            if isinstance(images, Exception):
                raise images
            yield images
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a worker was killed: no memory, or no shared memory in a container
        reason = str(error).splitlines()[0]
        raise OSError(f"a process that decodes images died ({reason}); lower --num-workers or --batch-size") from None


class _Decoder(Dataset):
    """Indices of files -> one uint8 batch.

    Returns the error for an image that cannot be read: raised in a worker, it would arrive with a traceback in it.
    """

    def __init__(self, files: Sequence[Path], target: Target) -> None:
        import torchvision.transforms.v2  # slow to import: here once, and not in each worker  # noqa: F401

        self.files, self.target = files, target

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Sequence[int]) -> Tensor | Exception:
        try:
            return torch.stack([self._decode(self.files[index]) for index in indices])
        except (UserError, OSError) as error:
            return error

    def _decode(self, file: Path) -> Tensor:
        return decode(file, self.target)


class _named:
    """Turn whatever a decoder raises into a UserError that names the file; that of a failing disk stays an OSError."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and is_failing(error):
            raise OSError(error.errno, error.strerror, str(self.file)) from None
        if isinstance(error, Exception):  # of many kinds, by format and damage
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = "it is no image" if "cannot identify" in text else getattr(error, "strerror", None) or text
            raise UserError(f"cannot read the image {self.file}: {reason}") from None


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The image of a file, not yet decoded; raises UserError for one whose pixels could be read in several ways."""
    from PIL import Image

    if os.path.getsize(file) == 0:
        raise UserError("it is no image, but an empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half as many as are refused
        try:
            opened = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
            raise UserError(f"it has more than {most} million pixels, the most that is decoded") from None
    with opened:
        image: Any = opened
        if image.format in ("PNG", "WEBP", "TIFF") and getattr(image, "n_frames", 1) > 1:
            kind = "a file of {} pages" if image.format == "TIFF" else "an animation of {} frames"
            raise UserError(f"it is {kind.format(image.n_frames)}; keep one of them")
        if image.mode in _DEEP or ";16" in image.mode or any(";16" in str(part) for part in image.tile):
            raise UserError("it has 16 bits a value; convert it to 8")
        yield image


def _pixels(file: Path, channels: int) -> Tensor:
    """All pixels of an image, (channels, height, width); what is transparent lies on white."""
    from PIL import Image

    with _opened(file) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def fit_pixels(pixels: Tensor, target: Target) -> Tensor:
    """An image (channels, height, width) uint8 as `target` asks for it."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    mode = InterpolationMode("nearest-exact" if target.interpolation == "nearest" else target.interpolation)
    height, width = pixels.shape[1:]
    if height == width == target.kept:
        before = (target.side - height) // 2
        after = target.side - height - before
        if not before + after:
            return pixels.contiguous()
        padded = F.pad(pixels[None].float(), (before, after, before, after), mode="replicate")
        return padded[0].to(torch.uint8)
    if not target.squash and max(height, width) > _LONGEST * min(height, width):
        limit = _LONGEST * min(height, width)
        pixels = functional.center_crop(pixels, [min(height, limit), min(width, limit)])
    pixels = functional.resize(pixels, [target.shorter] * (2 if target.squash else 1), mode, antialias=True)
    return functional.center_crop(pixels, [target.side, target.side]).contiguous()
