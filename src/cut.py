"""A network cut at a layer: the part before it, and the part after it.

`head(model, layer)` computes a layer's output and nothing after it; `tail(model, layer)` continues from there.
torch.fx records which value each module returned; the graph is then redirected and what nobody uses any more is
removed. A network that cannot be traced is cut with forward hooks instead: same results, less saved work.

A layer's output is its value before any later operation changes it. Where a module runs several times in one forward
pass, its last call counts. All parts share the parameters of the model, which is never changed.
"""

import difflib
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

_UNTRACEABLE = (TypeError, ValueError, AttributeError, RuntimeError, KeyError, IndexError)  # what tracing may raise
_IN_PLACE = {getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "ior", "iand", "ixor")}


def head(model: nn.Module, layer: str) -> nn.Module:
    """The module images -> output of `layer`; raises ValueError for a layer that does not exist or does not run."""
    return _Single(heads(model, [layer]))


def heads(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """The module images -> tuple of the outputs of `layers`, all from one pass."""
    check_layers(model, layers)
    trace = _trace(model)
    if trace is None:
        return _HookedHeads(model, layers)
    graph, outputs = trace
    nodes = [_find(outputs, layer) for layer in layers]
    if _overwrites(model, graph):
        nodes = [_copy_of(graph, node) for node in nodes]
    _output_node(graph).args = (tuple(nodes),)
    return _assemble(model, graph)


def tail(model: nn.Module, layer: str, until: str = "") -> nn.Module:
    """The module (output of `layer`, images) -> logits, or -> output of the later layer `until`.

    Only what the given output does not determine is computed from the images: where no skip connection leads
    around the layer, nothing of the network before it runs. Raises ValueError like `head`, and where `until` does
    not depend on `layer`.
    """
    check_layers(model, [layer, until])
    trace = _trace(model)
    if trace is None:
        return _HookedTail(model, layer, until)
    graph, outputs = trace
    node, last = _find(outputs, layer), _find(outputs, until)
    with graph.inserting_before(next(iter(graph.nodes))):
        activation = graph.placeholder("activation")
    _output_node(graph).args = (last,)
    node.replace_all_uses_with(activation)
    if _overwrites(model, graph):
        for kept in (activation, last):
            _copy_of(graph, kept)
    module = _assemble(model, graph)
    if not next(iter(module.graph.nodes)).users:
        raise ValueError(f"the layer {until!r} does not depend on {layer!r}; name one that comes after it")
    return module


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers that run in a forward pass, in the order of the model's registration; '' is the whole."""
    trace = _trace(model)
    names = [name for name, _ in model.named_modules()]
    return names if trace is None else [name for name in names if name in trace[1]]


def check_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Raise ValueError, with the closest names, for a layer that the model does not have."""
    names = [name for name, _ in model.named_modules()]
    for layer in layers:
        if layer not in names:
            close = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names[1:4]
            raise ValueError(
                f"{type(model).__name__} has no layer {layer!r}; close: {', '.join(close)} (layer_info.py lists all)"
            )


class _Tracer(fx.Tracer):
    """Records the value that each module returned, containers included; the last call wins."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


def _trace(model: nn.Module) -> tuple[fx.Graph, dict[str, fx.Node]] | None:
    """Graph of the model and the node of each layer; None where it cannot be traced faithfully."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except _UNTRACEABLE:
        return None
    result = _output_node(graph).args[0]
    images = [node for node in graph.nodes if node.op == "placeholder"]
    # dead code elimination would drop an operation that is called for its side effect alone
    hidden_effect = any(_is_in_place(model, node) and not node.users for node in graph.nodes)
    if len(images) != 1 or not isinstance(result, fx.Node) or hidden_effect:
        return None
    return graph, tracer.outputs | {"": result}


def _find(outputs: dict[str, fx.Node], layer: str) -> fx.Node:
    if layer not in outputs:
        raise ValueError(f"the layer {layer!r} does not run in a forward pass")
    return outputs[layer]


def _output_node(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def _assemble(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _overwrites(model: nn.Module, graph: fx.Graph) -> bool:
    return any(_is_in_place(model, node) for node in graph.nodes)


def _is_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node may change its input, as ReLU(inplace=True), x.relu_() and x += y do."""
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "inplace", False)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        written = node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        return written or bool(node.kwargs.get("inplace", False))
    return False


def _copy_of(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Insert a copy of a value for all its users, so that nobody writes into the value itself."""
    after = node
    while after.op == "placeholder" and after.next.op == "placeholder":
        after = after.next
    with graph.inserting_after(after):
        copy = graph.call_method("clone", (node,))
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
    return node if node.op != "placeholder" else copy


class _Single(nn.Module):
    """A module that returns the only element of what another returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)[0]


class _Finished(Exception):
    """Ends a forward pass once all wanted outputs are known."""


class _HookedHeads(nn.Module):
    """Heads of a network that cannot be traced. The first pass counts the calls; later ones stop at the last."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.layers = list(layers)
        self.calls: dict[str, int] | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        captured: dict[str, Tensor] = {}
        counts = dict.fromkeys(self.layers, 0)

        def capture(layer: str, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"the layer {layer!r} returns a {type(output).__name__}, not a tensor")
            captured[layer] = output.clone()  # a later in-place operation must not reach it
            counts[layer] += 1
            if counts == self.calls:
                raise _Finished

        with _hooks(self.model, self.layers, capture):
            try:
                self.model(images)
                self.calls = counts
            except _Finished:
                pass
        return tuple(_captured(captured, layer) for layer in self.layers)


class _HookedTail(nn.Module):
    """Tail of a network that cannot be traced: the whole network runs, the layer's last output is exchanged."""

    def __init__(self, model: nn.Module, layer: str, until: str) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.until = until
        self.calls: int | None = None

    def forward(self, activation: Tensor, images: Tensor) -> Tensor:
        if self.calls is None:
            self.calls = self._count(images)
        count, result = 0, None

        def exchange(_: str, output: Tensor) -> Tensor | None:
            nonlocal count
            count += 1
            return activation.clone() if count == self.calls else None

        def capture(_: str, output: Tensor) -> None:
            nonlocal result
            result = output.clone()

        with _hooks(self.model, [self.layer], exchange), _hooks(self.model, [self.until], capture):
            self.model(images)
        assert result is not None
        return result

    @torch.no_grad()
    def _count(self, images: Tensor) -> int:
        calls: list[str] = []
        with _hooks(self.model, [self.layer], lambda layer, _: calls.append(layer)):
            self.model(images[:1])
        if not calls:
            raise ValueError(f"the layer {self.layer!r} does not run in a forward pass")
        return len(calls)


def _captured(captured: dict[str, Tensor], layer: str) -> Tensor:
    if layer not in captured:
        raise ValueError(f"the layer {layer!r} does not run in a forward pass")
    return captured[layer]


@contextmanager
def _hooks(model: nn.Module, layers: Iterable[str], function: Any) -> Iterator[None]:
    """Call function(layer, output) after each call of the layers, inside the block only."""
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda _m, _i, output, layer=layer: function(layer, output))
        for layer in dict.fromkeys(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
