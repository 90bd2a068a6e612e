"""Which layers of a network a text means: a name, a comma list, a pattern, or all."""

import re
from typing import Any

from torch import fx, nn

from src.cut import check_layers, heads, layer_names
from src.structure import split_layer

ALL = "all"
_WILD = re.compile(r"\*\*|\*|\?")
# what each wildcard stands for: the last two stay within one part between dots
_MEANING = {"**": ".*", "*": "[^.]*", "?": "[^.]"}


def choose_layers(model: nn.Module, text: str) -> list[str]:
    """The layers that a text names, in its order; those of a pattern as nearly as known in the order they run in.

    "all" stands for each that runs and holds no other layer. In a pattern `*` and `?` stay within one part between
    dots and `**` crosses them. Raises ValueError for a layer that the model does not have and for a pattern that
    matches none.
    """
    if text == ALL:
        running = [name for name in layer_names(model) if name]
        return _in_order(model, [name for name in running if not any(_module(model, name).children())])
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and "" in parts:
        raise ValueError(f"an empty name among the layers {text!r}")
    names = [name for part in parts for name in (_matching(model, part) if _WILD.search(part) else [part])]
    check_layers(model, names)
    return list(dict.fromkeys(names))


def _matching(model: nn.Module, pattern: str) -> list[str]:
    known = [name for name in layer_names(model) if name]
    expression = "".join(
        _MEANING[piece] if piece in _MEANING else re.escape(piece) for piece in re.split(r"(\*\*|\*|\?)", pattern)
    )
    found = [name for name in known if re.fullmatch(expression, name, re.DOTALL)]
    if not found:
        raise ValueError(f"no layer of {type(model).__name__} matches {pattern!r} (layer_info.py lists all)")
    return _in_order(model, found)


def _module(model: nn.Module, layer: str) -> nn.Module:
    return model.get_submodule(split_layer(layer)[0])


def _in_order(model: nn.Module, names: list[str]) -> list[str]:
    part = heads(model, names)
    if not isinstance(part, fx.GraphModule):
        return names
    nodes = {node: position for position, node in enumerate(part.graph.nodes)}
    outputs: Any = next(node for node in nodes if node.op == "output").args[0]
    return [name for _, name in sorted((nodes[output], name) for output, name in zip(outputs, names, strict=True))]
