"""The graph of a network, made by torch.fx, and which value of it each layer returned.

A module whose code cannot be traced stands in the graph as one step, with the whole network's other modules around it;
so does one of torch.nn that holds others, such as a transformer, whose code is not traced.
"""

import operator
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from src.core.errors import UserError
from src.cutting.structure import is_input, several, share_structure, split_layer

_IN_PLACE = {getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "ior", "iand", "ixor")}
_RETURN_SEVERAL = (nn.MultiheadAttention, nn.RNNBase)  # modules that tracing does not look into
FOLDS = "reads a convolution alone"  # the mark of a BatchNorm node, for `freeze`
_OPAQUE = "nobody knows what it does"  # the mark of a module that could not be traced


class _Tracer(fx.Tracer):
    """Records the value that each module returned, containers included; the last call wins.

    counts: how many tensors a layer returns, for those that return several. opaque: names of the modules whose own
    code was not traced though they hold others.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_functions=_untraced_functions())
        self.outputs: dict[str, fx.Node] = {}
        self.counts: dict[str, int] = {}
        self.opaque: set[str] = set()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Images alone are given: what else `forward` takes keeps its default, so that it decides nothing later."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        name, last = self.path_of_module(m), next(iter(reversed(self.graph.nodes)))
        known, depth = (self.outputs.copy(), self.counts.copy(), self.opaque.copy()), len(self.module_stack)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:  # the module's own code runs here, with values that it does not expect: anything may come
            self.outputs, self.counts, self.opaque = known
            while len(self.module_stack) > depth:  # which fx leaves as it was when the exception came
                self.module_stack.popitem()
            self._forget_after(last)
            self.opaque.add(name)
            output = self.create_proxy("call_module", name, args, kwargs)
            output.node.meta[_OPAQUE] = True
        if _runs_unseen_layers(m) and self.is_leaf_module(m, name):
            self.opaque.add(name)
        self.record(name, m, output)
        return output

    def _forget_after(self, last: fx.Node) -> None:
        """Erase the steps that were taken after a node, but for parameters, which are read once for all."""
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            if node.op != "get_attr":
                self.graph.erase_node(node)

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


def _runs_unseen_layers(module: nn.Module) -> bool:
    """Whether a module holds layers that run: an attention's projection and parametrizations are no layers."""
    inner = any(name != "parametrizations" for name, _ in module.named_children())
    return inner and not isinstance(module, _RETURN_SEVERAL)


def _untraced_functions() -> tuple[Callable[..., Any], ...]:
    """The functions that timm, where it is in use, declares to be steps of their own."""
    layers = sys.modules.get("timm.layers")
    return tuple(layers.get_notrace_functions()) if layers else ()


class Trace:
    """Graph of a model and the node of each layer; what runs within `opaque` modules has none."""

    def __init__(self, graph: fx.Graph, outputs: dict[str, fx.Node], counts: dict[str, int], opaque: set[str]) -> None:
        self.graph, self.outputs, self.counts, self.opaque = graph, outputs, counts, opaque

    def knows(self, layers: list[str]) -> bool:
        """Whether the graph tells of each of these layers what it returns, or that it does not run."""
        inside = tuple(f"{hidden}{mark}" for hidden in self.opaque for mark in ".:")
        return not any(layer.removeprefix(".").startswith(inside) for layer in layers)

    def copy(self) -> "Trace":
        """The same with a graph of its own, that may be changed."""
        graph, nodes = fx.Graph(), {}
        graph.output(graph.graph_copy(self.graph, nodes))
        outputs = {name: nodes[node] for name, node in self.outputs.items()}
        return Trace(graph, outputs, self.counts, self.opaque)

    def find(self, layer: str) -> fx.Node:
        if is_input(layer):
            node = self.find(split_layer(layer)[0])
            if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
                raise UserError(f"what the layer {split_layer(layer)[0]!r} is given cannot be cut out")
            return node.args[0]
        name, index = split_layer(layer)
        if layer not in self.outputs and self.counts.get(name):
            raise UserError(
                f"the layer {name!r} returns {self.counts[name]} values; name a tensor of them, such as {name}:0"
            )
        if index is not None and layer not in self.outputs and name in self.outputs:
            raise UserError(f"the layer {name!r} returns one tensor; name it without {layer[len(name) :]}")
        if layer not in self.outputs:
            raise UserError(f"the layer {layer!r} does not run in a forward pass")
        return self.outputs[layer]

    def all_of(self, layer: str, node: fx.Node) -> list[fx.Node]:
        """The node itself, and what else takes the same element out of a value of several."""
        if split_layer(layer)[1] is None or node.target is not operator.getitem:
            return [node]
        return [user for user in node.args[0].users if user.target is operator.getitem and user.args == node.args]  # pyright: ignore


# of each model what it was made of when it was traced, the copy that was traced, and its graph
_TRACES: WeakKeyDictionary[nn.Module, tuple[tuple, nn.Module, Trace | None]] = WeakKeyDictionary()


def traced(model: nn.Module) -> tuple[nn.Module, Trace | None]:
    """A copy of a model in eval mode and its graph, None where it has none; made once, not to be changed.

    It is made anew once modules, parameters, buffers or numbers of the model are others.
    """
    made_of = _made_of(model)
    if model not in _TRACES or _TRACES[model][0] != made_of:
        copied = share_structure(model).eval()
        _TRACES[model] = made_of, copied, _trace(copied)
    return _TRACES[model][1:]


def _made_of(model: nn.Module) -> tuple:
    """What a model's graph and its copy follow from: its tensors, modules, hooks, and the values its code may ask for.

    Tensors and functions are told apart by identity: those of the copy are alive, so no others can have theirs.
    """
    modules = []
    for name, module in model.named_modules():
        values = tuple((key, _value(value)) for key, value in vars(module).items() if key != "training")
        modules.append((name, type(module), values))
    return tuple(id(value) for value in (*model.parameters(), *model.buffers())), tuple(modules)


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((id(key) if not isinstance(key, str) else key, id(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return tuple(_value(one) for one in value)
    return value if isinstance(value, bool | int | float | str | None) else id(value)


def _trace(model: nn.Module) -> Trace | None:
    """None where the model cannot be traced faithfully. The model must be a copy: tracing may leave traces in it."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
        if tracer.opaque:
            graph.lint()  # a module that could not be traced may have let out what is gone with it
    except Exception:  # as above, of the whole network's own code
        return None
    result = output_node(graph).args[0]
    images = [node for node in graph.nodes if node.op == "placeholder"]
    # dead code elimination would drop an operation that is called for its side effect alone
    hidden_effect = any(_is_in_place(model, node) and not node.users for node in graph.nodes)
    if len(images) != 1 or hidden_effect:
        return None
    if not overwrites(model, graph):  # which might write into a view
        _tolerate_strides(graph)
    _mark_foldable(model, graph)
    if isinstance(result, fx.Node):
        tracer.outputs[""] = result
    else:
        parts = several(result)
        tracer.counts[""] = len(parts)
        tracer.outputs |= {f":{i}": part for i, part in enumerate(parts) if isinstance(part, fx.Node)}
    return Trace(graph, tracer.outputs, tracer.counts, tracer.opaque)


def _tolerate_strides(graph: fx.Graph) -> None:
    """Let views be copies where channels last in memory, as parts are frozen, admits no view; the values are equal."""
    for node in graph.find_nodes(op="call_method", target="view"):
        if not any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values())):
            node.target = "reshape"


def makes_views(graph: fx.Graph) -> bool:
    """Whether a step may ask for a view that channels last in memory does not admit."""
    return any(node.meta.get(_OPAQUE) or (node.op == "call_method" and node.target == "view") for node in graph.nodes)


def _mark_foldable(model: nn.Module, graph: fx.Graph) -> None:
    """Mark the BatchNorms that alone read a convolution, in the whole network: no cut may change what is folded."""
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        convolution, norm = (model.get_submodule(str(one.target)) for one in (before, node))
        if len(before.users) == 1 and isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            node.meta[FOLDS] = True


def output_node(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def overwrites(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether some step of a graph may change what another has made."""
    return any(_is_in_place(model, node) for node in graph.nodes)


def _is_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node may change its input, as ReLU(inplace=True), x.relu_() and x += y do."""
    if node.op == "call_module":
        return node.meta.get(_OPAQUE, False) or getattr(model.get_submodule(str(node.target)), "inplace", False)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        written = node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        return written or bool(node.kwargs.get("inplace", False))
    return False
