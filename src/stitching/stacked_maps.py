"""Affine stitches into one layer of the end network, as they are now, scored together."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.stitching.cut_networks import CutNetworks, Shared
from src.stitching.geometry import Geometry
from src.stitching.layer import ConstantStitch, Stitch, StitchLayer
from src.stitching.stacked import one_of, rows_at_once
from src.stitching.stacked_forms import as_output
from src.stitching.stitch_spec import StitchSpec

SCORED = 4  # stitches that are scored together: batches of many images keep a GPU busy with few
Sewn = tuple[StitchSpec, Stitch]


@dataclass(frozen=True, slots=True)
class MapChunk:
    """Matrices w (rows, out, in) and offsets b (rows, out) by the names of the first, the others are zero.

    sources: the networks and layers whose outputs they start from; fronts: (rows,) which of them.
    """

    names: Sequence[str]
    end_layer: str
    geometry: Geometry
    w: Tensor
    b: Tensor
    sources: Sequence[tuple[str, str]]
    fronts: Tensor

    def stitched(self, outputs: Shared) -> Tensor:
        """What they make of the outputs of fronts, the images of a row after those of the one before."""
        x = [self.geometry.front_rows(outputs[source][layer]) for source, layer in self.sources]
        made = torch.baddbmm(self.b[:, None], one_of(x, self.fronts), self.w.mT)
        return as_output(made, self.geometry)

    def seen(self, cuts: CutNetworks, images: Tensor, untils: tuple[str, ...] = ()) -> Tensor:
        """The images for what follows, of each row; one of them where nobody looks at them."""
        rows = len(self.w)
        if cuts.reads_images(self.end_layer, untils):
            return images.expand(rows, *images.shape).flatten(0, 1)
        return images[:1].expand(rows * len(images), *images.shape[1:])

    def of_rows(self, values: Tensor) -> dict[str, Tensor]:
        """Values (rows * images, ...) of the end network by the names of the stitches."""
        return dict(zip(self.names, values.unflatten(0, (len(self.w), -1)).unbind(), strict=False))

    def logits(self, cuts: CutNetworks, outputs: Shared, images: Tensor) -> dict[str, Tensor]:
        """What the stitched networks say, by name."""
        return self.of_rows(cuts.forward_from(self.end_layer, self.stitched(outputs), self.seen(cuts, images)))


@torch.no_grad()
def map_chunks(
    cuts: CutNetworks, sewn: Mapping[str, Sewn], *, images: int, most: int
) -> tuple[list[MapChunk], dict[str, Sewn]]:
    """Stitches that are scored together in batches of so many images, at most so many at once; and all the others.

    A chunk has always as many rows for a layer, so that no score depends on the company. Without any `most` all are
    others.
    """
    groups: dict[Hashable, dict[str, Sewn]] = {}
    others = {}
    for name, (spec, stitch) in sewn.items():
        plain = isinstance(stitch, StitchLayer) and not isinstance(stitch, ConstantStitch) and stitch.norms is None
        if most and plain:
            groups.setdefault((spec.end_layer, stitch.geometry), {})[name] = spec, stitch
        else:
            others[name] = spec, stitch
    chunks = []
    for group in groups.values():
        if len(group) == 1:
            others |= group
            continue
        rows = rows_at_once(next(iter(group.values()))[1].geometry, images, most)
        names = list(group)
        chunks += [_chunk(names[i : i + rows], group, rows) for i in range(0, len(names), rows)]
    return chunks, {name: sewn[name] for name in sewn if name in others}


def _chunk(names: Sequence[str], group: Mapping[str, Sewn], rows: int) -> MapChunk:
    spec, first = group[names[0]]
    w, b = [], []
    for name in names:
        stitch = group[name][1]
        assert isinstance(stitch, StitchLayer)
        w.append(stitch.matrix().detach())
        b.append(stitch.offset(w[-1]).detach())
    empty = rows - len(names)
    w, b = (torch.stack([*own, *[torch.zeros_like(own[0])] * empty]) for own in (w, b))
    fronts = [(group[name][0].source, group[name][0].front_layer) for name in names]
    sources = list(dict.fromkeys(fronts))
    index = torch.tensor([*map(sources.index, fronts), *[0] * empty]).to(w.device)
    return MapChunk(names, spec.end_layer, first.geometry, w, b, sources, index)
