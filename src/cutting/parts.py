"""A network cut at a layer: the part before it, and the part after it.

`head(model, layer)` computes a layer's output and nothing after it; `tail(model, layer)` continues from there.
torch.fx records which value each module returned; the graph is then redirected and what nobody uses any more is
removed. A layer of a network that cannot be traced is cut with forward hooks instead (`hooked`): same results, no saved
work.

A layer's output is its value before any later operation changes it. Where a module runs several times in one forward
pass, its last call counts. `name:0` is the first tensor of a layer that returns several. With `layouts` parts hand out
and take outputs in canonical form (`layout`).

Parts are cut from a copy of the model's structure in eval mode that shares its parameters and buffers; the model that
was given stays as it was, to the last flag.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, fx, nn

from src.core.errors import UserError
from src.cutting.hooks import HookedHeads, HookedTail, layers_that_made_the_output, running_layers
from src.cutting.layout import Layout, to_canonical, to_original
from src.cutting.structure import in_plain_order, input_of, needs_plain_memory, share_structure, split_layer
from src.cutting.tracing import Trace, makes_views, output_node, overwrites, traced

Layouts = Mapping[str, Layout]


def head(model: nn.Module, layer: str, layouts: Layouts | None = None) -> nn.Module:
    """The module images -> output of `layer`; raises UserError for a layer that does not exist or does not run."""
    return _Single(heads(model, [layer], layouts), layer)


def heads(model: nn.Module, layers: Sequence[str], layouts: Layouts | None = None) -> nn.Module:
    """The module images -> tuple of the outputs of `layers`, all from one pass."""
    layouts = layouts or {}
    check_layers(model, layers)
    model, trace = _traced_copy(model, layers)
    if trace is None:
        return HookedHeads(model, layers, layouts)
    nodes = [trace.find(layer) for layer in layers]
    if overwrites(model, trace.graph):
        nodes = [_copy_of(trace.graph, node) for node in nodes]
    last = output_node(trace.graph)
    with trace.graph.inserting_before(last):
        named = zip(layers, nodes, strict=True)
        nodes = [_turned(trace.graph, node, to_canonical, layouts.get(layer)) for layer, node in named]
    last.args = (tuple(nodes),)
    return _assemble(model, trace.graph)


def tail(model: nn.Module, layer: str, until: str = "", layouts: Layouts | None = None) -> nn.Module:
    """The module (output of `layer`, images) -> logits, or -> output of the later layer `until`.

    Only what the given output does not determine is computed from the images: where no skip connection leads
    around the layer, nothing of the network before it runs. Raises UserError like `head`, and where `until` does
    not depend on `layer`.
    """
    check_layers(model, [layer, until])
    model, trace = _traced_copy(model, [layer, until])
    if trace is None:
        return HookedTail(model, layer, [until], layouts or {}, single=True)
    return _continue(model, trace, layer, [until], layouts or {}, single=True)


def tails(model: nn.Module, layer: str, untils: Sequence[str], layouts: Layouts | None = None) -> nn.Module:
    """The module (output of `layer`, images) -> tuple of the outputs of later layers, all from one pass."""
    check_layers(model, [layer, *untils])
    copied, trace = _traced_copy(model, [layer, *untils])
    if trace is None:
        return HookedTail(model, layer, untils, layouts or {}, single=False)
    return _continue(copied, trace, layer, untils, layouts or {}, single=False)


def _continue(
    model: nn.Module, trace: Trace, layer: str, untils: Sequence[str], layouts: Layouts, *, single: bool
) -> nn.Module:
    """The graph from a layer on until others; their outputs in a tuple, or that of the only one."""
    graph = trace.graph
    node, lasts = trace.find(layer), [trace.find(until) for until in untils]
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        activation = graph.placeholder("activation")
    images = next(node for node in graph.nodes if node.op == "placeholder" and node is not activation)
    with graph.inserting_after(images):
        own = _turned(graph, activation, to_original, layouts.get(layer))
        if needs_plain_memory(model) and makes_views(graph):
            with graph.inserting_after(own if own is not activation else images):
                own = graph.call_function(in_plain_order, (own,))
    with graph.inserting_before(output_node(graph)):
        named = zip(lasts, untils, strict=True)
        outputs = tuple(_turned(graph, last, to_canonical, layouts.get(until)) for last, until in named)
        output_node(graph).args = outputs if single else (outputs,)
    for same in trace.all_of(layer, node):
        same.replace_all_uses_with(own)
    if overwrites(model, graph):
        for kept in dict.fromkeys([activation, *lasts]):
            _copy_of(graph, kept)
    module = _assemble(model, graph)
    reached = _reached(next(iter(module.graph.nodes)))
    if single and output_node(module.graph) not in reached:
        raise UserError(f"the layer {untils[0]!r} does not depend on {layer!r}; name one that comes after it")
    return module


def later_layers(model: nn.Module, layer: str, sample: Tensor) -> list[str]:
    """The layers, of those that hold no others, whose output depends on that of `layer`, in the order they run in."""
    later = dependent_layers(model, layer, sample)
    unseen = {name for name, module in model.named_modules() if name and fx.Tracer().is_leaf_module(module, name)}
    holding = {name for name in unseen if any(other.startswith(f"{name}.") for other in later)}
    leaves = {name for name, module in model.named_modules() if name and not any(module.children())}
    leaves |= unseen - holding  # of torch's own transformers, whose code is not traced
    return [name for name in later if split_layer(name)[0] in leaves and name != layer]


def dependent_layers(model: nn.Module, layer: str, sample: Tensor) -> list[str]:
    """All layers whose output depends on that of `layer`, in the order they run in."""
    check_layers(model, [layer])
    model, trace = _traced_copy(model, [layer])
    if trace is None:
        ran = running_layers(model, sample)
        return ran[ran.index(layer) + 1 :] if layer in ran else []
    reached = _reached(trace.find(layer))
    order = {node: place for place, node in enumerate(trace.graph.nodes)}
    later = [name for name, node in trace.outputs.items() if node in reached]
    return sorted(later, key=lambda name: order[trace.outputs[name]])


def follows(model: nn.Module, layer: str, later: str, sample: Tensor) -> bool:
    """Whether the output of a layer is that of another or depends on it."""
    check_layers(model, [layer, later])
    copied, trace = _traced_copy(model, [layer, later])
    if trace is not None:
        node = trace.find(layer)
        return trace.find(later) in {node, *_reached(node)}
    part = HookedTail(copied, layer, [later], {}, single=True)
    try:
        part(head(model, layer)(sample), sample)
    except UserError:  # it says that there is no gradient
        return False
    return True


def final_input(model: nn.Module, sample: Tensor) -> str | None:
    """What the last linear layer is given, as a layer: the final features; None where there is none, or several.

    The last is one that the output depends on and no other linear layer follows; where the network cannot be traced,
    the one that made the output itself.
    """
    copied, trace = _traced_copy(model, [""])
    names = [name for name, module in copied.named_modules() if isinstance(module, nn.Linear)]
    if trace is None or trace.opaque:
        last = layers_that_made_the_output(copied, names, sample)
    else:
        nodes = {name: node for name in names if (node := trace.outputs.get(name)) and node.target == name}
        reached = {name: _reached(node) for name, node in nodes.items()}
        output = output_node(trace.graph)
        last = [name for name, later in reached.items() if output in later and later.isdisjoint(nodes.values())]
    return input_of(last[0]) if len(last) == 1 else None


def _reached(node: fx.Node) -> set[fx.Node]:
    """All that depends on a node, itself left out."""
    reached: set[fx.Node] = set()
    waiting = [*node.users]
    while waiting:
        user = waiting.pop()
        if user not in reached:
            reached.add(user)
            waiting += user.users
    return reached


def layer_names(model: nn.Module, sample: Tensor | None = None) -> list[str]:
    """Names of the layers that run in a forward pass, in the order of the model's registration; '' is the whole.

    A layer that returns several tensors stands there by each of them, `name:0`, `name:1` ... Where the model cannot be
    traced, a pass of `sample` tells what runs; without one, all layers are named.
    """
    names = [name for name, _ in model.named_modules()]
    _, trace = traced(model)
    if trace and not trace.opaque:
        ran = list(trace.outputs)
    elif sample is None:
        return names
    else:
        ran = running_layers(share_structure(model).eval(), sample)
    order = {name: place for place, name in enumerate(names)}
    return sorted(ran, key=lambda layer: (order[split_layer(layer)[0]], split_layer(layer)[1] or 0))


def is_traced(part: nn.Module) -> bool:
    """Whether a part was cut by its graph; if not, hooks did it, and it runs the whole network."""
    return not any(isinstance(module, HookedHeads | HookedTail) for module in part.modules())


def check_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Raise UserError, with the closest names, for a layer that the model does not have."""
    names = [name for name, _ in model.named_modules()]
    for layer in layers:
        if split_layer(layer)[0] not in names:
            close = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names[1:4]
            raise UserError(
                f"{type(model).__name__} has no layer {layer!r}; close: {', '.join(close)} (layer_info.py lists all)"
            )


def _traced_copy(model: nn.Module, layers: Sequence[str]) -> tuple[nn.Module, Trace | None]:
    """A copy of the model's structure in eval mode, and its graph if that tells of all these layers."""
    copied, trace = traced(model)
    if trace is None or not trace.knows(list(layers)):
        return share_structure(model).eval(), None
    # what failed half-way may have left anything in a module that is still to run
    return share_structure(model if trace.opaque else copied).eval(), trace.copy()


def _turned(graph: fx.Graph, node: fx.Node, turn: object, layout: Layout | None) -> fx.Node:
    """A node's value in canonical form, or out of it; the node itself where that is the same."""
    return graph.call_function(turn, (node, layout.kind)) if layout and not layout.is_plain else node  # pyright: ignore


def _assemble(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    module.meta["plain_memory"] = needs_plain_memory(model) and makes_views(module.graph)
    return module.eval()


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
            raise UserError(f"the layer {self.layer!r} returns a {type(output).__name__}, not a tensor")
        return output
