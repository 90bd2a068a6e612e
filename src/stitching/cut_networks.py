"""Networks, frozen and cut at every layer at which stitches between them are to be."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from src.core.errors import UserError
from src.core.precision import mixed_precision
from src.cutting.channel_axis import Output, find_outputs, layout_warnings, layouts_of, require_fit
from src.cutting.freeze import cast_once, freeze
from src.cutting.layout import Shape
from src.cutting.parts import Layouts, dependent_layers, final_input, follows, heads, later_layers, tail, tails
from src.cutting.selection import choose_layers
from src.cutting.structure import split_layer
from src.stitching.end_norms import EndNorms
from src.stitching.exclusions import check_sizes
from src.stitching.geometry import Geometry
from src.stitching.layer import Stitch
from src.stitching.network import pair_geometry
from src.stitching.stitch_spec import Cut, StitchSpec
from src.stitching.targets import AT_FINAL, AT_LATER, AT_STITCH, TARGETS

LOGITS = ""  # the whole network, as a layer
Outputs = dict[str, Tensor]
Shared = dict[str, Outputs]  # what all stitches of a batch need: outputs of layers by name, of each network by its own


class Made(Protocol):
    """What stands for a front network without being one: activations are made of the images in another way."""

    def outputs(self, shapes: Mapping[str, Shape], images: Tensor) -> Outputs:
        """Activations in canonical form of layers of these shapes, by name."""
        ...


class CutNetworks:
    """What the stitches `specs` between two networks need of them; an image passes each network once for all.

    `sample` is a batch of images that tells the shapes, on the device of the networks. `others` are networks beside the
    two, of the front's architecture, by the `source` of the specs that take their fronts; something `Made` among them
    has the shapes of the front's layers. `layouts` are those asked for, of the front and of the end network. Raises
    UserError, before any work, for layers that do not exist or cannot
    be stitched, and for inits and ranks that do not suit their sizes.
    """

    def __init__(
        self,
        front: nn.Module,
        end: nn.Module,
        specs: Sequence[StitchSpec],
        sample: Tensor,
        *,
        others: Mapping[str, nn.Module | Made] | None = None,
        layouts: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.specs = list(specs)
        self.sample = sample
        others = others or {}
        self.made = {name: other for name, other in others.items() if not isinstance(other, nn.Module)}
        self.networks = {"front": front, "end": end}
        self.networks |= {name: other for name, other in others.items() if isinstance(other, nn.Module)}
        self._heads: dict[tuple[str, tuple[str, ...]], nn.Module] = {}
        self._tails: dict[tuple[str, ...], nn.Module] = {}
        self._open_tails: dict[tuple[str, ...], nn.Module] = {}
        self._cast: dict[nn.Module, nn.Module] = {}
        self._later: dict[tuple[str, ...], list[str]] = {}
        self._final: dict[str, str | None] = {}
        self.asked = layouts
        self.notes: list[str] = []
        self._found: dict[str, dict[str, Output]] = {source: {} for source in ("front", "end", *others)}
        self._geometries: dict[Cut, Geometry] = {}
        for source, layers in layers_of(self.specs).items():
            self.record_shapes(source, layers)
        self.record_shapes("end", list(dict.fromkeys(spec.end_layer for spec in self.specs)))
        for source, asked in zip(("front", "end"), layouts, strict=True):
            require_fit(asked, self._found[source])
        for spec in self.specs:
            check_sizes(asdict(spec), self.geometry(spec.cut))
            self.end_tail(spec.end_layer)  # a tail that cannot be cut is refused now, too
            if spec.train_end_norm:
                self.end_norms(spec.end_layer)
            for stage in spec.stages:
                self.matched(spec, stage.target)

    @property
    def device(self) -> torch.device:
        return self.sample.device

    def record_shapes(self, source: str, layers: Sequence[str]) -> None:
        """Learn the shapes and layouts of layers from one pass."""
        if source in self.made:
            self.record_shapes("front", [layer for layer in layers if layer not in self._found["front"]])
            self._found[source] |= {layer: self._found["front"][layer] for layer in layers}
            return
        if not layers:
            return
        network, asked = self.networks[source], self.asked[source == "end"]
        found = find_outputs(network, layers, self.sample, asked)
        self.notes = list(dict.fromkeys([*self.notes, *layout_warnings(network, found)]))
        self._found[source] |= found

    def _layouts(self, source: str) -> Layouts:
        return layouts_of(self._found[source])

    def geometry(self, cut: Cut) -> Geometry:
        if cut not in self._geometries:
            for source, layer in ((cut.source, cut.front_layer), ("end", cut.end_layer)):
                if layer not in self._found[source]:
                    self.record_shapes(source, [layer])
            front, end = self._found[cut.source][cut.front_layer], self._found["end"][cut.end_layer]
            self._geometries[cut] = pair_geometry(front, end, flatten=cut.flatten, resize=cut.resize)
        return self._geometries[cut]

    def outputs(self, source: str, layers: Sequence[str], images: Tensor) -> Outputs:
        """The outputs of layers of one of the networks by their names, from one pass; "" is its logits."""
        key = source, tuple(dict.fromkeys(layers))
        if not key[1]:
            return {}
        if source in self.made:
            shapes = {layer: self._found[source][layer].canonical for layer in key[1]}
            return self.made[source].outputs(shapes, images)
        if key not in self._heads:
            with torch.inference_mode(False), torch.no_grad():  # others may want gradients of it later
                part = freeze(heads(self.networks[source], key[1], self._layouts(source)))
            self._heads[key] = part.to(images.device)
        return dict(zip(key[1], self._run(self._heads[key], images), strict=True))

    def _run(self, part: nn.Module, *inputs: Tensor) -> Any:
        """What a frozen part gives, its parameters cast beforehand where it multiplies in bfloat16."""
        if torch.is_autocast_enabled(inputs[0].device.type):
            if part not in self._cast:
                with torch.inference_mode(False), torch.no_grad():
                    self._cast[part] = cast_once(part, *(value.clone() for value in inputs))
            part = self._cast[part]
        return part(*inputs)

    def front_activations(
        self, specs: Sequence[StitchSpec], images: Tensor, more: Mapping[str, Sequence[str]] | None = None
    ) -> Shared:
        """The outputs that stitches start from, and `more` layers by the network that they are of."""
        wanted = layers_of(specs)
        for source, layers in (more or {}).items():
            wanted.setdefault(source, []).extend(layers)
        return {source: self.outputs(source, layers, images) for source, layers in wanted.items()}

    @torch.no_grad()
    def share(self, specs: Sequence[StitchSpec], images: Tensor, *, stage: int = 0) -> Shared:
        """What a stage of the training of these stitches needs of a batch, in the precision that they train in."""
        targets = {spec: spec.stages[stage].target for spec in specs}
        more = {role: [LOGITS] for target in targets.values() for role in TARGETS[target].teachers}
        compared = [spec.end_layer for spec in specs if spec.cka_reg]
        compared += [layer for spec, target in targets.items() for layer in self.matched(spec, target)]
        more["end"] = compared + more.get("end", [])
        with mixed_precision(images.device, enabled=specs[0].amp):
            return self.front_activations(specs, images, more)

    def end_tail(self, layer: str) -> nn.Module:
        """(output of a layer of the end network, images) -> its logits."""
        if (layer,) not in self._tails:
            self._tails[layer,] = freeze(tail(self.networks["end"], layer, layouts=self._layouts("end")))
        return self._tails[layer,]

    def reads_images(self, layer: str, untils: tuple[str, ...] = ()) -> bool:
        """Whether the part behind a layer looks at the images, around its activation."""
        return _reads_images(self._through(layer, (*untils, LOGITS)) if untils else self.end_tail(layer))

    def _through(self, layer: str, untils: tuple[str, ...]) -> nn.Module:
        """(output of a layer of the end network, images) -> outputs of later ones, from one pass."""
        key = layer, *untils
        if key not in self._tails:
            self._tails[key] = freeze(tails(self.networks["end"], layer, untils, self._layouts("end")))
        return self._tails[key]

    def _behind(self, stitch: Stitch | None, layer: str, untils: tuple[str, ...]) -> nn.Module:
        """The same part, with the statistics of a stitch where it has its own."""
        if stitch is None or stitch.norms is None:
            return self._through(layer, untils)
        key = layer, *untils
        if key not in self._open_tails:
            with torch.inference_mode(False), torch.no_grad():
                self._open_tails[key] = tails(self.networks["end"], layer, untils, self._layouts("end"))
        with torch.inference_mode(False):
            return stitch.norms.linked(key, self._open_tails[key])

    def end_norms(self, layer: str) -> EndNorms:
        """The statistics of the BatchNorms that run behind a layer; raises UserError where there are none."""
        found = EndNorms.of(tails(self.networks["end"], layer, [LOGITS], self._layouts("end")))
        if not found.names:
            end = type(self.networks["end"]).__name__
            raise UserError(f"--train-end-norm: {end} has no BatchNorm behind {layer or 'its output'}")
        return found.to(self.device)

    def later(self, layer: str) -> list[str]:
        """A layer of the end network and those that follow from it and change anything."""
        if (layer,) not in self._later:
            end = self.networks["end"]
            names = [name for name in later_layers(end, layer, self.sample) if not _changes_nothing(end, name)]
            self._later[layer,] = [layer, *self._record_known(names)]
        return self._later[layer,]

    def _record_known(self, layers: Sequence[str]) -> list[str]:
        """Note the layouts of those of some layers of the end network whose outputs have one, and name them."""
        outputs = find_outputs(self.networks["end"], layers, self.sample, self.asked[1])
        known = {name: found for name, found in outputs.items() if found.layout}
        self._found["end"] |= {name: found for name, found in known.items() if name not in self._found["end"]}
        return list(known)

    def downstream(self, layer: str, stitch: Stitch | None = None) -> tuple[list[str], nn.Module]:
        """A layer of the end network, those that follow from it, and (output of it, images) -> outputs of all."""
        names = self.later(layer)
        return names, self._behind(stitch, layer, (*names[1:], LOGITS))

    def matched(self, spec: StitchSpec, target: str) -> list[str]:
        """The layers of the end network at which a target compares the stitched network with the end network.

        Raises UserError where there is none.
        """
        at = TARGETS[target].at
        if at == AT_LATER:
            return (
                self._chosen_later(spec.end_layer, spec.match_layers)
                if spec.match_layers
                else self.later(spec.end_layer)
            )
        if at == AT_FINAL:
            if (final := self.final(spec.end_layer)) is None:
                end = type(self.networks["end"]).__name__
                raise UserError(
                    f"--target-type {target}: {end} has no single last linear layer behind "
                    f"{spec.end_layer or 'its output'}, so no final features to match; match_later needs none"
                )
            return [final]
        return [spec.end_layer] if at == AT_STITCH else []

    def final(self, layer: str) -> str | None:
        """What the end network's last linear layer is given, if it depends on a layer's output; None: no such layer."""
        if layer not in self._final:
            end = self.networks["end"]
            found = final_input(end, self.sample)
            if found is not None and not (follows(end, layer, found, self.sample) and self._record_known([found])):
                found = None
            self._final[layer] = found
        return self._final[layer]

    def _chosen_later(self, layer: str, text: str) -> list[str]:
        """Those that a text names of the layers at and behind one; raises UserError where there is none."""
        if (layer, text) not in self._later:
            end = self.networks["end"]
            named = choose_layers(end, text, self.sample)
            behind = [layer, *dependent_layers(end, layer, self.sample)]
            known = self._record_known([name for name in named if name in behind])
            if not known:
                raise UserError(f"--match-layers {text} names no layer at or behind {layer or 'the output'}")
            self._later[layer, text] = known
        return self._later[layer, text]

    def forward_through(
        self, layer: str, untils: tuple[str, ...], activation: Tensor, images: Tensor, stitch: Stitch | None = None
    ) -> tuple[Tensor, ...]:
        """Outputs of layers behind an activation of the end network, which may be one for all images.

        `stitch`: whose statistics the end network has there, where it has its own.
        """
        if len(activation) != len(images):
            activation = activation.expand(len(images), *activation.shape[1:]).contiguous()
        part = self._behind(stitch, layer, untils)
        if stitch is not None and stitch.norms is not None:  # its own, which is no frozen one
            return part(activation, images)
        return self._run(part, activation, images)

    def forward_from(self, layer: str, activation: Tensor, images: Tensor, stitch: Stitch | None = None) -> Tensor:
        """The end network's logits from an activation of its layer on, likewise."""
        if stitch is not None and stitch.norms is not None:
            return self.forward_through(layer, (LOGITS,), activation, images, stitch)[0]
        part = self.end_tail(layer)
        if len(activation) == len(images):
            return self._run(part, activation, images)
        if _reads_images(part):
            return self._run(part, activation.expand(len(images), *activation.shape[1:]).contiguous(), images)
        return self._run(part, activation, images[:1]).expand(len(images), -1)

    def logits(self, spec: StitchSpec, stitch: Stitch, front_activations: Shared, images: Tensor) -> Tensor:
        """What a stitched network says, given the outputs of `fronts`."""
        return self.forward_from(spec.end_layer, self.stitched(spec, stitch, front_activations), images, stitch)

    @staticmethod
    def stitched(spec: StitchSpec, stitch: Stitch, front_activations: Shared) -> Tensor:
        """What a stitch makes of the outputs of `fronts`; a constant one gives one activation for all images."""
        return stitch() if spec.constant else stitch(front_activations[spec.source][spec.front_layer])


def _changes_nothing(network: nn.Module, layer: str) -> bool:
    """Whether a layer hands on what it is given, but for its shape."""
    return isinstance(network.get_submodule(split_layer(layer)[0]), nn.Identity | nn.Flatten | _DropoutNd)


def layers_of(specs: Sequence[StitchSpec]) -> dict[str, list[str]]:
    """The layers at which stitches start, by the network that they are of."""
    found: dict[str, list[str]] = {}
    for spec in specs:
        if not spec.constant and spec.front_layer not in found.setdefault(spec.source, []):
            found[spec.source].append(spec.front_layer)
    return found


def _reads_images(part: nn.Module) -> bool:
    """Whether a tail looks at the images, around the activation; one that runs the whole network does."""
    if not isinstance(part, fx.GraphModule):
        return True
    placeholders = [node for node in part.graph.nodes if node.op == "placeholder"]
    return any(node.users for node in placeholders[1:])
