"""How near stitched networks come to the end network where it decides: at what its last linear layer reads."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from src.stitching.cut_networks import LOGITS, CutNetworks
from src.stitching.layer import Stitch
from src.stitching.moments import Spread
from src.stitching.stacked_maps import MapChunk
from src.stitching.stitch_spec import StitchSpec


class FinalFeatures:
    """How far stitched networks are from the end network where its last linear layer reads, from the scoring pass."""

    def __init__(self, cuts: CutNetworks) -> None:
        self.cuts = cuts
        self.layers: dict[str, str] = {}
        self._spreads: dict[str, Spread] = {}
        self._errors: dict[str, list[Tensor]] = {}

    def layers_for(self, end_layers: Mapping[str, str]) -> list[str]:
        """Note by the names of maps where they end, and say which layers of the end network are to be there."""
        self.layers = {name: final for name, layer in end_layers.items() if (final := self.cuts.final(layer))}
        self._spreads = {final: Spread() for final in self.layers.values()}
        return list(self._spreads)

    def add_own(self, outputs: Mapping[str, Tensor]) -> None:
        for layer, spread in self._spreads.items():
            spread.add(outputs[layer])

    def logits(
        self, name: str, sewn: tuple[StitchSpec, Stitch], stitched: Tensor, images: Tensor, own: Mapping[str, Tensor]
    ) -> Tensor:
        """The logits of a stitched network, and its error at the final features on the way, where it has these."""
        (spec, stitch), layer = sewn, sewn[0].end_layer
        if name not in self.layers:
            return self.cuts.forward_from(spec.end_layer, stitched, images, stitch)
        final = self.layers[name]
        features, logits = self.cuts.forward_through(layer, (final, LOGITS), stitched, images, stitch)
        squares = (features - own[final]).flatten(1).square().mean(1).sum()
        self._errors.setdefault(name, []).append(squares)
        return logits

    def stacked_logits(
        self, chunk: MapChunk, outputs: Mapping[str, Mapping[str, Tensor]], images: Tensor
    ) -> dict[str, Tensor]:
        """The same of stitches that are scored together, by name."""
        layer = chunk.end_layer
        if chunk.names[0] not in self.layers:
            return chunk.logits(self.cuts, dict(outputs), images)  # pyright: ignore[reportArgumentType]
        final = self.layers[chunk.names[0]]
        seen = chunk.seen(self.cuts, images, (final,))
        stitched = chunk.stitched(dict(outputs))  # pyright: ignore[reportArgumentType]
        features, logits = self.cuts.forward_through(layer, (final, LOGITS), stitched, seen)
        features = features.unflatten(0, (-1, len(images)))
        squares = (features - outputs["end"][final]).flatten(2).square().mean(2).sum(1)
        for name, square in zip(chunk.names, squares.unbind(), strict=False):
            self._errors.setdefault(name, []).append(square)
        return chunk.of_rows(logits)

    def error(self, name: str, images: int) -> float | None:
        """Mean squared error over mean variance; None where there are no final features."""
        if name not in self._errors:
            return None
        variance = self._spreads[self.layers[name]].variance
        error = math.fsum(torch.stack(self._errors[name]).tolist()) / images
        return error / variance if variance else float("nan")
