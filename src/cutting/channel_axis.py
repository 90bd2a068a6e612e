"""Which axis of a layer's output holds its channels: followed through a pass of two blank images.

A convolution's output has its channels at axis 1, a linear layer's and a layer norm's have them last; whatever moves,
merges or splits axes moves the mark along, and what keeps the axes keeps it. Where no mark arrives, the layout is a
guess: tokens for three axes, maps for four.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from src.core.errors import UserError
from src.cutting.layout import ASKABLE, CHANNELS_AT, RANKS, Layout, Shape, with_grid
from src.cutting.parts import heads, is_traced
from src.cutting.structure import several, split_layer

_MARK = "_channels_at"  # the attribute of a tensor that holds its mark
# what makes channels, by name, and where it puts them; -1 is the last axis
_MAKERS = {name: 1 for name in ("conv1d", "conv2d", "conv3d", "batch_norm", "group_norm", "instance_norm")}
_MAKERS |= {name: -1 for name in ("linear", "layer_norm", "rms_norm", "multi_head_attention_forward")}
# of products nobody knows which axis is left of which
_LOSING = {"matmul", "bmm", "baddbmm", "einsum", "tensordot", "scaled_dot_product_attention", "__matmul__", "mm"}
_LOSING |= {"T", "mT", "H", "mH"}  # rarely of activations
_RESHAPING = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "reshape_as", "view_as"}


@dataclass(frozen=True, slots=True)
class Output:
    """What a layer gives for one image: its own shape, and its layout.

    `layout` is None, and `refused` says why, where it has no canonical form. `is_traced`: not cut by hooks.
    """

    shape: Shape
    layout: Layout | None
    refused: str = ""
    is_traced: bool = True

    @property
    def canonical(self) -> Shape:
        """The canonical shape; raises UserError where there is none."""
        return self.known.shape(self.shape)

    @property
    def known(self) -> Layout:
        """The layout; raises UserError where there is none."""
        if self.layout is None:
            raise UserError(self.refused)
        return self.layout


@dataclass(frozen=True, slots=True)
class _Mark:
    """The axis of the channels, and the rows and columns that other axes were before they were merged into tokens."""

    axis: int
    grid: tuple[int, int] | None = None


@torch.no_grad()
def find_outputs(
    model: nn.Module, layers: Sequence[str], sample: Tensor, asked: str | None = None
) -> dict[str, Output]:
    """The shape and layout of what each layer gives for a batch of images, by its name.

    `asked` is a layout that wins at every layer whose output has as many axes; a module's own attribute `layout` wins
    over what the pass tells. A second pass of other images, one more, tells whether the first axis counts them.
    """
    layers = list(dict.fromkeys(layers))
    part = heads(model, layers)
    with _Following():
        outputs = part(sample)
    more = part(torch.cat([sample, sample[:1]]))
    found = {}
    for layer, *results in zip(layers, outputs, more, strict=True):
        promised = getattr(model.get_submodule(split_layer(layer)[0]), "layout", None)
        promised = promised if isinstance(promised, str) and promised in ASKABLE else None
        both = [
            _output(layer, result, images, asked, promised)
            for result, images in zip(results, (len(sample), len(sample) + 1), strict=True)
        ]
        worst = both[0] if both[1].layout or not both[0].layout else both[1]
        found[layer] = replace(worst, is_traced=is_traced(part))
    return found


def require_fit(asked: str | None, found: Mapping[str, Output]) -> None:
    """Raise UserError for a layout that was asked for and fits none of the layers."""
    if asked and not any(one.layout and _as_asked(asked, len(one.shape) + 1) for one in found.values()):
        shapes = ", ".join(f"{layer} {one.shape}" for layer, one in found.items())
        raise UserError(f"?layout={asked} fits none of the layers, which give for an image: {shapes}")


def layouts_of(outputs: dict[str, Output]) -> dict[str, Layout]:
    """The layouts of these layers; raises UserError for one without a canonical form."""
    return {layer: output.known for layer, output in outputs.items()}


def layout_warnings(model: nn.Module, outputs: dict[str, Output]) -> list[str]:
    """What a reader must know of how these layers are cut and read, a line each."""
    kind, lines = type(model).__name__, []
    guessed = [(layer, output.layout) for layer, output in outputs.items() if output.layout and output.layout.guessed]
    if guessed:
        layer, layout = guessed[0]
        more = f", and of {len(guessed) - 1} more layers likewise" if len(guessed) > 1 else ""
        taken = f"{layer or 'output'} of {kind} are taken to be {layout.kind}{more}"
        lines.append(f"a guess: outputs of {taken}; ?layout= behind the network says it")
    if not all(output.is_traced for output in outputs.values()) and not getattr(model, "reads_files", False):
        lines.append(f"{kind} cannot be traced at these layers, so hooks cut it: each part runs the whole network")
    return lines


def _output(layer: str, output: Any, images: int, asked: str | None, promised: str | None) -> Output:
    if not isinstance(output, Tensor):
        text = f"the layer {layer!r} returns a {type(output).__name__}, not a tensor"
        count = len(several(output))
        return Output((), None, text + f"; name one of its {count} values, such as {layer}:0" * (count > 0))
    shape = tuple(output.shape[1:])
    if output.dim() == 0 or len(output) != images:
        text = f"the layer {layer!r} gives {tuple(output.shape)} for {images} images, not a row an image"
        return Output(shape, None, text)
    if not output.is_floating_point() or output.dim() not in RANKS.values():
        text = f"the layer {layer!r} gives {shape}: neither maps nor tokens nor features"
        return Output(shape, None, text)
    mark = getattr(output, _MARK, None)
    kind = _as_asked(asked, output.dim()) or _as_asked(promised, output.dim())
    layout = Layout(kind) if kind else _found(output.dim(), mark)
    return Output(shape, with_grid(layout, shape[0], mark.grid if mark else None))


def _as_asked(asked: str | None, rank: int) -> str | None:
    """The kind that was asked for where it has so many axes."""
    kind = "line" if asked == "maps" and rank == 3 else asked
    return kind if kind and RANKS[kind] == rank else None


def _found(rank: int, mark: _Mark | None) -> Layout:
    if rank == 2:
        return Layout("features")
    for kind, at in CHANNELS_AT.items():
        if mark and RANKS[kind] == rank and mark.axis == at:
            return Layout(kind)
    return Layout("tokens" if rank == 3 else "maps", guessed=True)


class _Following(TorchFunctionMode):
    """Inside the block every function of torch passes on the marks of the tensors that it is given."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = [(x, getattr(x, _MARK, None)) for x in _tensors([*args, *(kwargs or {}).values()])]
        shapes = [x.shape for x, _ in given]  # before anything is written in place
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        name = func.__self__.__name__ if name == "__get__" else name  # a property, such as x.mT
        marks = [(shape, mark) for shape, (_, mark) in zip(shapes, given, strict=True) if mark]
        marks.sort(key=lambda pair: pair[1].grid is None)
        for tensor in _tensors([result]):
            mark = None if name in _LOSING else _passed_on(name, tensor, marks, args, kwargs or {})
            if mark or hasattr(tensor, _MARK):
                setattr(tensor, _MARK, mark)
        return result


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple | list):
            tensors += _tensors(value)
    return tensors


def _passed_on(
    name: str, result: Tensor, marks: list[tuple[torch.Size, _Mark]], args: tuple, kwargs: dict[str, Any]
) -> _Mark | None:
    """The mark of a result, given those of what it was made of."""
    rank = result.dim()
    before, mark = next(((shape, mark) for shape, mark in marks if len(shape) == rank), (None, None))
    if name in _MAKERS:
        if mark and _MAKERS[name] == -1:  # a linear layer along positions leaves the channels where they are
            return mark
        return _Mark(_MAKERS[name] % rank) if rank > 1 else None
    if not marks:
        return None
    if name in _RESHAPING:
        return _reshaped(*marks[0], result.shape)
    if name in ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis") and mark and before:
        return _Mark(_moved(name, args, kwargs, rank).index(mark.axis), mark.grid)
    return mark  # what keeps the number of axes is taken to keep their order


def _reshaped(before: torch.Size, mark: _Mark, after: torch.Size) -> _Mark | None:
    """The mark after axes were merged, split, added or dropped; None where the channels were among them."""
    ahead, channels = math.prod(before[: mark.axis]), before[mark.axis]
    for axis in range(len(after)):
        if after[axis] == channels and math.prod(after[:axis]) == ahead:
            grid = mark.grid
            if len(before) == 4 and len(after) == 3:
                rows, columns = (length for place, length in enumerate(before) if place not in (0, mark.axis))
                grid = (rows, columns)
            return _Mark(axis, grid)
    return None


def _moved(name: str, args: tuple, kwargs: dict[str, Any], rank: int) -> list[int]:
    """For each axis of the result, which axis of the input it was."""
    probe = torch.empty(tuple(range(2, rank + 2)), device="meta")  # every axis has a length of its own
    with torch._C.DisableTorchFunction():
        moved = getattr(probe, name)(*args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    return [length - 2 for length in moved.shape]
