"""Random changes of training images, whole batches at a time; every image draws its own.

Each function takes images (n, channels, height, width) in 0..255, uint8, and a CPU generator: the same seed
gives the same images on every device.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def flip_and_crop(images: Tensor, generator: torch.Generator, *, padding: int = 4, mirror: bool = True) -> Tensor:
    """Mirror left to right with probability 1/2, then crop at random from `padding` pixels of zeros all around.

    Without `mirror` crop only, since what is seen in a mirror may be something else (digits).
    """
    drawn = draw_crops(images.shape, generator, padding=padding, mirror=mirror)
    # in one copy that a GPU need not wait for
    return cropped(images, drawn.to(images.device, non_blocking=True), padding=padding)


def draw_crops(shape: Sequence[int], generator: torch.Generator, *, padding: int = 4, mirror: bool = True) -> Tensor:
    """Of each image of such a batch where its crop begins, from above and from the left, and whether it is mirrored.

    (n, 3) whole numbers.
    """
    n = shape[0]
    top = torch.randint(0, 2 * padding + 1, (n, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (n, 1), generator=generator)
    mirrored = torch.rand((n, 1), generator=generator) < (0.5 if mirror else 0)
    return torch.cat([top, left, mirrored.to(top)], 1)


def cropped(images: Tensor, drawn: Tensor, *, padding: int = 4) -> Tensor:
    """The images, changed as `draw_crops` says."""
    n, _, height, width = images.shape
    top, left, mirrored = drawn[:, :1], drawn[:, 1:2], drawn[:, 2:].bool()
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    pixels = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(n, 1, -1)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels.expand(-1, padded.shape[1], -1)).view(images.shape)


def affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate up to 5 degrees, scale by 0.9 to 1.1, shear up to 5 degrees; edges repeat outwards; float result."""
    return moved(images, draw_affine(images.shape, generator).to(images.device, non_blocking=True))


def draw_affine(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """The map of each image of such a batch, from places in the result to places in it, (n, 2, 3)."""
    n = shape[0]
    angle, shear = (_uniform(n, -5.0, 5.0, generator) * math.pi / 180 for _ in range(2))
    scale = _uniform(n, 0.9, 1.1, generator)
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    # output pixel -> input pixel, so the inverse of the scale; the shear acts before the rotation
    matrix = torch.stack([cos, cos * tan - sin, sin, sin * tan + cos], 1).view(n, 2, 2) / scale.view(n, 1, 1)
    return torch.cat([matrix, torch.zeros(n, 2, 1)], 2)


class DrawnAhead(NamedTuple):
    """A change in two: draw(shape, generator) on the processor, and what it does to images, apply(images, drawn)."""

    draw: Callable[[Sequence[int], torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


def drawn_ahead(augment: Callable[..., Tensor], shape: Sequence[int]) -> DrawnAhead | None:
    """An augmentation of images of a shape in two; None for one that is not known so."""
    if augment is of_known_size:
        augment = _of_known_size(shape[1], shape[-1])
    plain = augment.func if isinstance(augment, partial) else augment
    if plain not in _IN_TWO:
        return None
    options = augment.keywords if isinstance(augment, partial) else {}
    return _IN_TWO[plain](**options)


def rotate_and_crop(images: Tensor, generator: torch.Generator, *, size: int = 224) -> Tensor:
    """Rotate up to 10 degrees around the centre and crop `size` x `size` at random; float result."""
    n, _, height, width = images.shape
    angle = _uniform(n, -10.0, 10.0, generator) * math.pi / 180
    top = torch.randint(0, height - size + 1, (n,), generator=generator)
    left = torch.randint(0, width - size + 1, (n,), generator=generator)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    # the crop's centre, in the coordinates -1..1 of the rotated image
    centre = torch.stack([(2 * left + size) / width - 1, (2 * top + size) / height - 1], 1)
    shrink = torch.tensor([size / width, size / height])
    offset = (rotation @ centre[:, :, None]).squeeze(2)
    return _sample(images, rotation * shrink, offset, size=size)


def of_files(images: Tensor, generator: torch.Generator, *, size: int) -> Tensor:
    """What is done to images of a folder: as to the known sets where they are of that size already, else as to photos.

    Colour images of size x size are mirrored and cropped from an eighth of padding, grey ones turned, scaled and
    sheared; of larger ones a random part is taken and mirrored.
    """
    if images.shape[-1] != size:
        return resized_crop(images, generator, size=size)
    return of_known_size(images, generator)


def of_known_size(images: Tensor, generator: torch.Generator) -> Tensor:
    """`affine` for grey images, `flip_and_crop` from an eighth of padding for others; also for pairs side by side."""
    return _of_known_size(images.shape[1], images.shape[-1])(images, generator)


def _of_known_size(channels: int, size: int) -> Callable[..., Tensor]:
    return affine if channels in (1, 2) else partial(flip_and_crop, padding=max(1, size // 8))


def resized_crop(images: Tensor, generator: torch.Generator, *, size: int) -> Tensor:
    """Bring a random part of each image, 25% to 100% of it and 3:4 to 4:3 in shape, to size x size; float result.

    Half of them are mirrored.
    """
    n = len(images)
    area, ratio = _uniform(n, 0.25, 1.0, generator), _uniform(n, math.log(3 / 4), math.log(4 / 3), generator).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # width and height, of 1
    centre = (torch.rand((n, 2), generator=generator) * 2 - 1) * (1 - sides)
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < 0.5).to(sides)
    matrix = torch.diag_embed(sides)
    matrix[:, 0, 0] *= mirror
    return _sample(images, matrix, centre, size=size)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _sample(images: Tensor, matrix: Tensor, offset: Tensor, *, size: int | None = None) -> Tensor:
    theta = torch.cat([matrix, offset[:, :, None]], 2).to(images.device, non_blocking=True)
    return moved(images, theta, size=size)


def moved(images: Tensor, theta: Tensor, *, size: int | None = None) -> Tensor:
    """The images at the places that maps (n, 2, 3) say; edges repeat outwards; float result."""
    n, channels, height, width = images.shape
    grid = F.affine_grid(theta, [n, channels, size or height, size or width], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def _crop_in_two(*, padding: int = 4, mirror: bool = True) -> DrawnAhead:
    return DrawnAhead(partial(draw_crops, padding=padding, mirror=mirror), partial(cropped, padding=padding))


# of an augmentation that can be drawn ahead its options -> both halves
_IN_TWO: dict[Callable[..., Tensor], Callable[..., DrawnAhead]] = {
    flip_and_crop: _crop_in_two,
    affine: lambda: DrawnAhead(draw_affine, moved),
}
