"""What a library does to images, run on a few of them: what is not followed here to the last level is refused."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError, first_line
from src.dataset.decode import Target, fit_pixels
from src.dataset.preprocessing import INTERPOLATIONS, RESIZES, Preprocessing

Prepare = Callable[[np.ndarray], Any]
LEVELS = 2.5  # of 255, by which pixels may differ: bicubic kernels round twice to whole levels
SAME = 2e-5  # relative: float32
ASPECTS = {  # what a user may say instead
    "colour": ("mean", "std"),
    "size": ("size", "resize"),
    "shape": ("resize",),
    "kernel": ("interpolation",),
    "anything": ("size", "mean", "std", "resize"),
}


@dataclass(frozen=True, slots=True)
class OwnProcessor:
    """A library's own preparation of images.

    `prepare` makes (channels, n, n) of an image (height, width, channels) uint8. `shorter` are sizes of the shorter
    side that may be meant, in sizes of the network. `keys` are those of the library's record that each of ASPECTS
    depends on; `without` prepares with one of them switched off.
    """

    prepare: Prepare
    shorter: tuple[float, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, Prepare] = field(default_factory=dict)


class _Differs(Exception):
    """That a library's images are not ours; says in which of ASPECTS."""


def follow(own: OwnProcessor, proposed: Preprocessing, *, name: str, asked: Collection[str] = ()) -> Preprocessing:
    """The preprocessing that gives what a library gives, found by running it; `proposed` where that is right.

    Numbers are taken from flat images, size, shape and kernel by trying. `asked` are what the user says instead, and
    are not looked for. Raises UserError, with the keys of the library's record, for what no Preprocessing does.
    """
    if set(ASPECTS["anything"]) <= set(asked):
        return proposed
    try:
        return _followed(own.prepare, own.shorter, proposed, asked)
    except _Differs as error:
        aspect = str(error)
    culprits = [key for key, prepare in own.without.items() if _fits(prepare, own.shorter, proposed, asked)]
    keys = ", ".join(culprits[:1]) or own.keys.get(aspect, aspect)
    remedy = "".join(f"?{option}=..." for option in ASPECTS["shape" if culprits and aspect == "kernel" else aspect])
    raise UserError(
        f"{name}: its own processor gives other images than can be given here ({keys}); say what it is to be shown: "
        f"{remedy}"
    )


def _fits(*arguments: Any) -> bool:
    try:
        return bool(_followed(*arguments))
    except _Differs:
        return False


def _followed(
    prepare: Prepare, shorter: tuple[float, ...], proposed: Preprocessing, asked: Collection[str]
) -> Preprocessing:
    preprocessing = _sized_and_coloured(prepare, proposed, asked)
    shape = preprocessing.size, preprocessing.size
    for longer in (2, 1):  # a processor that keeps the shape of what it is given is followed where this is square
        images = [_pattern(preprocessing, height, longer) for height in (1.3, 0.7)]
        pairs = [(image, _run(prepare, image)) for image in images]
        if all(theirs.shape[1:] == shape for _, theirs in pairs):
            break
    for candidate in _candidates(preprocessing, shorter):
        if all(_levels(candidate, *pair) <= LEVELS for pair in pairs):
            return candidate
    if {"resize", "interpolation"} & set(asked):
        return preprocessing
    raise _Differs("kernel" if _same_shape(prepare, preprocessing, shorter) else "shape")


def _sized_and_coloured(prepare: Prepare, proposed: Preprocessing, asked: Collection[str]) -> Preprocessing:
    """The size of what comes out, and the affine map of colours, which flat images show."""
    channels = proposed.channels
    flats = [(0,) * channels, *np.eye(channels, dtype=int) * 255]
    mixed = (200, 30, 90)[:channels]
    outputs = [_run(prepare, _flat(colour, proposed.size)) for colour in (*flats, mixed)]
    shape = outputs[0].shape
    if len(shape) != 3 or shape[0] != channels:
        raise _Differs("anything")
    if "size" not in asked and (shape[1] != shape[2] or any(map(_uneven, outputs))):
        raise _Differs("size")
    if {"mean", "std"} <= set(asked):
        return replace(proposed, size=shape[1])
    black, *pure, mix = (one[:, shape[1] // 2, shape[2] // 2].double() for one in outputs)
    gains = torch.stack([one - black for one in pure], 1)  # what comes out of each colour
    order = next((order for order, kept in _orders(gains) if _same(gains, kept)), None)
    if order is None or not _same(black + gains @ torch.tensor(mixed, dtype=torch.float64) / 255, mix):
        raise _Differs("colour")
    gain = gains.abs().amax(1)
    if not bool((gain > 0).all()) or not bool((gains.sum(1) > 0).all()):
        raise _Differs("colour")
    numbers = {"mean": -black / gain, "std": 1 / gain}
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (proposed.mean, proposed.std))
    right = _same(-mean / std, black) and _same(1 / std, gain)
    measured = {key: tuple(float(f"{value:.6g}") + 0.0 for value in values) for key, values in numbers.items()}
    return replace(proposed, size=shape[1], order=order, **({} if right else measured))


def _orders(gains: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "rgb", torch.diag(gains.diagonal())
    if len(gains) == 3:
        yield "bgr", torch.diag(gains.flip(1).diagonal()).flip(1)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= SAME * other.abs().clamp(min=1)).all())


def _uneven(flat: Tensor) -> bool:
    """Whether a flat image came out with a frame."""
    return float((flat - flat[:, :1, :1]).abs().max()) > SAME * float(flat.abs().max())


def _candidates(preprocessing: Preprocessing, shorter: tuple[float, ...]) -> Iterator[Preprocessing]:
    """What is proposed, and then all else that can be done."""
    yield preprocessing
    for resize, kernel in itertools.product(RESIZES, INTERPOLATIONS):
        for share in dict.fromkeys((*shorter, 1.0)):
            if share >= 1:
                yield replace(preprocessing, resize=resize, interpolation=kernel, shorter=share)


def _same_shape(prepare: Prepare, preprocessing: Preprocessing, shorter: tuple[float, ...]) -> bool:
    """Whether a smooth image, which hardly depends on the kernel, comes out right in some shape."""
    height = round(1.3 * preprocessing.size)
    width = 2 * height
    rows, columns = np.meshgrid(np.linspace(40, 200, height), np.linspace(40, 200, width), indexing="ij")
    image = np.stack([rows, columns, (rows + columns) / 2], 2)[..., : preprocessing.channels].round().astype(np.uint8)
    theirs = _run(prepare, image)
    return any(_levels(one, image, theirs) <= LEVELS for one in _candidates(preprocessing, shorter))


def _levels(candidate: Preprocessing, image: np.ndarray, theirs: Tensor) -> float:
    """By how many of 255 levels two preparations of an image differ at most; infinitely for other shapes."""
    size, shorter = candidate.size, round(candidate.size * candidate.shorter)
    target = Target(candidate.channels, shorter, size, None, candidate.resize == "squash", candidate.interpolation)
    ours = candidate(fit_pixels(torch.from_numpy(image).permute(2, 0, 1), target)[None])[0]
    if ours.shape != theirs.shape:
        return float("inf")
    levels = torch.tensor(candidate.std).view(-1, 1, 1) * 255
    inner = theirs[:, 1:-1, 1:-1]
    differences = []
    for down, right in itertools.product((1, 0, 2), repeat=2):  # half a pixel of a crop is rounded up or down
        moved = ours[:, down : down + inner.shape[1], right : right + inner.shape[2]]
        differences.append(float(((moved - inner) * levels).abs().amax()))
        if differences[-1] <= LEVELS:
            break
    return min(differences)


def _pattern(found: Preprocessing, height: float, longer: int) -> np.ndarray:
    """Noise of half the contrast, of which no kernel overshoots; `height` in sizes, and `longer` times as wide."""
    rows = max(4, round(height * found.size))
    return np.random.default_rng(rows).integers(64, 192, (rows, longer * rows, found.channels), dtype=np.uint8)


def as_picture(image: np.ndarray) -> Any:
    """An image (height, width, 3) uint8 as libraries are given one."""
    from PIL import Image

    return Image.fromarray(image)


def _flat(colour: Collection[int], size: int) -> np.ndarray:
    return np.full((size, size, len(colour)), tuple(colour), dtype=np.uint8)


def _run(prepare: Prepare, image: np.ndarray) -> Tensor:
    try:
        return torch.as_tensor(prepare(image)).float()
    except Exception as error:  # the library's own code, of many kinds
        raise _Differs("anything") from UserError(first_line(error))
