"""Two networks, frozen and cut at every layer at which stitches between them are to be."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from src.axes import doubts, find_outputs, layouts_of
from src.config import mixed_precision
from src.cut import head, heads, tail
from src.frozen import freeze
from src.stitching.geometry import Geometry
from src.stitching.layer import StitchLayer
from src.stitching.network import Pair, pair_geometry
from src.stitching.options import check_sizes
from src.stitching.spec import StitchSpec
from src.stitching.targets import TARGETS

LOGITS = ""  # the whole network, as a layer
Outputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all stitches of a batch need: outputs of layers of both networks by name."""

    front: Outputs
    end: Outputs


class Cuts:
    """What the stitches `specs` between two networks need of them; an image passes each network once for all.

    `sample` is a batch of images that tells the shapes, on the device of the networks; `layouts` are those asked for,
    of the front and of the end network. Raises ValueError, before any work, for layers that do not exist or cannot be
    stitched, and for inits and ranks that do not suit their sizes.
    """

    def __init__(
        self,
        front: nn.Module,
        end: nn.Module,
        specs: Sequence[StitchSpec],
        sample: Tensor,
        *,
        layouts: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.specs = list(specs)
        self.device = sample.device
        self._networks = {"front": front, "end": end}
        self._heads: dict[tuple[str, tuple[str, ...]], nn.Module] = {}
        self._tails: dict[str, nn.Module] = {}
        given = zip(("front", "end"), (self.front_layers, self.end_layers), layouts, strict=True)
        found = {role: find_outputs(self._networks[role], layers, sample, asked) for role, layers, asked in given}
        self._layouts = {role: layouts_of(outputs) for role, outputs in found.items()}
        told = [line for role, outputs in found.items() for line in doubts(self._networks[role], outputs)]
        self.notes = list(dict.fromkeys(told))
        self.geometries: dict[tuple[str, str, bool, bool], Geometry] = {}
        for spec in self.specs:
            if spec.cut not in self.geometries:
                sides = found["front"][spec.front_layer], found["end"][spec.end_layer]
                self.geometries[spec.cut] = pair_geometry(*sides, flatten=spec.flatten, resize=spec.resize)
            check_sizes(asdict(spec), self.geometries[spec.cut])
        for layer in self.end_layers:  # a tail that cannot be cut is refused now, too
            self.end_tail(layer)

    @property
    def front_layers(self) -> list[str]:
        return list(dict.fromkeys(spec.front_layer for spec in self.specs))

    @property
    def end_layers(self) -> list[str]:
        return list(dict.fromkeys(spec.end_layer for spec in self.specs))

    def geometry(self, spec: StitchSpec) -> Geometry:
        return self.geometries[spec.cut]

    def outputs(self, role: str, layers: Sequence[str], images: Tensor) -> Outputs:
        """The outputs of layers of the `front` or the `end` network by their names, from one pass; "" is its logits."""
        key = role, tuple(dict.fromkeys(layers))
        if not key[1]:
            return {}
        if key not in self._heads:
            self._heads[key] = freeze(heads(self._networks[role], key[1], self._layouts[role])).to(images.device)
        return dict(zip(key[1], self._heads[key](images), strict=True))

    @torch.no_grad()
    def share(self, specs: Sequence[StitchSpec], images: Tensor) -> Shared:
        """What the training of these stitches needs of a batch, in the precision that they train in."""
        with mixed_precision(images.device, enabled=specs[0].amp):
            taught_by = {role for spec in specs for role in TARGETS[spec.target_type].teachers}
            front = [spec.front_layer for spec in specs] + [LOGITS] * ("front" in taught_by)
            end = [spec.end_layer for spec in specs if spec.cka_reg] + [LOGITS] * ("end" in taught_by)
            return Shared(self.outputs("front", front, images), self.outputs("end", end, images))

    def end_tail(self, layer: str) -> nn.Module:
        """(output of a layer of the end network, images) -> its logits."""
        if layer not in self._tails:
            self._tails[layer] = freeze(tail(self._networks["end"], layer, layouts=self._layouts["end"]))
        return self._tails[layer]

    def logits(self, spec: StitchSpec, stitch: StitchLayer, front: Outputs, images: Tensor) -> Tensor:
        """What a stitched network says, given the front network's outputs."""
        return self.end_tail(spec.end_layer)(stitch(front[spec.front_layer]), images)

    def pair(self, spec: StitchSpec) -> Pair:
        """The two networks cut at the layers of one stitch alone."""
        front_head = freeze(head(self._networks["front"], spec.front_layer, self._layouts["front"]))
        end_head = freeze(head(self._networks["end"], spec.end_layer, self._layouts["end"]))
        return Pair(front_head, end_head, self.end_tail(spec.end_layer), self.geometry(spec))
