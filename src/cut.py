"""A network cut at a layer: the part before it, and the part after it.

`head(model, layer)` computes a layer's output and nothing after it; `tail(model, layer)` continues from there.
torch.fx records which value each module returned; the graph is then redirected and what nobody uses any more is
removed. A network that cannot be traced is cut with forward hooks instead (`hooked`): same results, no saved work.

A layer's output is its value before any later operation changes it. Where a module runs several times in one forward
pass, its last call counts. `name:0` is the first tensor of a layer that returns several.

Parts are cut from a copy of the model's structure in eval mode that shares its parameters and buffers; the model that
was given stays as it was, to the last flag.
"""

import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from src.hooked import HookedHeads, HookedTail
from src.structure import several, share_structure, split_layer

_IN_PLACE = {getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "ior", "iand", "ixor")}
_RETURN_SEVERAL = (nn.MultiheadAttention, nn.RNNBase)  # modules that tracing does not look into
FOLDS = "reads a convolution alone"  # the mark of a BatchNorm node, for `freeze`


def head(model: nn.Module, layer: str) -> nn.Module:
    """The module images -> output of `layer`; raises ValueError for a layer that does not exist or does not run."""
    return _Single(heads(model, [layer]), layer)


def heads(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """The module images -> tuple of the outputs of `layers`, all from one pass."""
    check_layers(model, layers)
    model = share_structure(model).eval()
    trace = _trace(model)
    if trace is None:
        return HookedHeads(model, layers)
    nodes = [trace.find(layer) for layer in layers]
    if _overwrites(model, trace.graph):
        nodes = [_copy_of(trace.graph, node) for node in nodes]
    _output_node(trace.graph).args = (tuple(nodes),)
    return _assemble(model, trace.graph)


def tail(model: nn.Module, layer: str, until: str = "") -> nn.Module:
    """The module (output of `layer`, images) -> logits, or -> output of the later layer `until`.

    Only what the given output does not determine is computed from the images: where no skip connection leads
    around the layer, nothing of the network before it runs. Raises ValueError like `head`, and where `until` does
    not depend on `layer`.
    """
    check_layers(model, [layer, until])
    model = share_structure(model).eval()
    trace = _trace(model)
    if trace is None:
        return HookedTail(model, layer, until)
    graph = trace.graph
    node, last = trace.find(layer), trace.find(until)
    with graph.inserting_before(next(iter(graph.nodes))):
        activation = graph.placeholder("activation")
    _output_node(graph).args = (last,)
    for same in trace.all_of(layer, node):
        same.replace_all_uses_with(activation)
    if _overwrites(model, graph):
        for kept in (activation, last):
            _copy_of(graph, kept)
    module = _assemble(model, graph)
    if not next(iter(module.graph.nodes)).users:
        raise ValueError(f"the layer {until!r} does not depend on {layer!r}; name one that comes after it")
    return module


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers that run in a forward pass, in the order of the model's registration; '' is the whole.

    A layer that returns several tensors stands there by each of them, `name:0`, `name:1` ...
    """
    trace = _trace(share_structure(model).eval())
    names = [name for name, _ in model.named_modules()]
    if trace is None:
        return names
    several_of = {name: [f"{name}:{index}" for index in range(count)] for name, count in trace.counts.items()}
    return [one for name in names for one in several_of.get(name, [name]) if one in trace.outputs]


def is_traced(model: nn.Module) -> bool:
    """Whether the model is cut by its graph; otherwise hooks do it, and each part runs the whole network."""
    return _trace(share_structure(model).eval()) is not None


def check_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Raise ValueError, with the closest names, for a layer that the model does not have."""
    names = [name for name, _ in model.named_modules()]
    for layer in layers:
        if split_layer(layer)[0] not in names:
            close = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names[1:4]
            raise ValueError(
                f"{type(model).__name__} has no layer {layer!r}; close: {', '.join(close)} (layer_info.py lists all)"
            )


class _Tracer(fx.Tracer):
    """Records the value that each module returned, containers included; the last call wins.

    counts: how many tensors a layer returns, for those that return several.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}
        self.counts: dict[str, int] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Images alone are given: what else `forward` takes keeps its default, so that it decides nothing later."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        self.record(self.path_of_module(m), m, output)
        return output

    def record(self, name: str, module: nn.Module, output: Any) -> None:
        for known in [name, *(f"{name}:{index}" for index in range(self.counts.pop(name, 0)))]:
            self.outputs.pop(known, None)
        if isinstance(output, fx.Proxy) and not isinstance(module, _RETURN_SEVERAL):
            self.outputs[name] = output.node
            return
        whole: Any = output
        parts = [whole[0], whole[1]] if isinstance(output, fx.Proxy) else several(output)
        self.counts[name] = len(parts)
        self.outputs |= {f"{name}:{i}": part.node for i, part in enumerate(parts) if isinstance(part, fx.Proxy)}


class _Trace:
    """Graph of a model and the node of each layer."""

    def __init__(self, graph: fx.Graph, outputs: dict[str, fx.Node], counts: dict[str, int]) -> None:
        self.graph, self.outputs, self.counts = graph, outputs, counts

    def find(self, layer: str) -> fx.Node:
        name, index = split_layer(layer)
        if layer not in self.outputs and self.counts.get(name):
            raise ValueError(
                f"the layer {name!r} returns {self.counts[name]} values; name a tensor of them, such as {name}:0"
            )
        if index is not None and layer not in self.outputs and name in self.outputs:
            raise ValueError(f"the layer {name!r} returns one tensor; name it without {layer[len(name) :]}")
        if layer not in self.outputs:
            raise ValueError(f"the layer {layer!r} does not run in a forward pass")
        return self.outputs[layer]

    def all_of(self, layer: str, node: fx.Node) -> list[fx.Node]:
        """The node itself, and what else takes the same element out of a value of several."""
        if split_layer(layer)[1] is None or node.target is not operator.getitem:
            return [node]
        return [user for user in node.args[0].users if user.target is operator.getitem and user.args == node.args]  # pyright: ignore


def _trace(model: nn.Module) -> _Trace | None:
    """None where the model cannot be traced faithfully. The model is a copy: tracing may leave traces in it."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception:  # the model's own code runs here, with values that it does not expect: anything may come
        return None
    result = _output_node(graph).args[0]
    images = [node for node in graph.nodes if node.op == "placeholder"]
    # dead code elimination would drop an operation that is called for its side effect alone
    hidden_effect = any(_is_in_place(model, node) and not node.users for node in graph.nodes)
    if len(images) != 1 or hidden_effect:
        return None
    _mark_foldable(model, graph)
    if isinstance(result, fx.Node):
        tracer.outputs[""] = result
    else:
        parts = several(result)
        tracer.counts[""] = len(parts)
        tracer.outputs |= {f":{i}": part for i, part in enumerate(parts) if isinstance(part, fx.Node)}
    return _Trace(graph, tracer.outputs, tracer.counts)


def _mark_foldable(model: nn.Module, graph: fx.Graph) -> None:
    """Mark the BatchNorms that alone read a convolution, in the whole network: no cut may change what is folded."""
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        convolution, norm = (model.get_submodule(str(one.target)) for one in (before, node))
        if len(before.users) == 1 and isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            node.meta[FOLDS] = True


def _output_node(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def _assemble(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module.eval()


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

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        self.module = module
        self.layer = layer
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        (output,) = self.module(images)
        if not isinstance(output, Tensor):
            raise ValueError(f"the layer {self.layer!r} returns a {type(output).__name__}, not a tensor")
        return output
