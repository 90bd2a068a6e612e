"""Networks that cannot be traced, cut by forward hooks: the whole network runs, for heads and tails alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.cutting.layout import Layout
from src.cutting.structure import in_plain_order, is_input, needs_plain_memory, several, split_layer

# (layer, what it returned) -> what it is to return instead, None for the same
Hook = Callable[[str, Any], Any]
PLAIN = Layout()


class HookedHeads(nn.Module):
    """images -> tuple of the outputs of `layers`, each of its last call, canonical where a layout says how."""

    def __init__(self, model: nn.Module, layers: Sequence[str], layouts: Mapping[str, Layout]) -> None:
        super().__init__()
        self.model = model
        self.layers = list(layers)
        self.layouts = dict(layouts)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        captured: dict[str, Tensor] = {}

        def capture(layer: str, output: Any) -> None:
            captured[layer] = tensor_of(layer, output).clone()  # a later in-place operation must not reach it

        with _hooks(self.model, self.layers, capture):
            self.model(images)  # to its end: how often a layer is called may depend on the images
        for layer in self.layers:
            if layer not in captured:
                raise UserError(f"the layer {layer!r} does not run in a forward pass")
        return tuple(self.layouts.get(layer, PLAIN).canonical(captured[layer]) for layer in self.layers)


class HookedTail(nn.Module):
    """(output of `layer`, images) -> tuple of the outputs of `untils`, or that of the only one if `single`.

    What the layer's last call returned is exchanged, in one pass for all of them.
    """

    def __init__(
        self, model: nn.Module, layer: str, untils: Sequence[str], layouts: Mapping[str, Layout], *, single: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.untils = list(untils)
        self.single = single
        self.layouts = dict(layouts)
        self.in_plain_memory = needs_plain_memory(model)
        self.calls: int | None = None
        self.eval()

    def forward(self, activation: Tensor, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        activation = self.layouts.get(self.layer, PLAIN).original(activation)
        activation = in_plain_order(activation) if self.in_plain_memory else activation
        if self.calls is None:
            self.calls = self._count(images)
            self._require_dependence(activation, images)
        results, seen = self._run(activation, images, self.calls)
        if seen != self.calls:  # the images decide how often the layer runs
            self.calls = self._count(images)
            results, _ = self._run(activation, images, self.calls)
        outputs = tuple(self.layouts.get(until, PLAIN).canonical(results[until]) for until in self.untils)
        return outputs[0] if self.single else outputs

    def _run(self, activation: Tensor, images: Tensor, at: int) -> tuple[dict[str, Tensor], int]:
        """The results by layer, with the layer's call number `at` exchanged, and the number of calls."""
        seen, results = 0, {}

        def exchange(layer: str, output: Any) -> Any:
            nonlocal seen
            seen += 1
            return exchanged(layer, output, activation.clone()) if seen == at else None

        def capture(layer: str, output: Any) -> None:
            results[layer] = tensor_of(layer, output).clone()

        with _hooks(self.model, [self.layer], exchange), _hooks(self.model, self.untils, capture):
            self.model(images)
        for until in self.untils:
            if until not in results:
                raise UserError(f"the layer {until!r} does not run in a forward pass")
        return results, seen

    @torch.no_grad()
    def _count(self, images: Tensor) -> int:
        calls: list[str] = []
        with _hooks(self.model, [self.layer], lambda layer, _: calls.append(layer)):
            self.model(images)
        if not calls:
            raise UserError(f"the layer {self.layer!r} does not run in a forward pass")
        return len(calls)

    def _require_dependence(self, activation: Tensor, images: Tensor) -> None:
        """Raise UserError where a result has no gradient with respect to the activation."""
        assert self.calls is not None
        with torch.inference_mode(False), torch.enable_grad():
            probe = activation[:1].detach().clone().requires_grad_()
            results, _ = self._run(probe, images[:1].clone(), self.calls)
            for until, result in results.items():
                found = (None,)
                if result.requires_grad:
                    found = torch.autograd.grad(result.sum(), probe, allow_unused=True, retain_graph=True)
                if found[0] is None:
                    raise UserError(
                        f"the layer {until!r} does not depend on {self.layer!r}; name one that comes after it"
                    )


@torch.no_grad()
def running_layers(model: nn.Module, sample: Tensor) -> list[str]:
    """The layers that run in a pass of these images, in the order of their last calls, '' the whole at the end.

    A layer that returns several values stands there by each tensor among them, `name:0` ...
    """
    outputs_of: dict[str, list[str]] = {}

    def note(layer: str, output: Any) -> None:
        outputs_of.pop(layer, None)  # to stand in the order of last calls
        parts = several(output)
        of_several = [f"{layer}:{number}" for number, part in enumerate(parts) if isinstance(part, Tensor)]
        outputs_of[layer] = of_several if parts else [layer] * isinstance(output, Tensor)

    with _hooks(model, [name for name, _ in model.named_modules()], note):
        model(sample)
    return [layer for layers in outputs_of.values() for layer in layers]


@torch.no_grad()
def layers_that_made_the_output(model: nn.Module, layers: Sequence[str], sample: Tensor) -> list[str]:
    """Those of some layers whose last output, made of a single input, the model returns as it is."""
    made: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda _m, given, output, layer=layer: made.update({layer: output}) if given else None
        )
        for layer in layers
    ]
    try:
        output = model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return [
        layer for layer, value in made.items() if isinstance(output, Tensor) and value.data_ptr() == output.data_ptr()
    ]


def tensor_of(layer: str, output: Any) -> Tensor:
    """The tensor that a layer's name means among what the layer returned; UserError where it means none."""
    name, index = split_layer(layer)
    parts = several(output)
    if index is not None and not isinstance(output, Tensor) and index < len(parts):
        output = parts[index]
    elif parts:
        raise UserError(f"the layer {name!r} returns {len(parts)} values; name a tensor of them, such as {name}:0")
    elif index is not None:
        raise UserError(f"the layer {name!r} returns one value; name it without :{index}")
    if not isinstance(output, Tensor):
        raise UserError(f"the layer {layer!r} returns a {type(output).__name__}, not a tensor")
    return output


def exchanged(layer: str, output: Any, activation: Tensor) -> Any:
    """What a layer returned, with the tensor that its name means exchanged."""
    old = tensor_of(layer, output)
    if isinstance(output, Tensor):
        return activation
    if isinstance(output, dict):
        keys = [key for key, value in output.items() if value is old]
        return type(output)({**output, keys[0]: activation})
    index = split_layer(layer)[1]
    parts = [activation if number == index else part for number, part in enumerate(several(output))]
    plain = isinstance(output, (tuple, list)) and not hasattr(output, "_fields")
    return type(output)(parts) if plain else type(output)(*parts)  # a record takes its fields one by one


@contextmanager
def _hooks(model: nn.Module, layers: Iterable[str], function: Hook) -> Iterator[None]:
    """Call function(layer, output), or of an input (layer, input), after each call of the layers, in the block only.

    There torch's transformers run their submodules one by one, instead of a function that does what all of them do.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    handles = [
        model.get_submodule(split_layer(layer)[0]).register_forward_hook(
            lambda _m, given, output, layer=layer: function(layer, given[0] if is_input(layer) else output)
        )
        for layer in dict.fromkeys(layers)
    ]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
