"""Which layers of a network a text means: a name, a comma list, a pattern, or all."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from src.core.errors import UserError
from src.cutting.channel_axis import find_outputs
from src.cutting.hooks import running_layers
from src.cutting.parts import check_layers, heads, layer_names
from src.cutting.structure import share_structure, split_layer

ALL = "all"
_WILD = re.compile(r"\*\*|\*|\?")
# what each wildcard stands for: the last two stay within one part between dots
_MEANING = {"**": ".*", "*": "[^.]*", "?": "[^.]"}


def choose_layers(model: nn.Module, text: str, sample: Tensor | None = None) -> list[str]:
    """The layers that a text names, in its order; those of a pattern as nearly as known in the order they run in.

    "all" stands for each that runs and holds no other layer. In a pattern `*` and `?` stay within one part between
    dots and `**` crosses them. `sample` is a batch of images: with one, neither takes a layer whose output is neither
    maps nor tokens nor features, such as windows of all images. Raises UserError for a layer that the model does not
    have and for a pattern that matches none.
    """
    if text == ALL:
        running = [name for name in layer_names(model, sample) if name]
        alone = [name for name in running if not any(_module(model, name).children())]
        return _in_order(model, alone, sample)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and "" in parts:
        raise UserError(f"an empty name among the layers {text!r}")
    names = [name for part in parts for name in (_matching(model, part, sample) if _WILD.search(part) else [part])]
    check_layers(model, names)
    return list(dict.fromkeys(names))


def _matching(model: nn.Module, pattern: str, sample: Tensor | None) -> list[str]:
    known = [name for name in layer_names(model, sample) if name]
    expression = "".join(
        _MEANING[piece] if piece in _MEANING else re.escape(piece) for piece in re.split(r"(\*\*|\*|\?)", pattern)
    )
    found = [name for name in known if re.fullmatch(expression, name, re.DOTALL)]
    found = _in_order(model, found, sample) if found else []
    if not found:
        raise UserError(f"no layer of {type(model).__name__} matches {pattern!r} (layer_info.py lists all)")
    return found


def _module(model: nn.Module, layer: str) -> nn.Module:
    return model.get_submodule(split_layer(layer)[0])


def _in_order(model: nn.Module, names: list[str], sample: Tensor | None) -> list[str]:
    """The names in the order of running, as nearly as known, without those of no use to anybody."""
    if sample is not None:
        outputs = find_outputs(model, names, sample)
        names = [name for name in names if outputs[name].layout]
    part = heads(model, names)
    if isinstance(part, fx.GraphModule):
        nodes = {node: position for position, node in enumerate(part.graph.nodes)}
        outputs: Any = next(node for node in nodes if node.op == "output").args[0]
        return [name for _, name in sorted((nodes[output], name) for output, name in zip(outputs, names, strict=True))]
    ran = [] if sample is None else running_layers(share_structure(model).eval(), sample)
    return [name for name in ran if name in names] or names


def pairs_of_layers(fronts: Sequence[str], ends: Sequence[str], how: str) -> list[tuple[str, str]]:
    """Each front layer with each end layer ("all"), or the first with the first ("zip").

    Raises UserError where the second asks for as many of one as of the other, and there are not.
    """
    if how == "all":
        return list(itertools.product(fronts, ends))
    if len(fronts) != len(ends):
        raise UserError(f"--pairs zip needs as many front layers as end layers, not {len(fronts)} and {len(ends)}")
    return list(zip(fronts, ends, strict=True))
