"""The structure of a network: copies that share its parameters, and names of what its layers return."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from src.core.errors import UserError


def share_structure(model: nn.Module, parameter: Callable[[nn.Parameter], nn.Parameter] = lambda p: p) -> nn.Module:
    """A copy of a model's modules that shares its parameters and buffers, so that cutting never touches the model.

    `parameter` says what stands in the copy for each parameter. Whatever else the model holds, such as cached values,
    is copied. Raises UserError where that cannot be.
    """
    memo: dict[int, Any] = {id(value): parameter(value) for value in model.parameters()}
    memo |= {id(value): value for value in model.buffers()}
    for module in model.modules():  # results of computations, as weight normalisation keeps them, refuse to be copied
        loose = [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
        memo |= {id(value): value.detach().clone() for value in loose}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{type(model).__name__} cannot be copied, so it cannot be cut: {reason}") from None


def in_plain_memory(model: nn.Module) -> nn.Module:
    """The model, made one of a class of its own, which brings images to the plain order in memory first.

    For code that makes views, of images or of what it makes of them, that channels last in memory does not admit.
    """
    kind = type(model)

    def forward(self: nn.Module, images: Tensor) -> Any:
        return kind.forward(self, in_plain_order(images))

    members = {"forward": forward, "__module__": kind.__module__, "plain_memory": True}
    model.__class__ = type(kind.__name__, (kind,), members)
    return model


def in_channels_last(model: nn.Module) -> nn.Module:
    """The model itself, its parameters and buffers of four axes in channels last in memory.

    `Module.to` would try those of five as well, such as a transformer's masks, and fail.
    """
    return model._apply(lambda value: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value)


def in_plain_order(x: Tensor) -> Tensor:
    """A copy, since contiguous() keeps the odd strides that channels last gives to a single channel."""
    return x.clone(memory_format=torch.contiguous_format)


def needs_plain_memory(model: nn.Module) -> bool:
    """Whether channels last in memory would break the code of a network, or of a part of one."""
    return any(
        getattr(module, "plain_memory", False) or getattr(module, "meta", {}).get("plain_memory", False)
        for module in model.modules()
    )


def no_logits(output: Any) -> str:
    """What a network returned for some images, in words; "" where these are logits (images, classes)."""
    if output is None:
        return "nothing"
    if not isinstance(output, Tensor):
        return f"a {type(output).__name__}"
    if output.dim() == 2 and output.is_floating_point():
        return ""
    kind = "" if output.is_floating_point() else f"{str(output.dtype).removeprefix('torch.')} "
    return f"{kind}values of the shape ({', '.join(['n', *map(str, output.shape[1:])])})"


def input_of(layer: str) -> str:
    """What a layer is given, as a layer: no name of a module begins with a dot."""
    return f".{layer}"


def is_input(layer: str) -> bool:
    """Whether a layer is what another is given."""
    return layer.startswith(".")


def split_layer(layer: str) -> tuple[str, int | None]:
    """Name of a module and which of its tensors is meant: "lstm:1" -> ("lstm", 1), ".fc" -> ("fc", None)."""
    layer = layer.removeprefix(".")
    match = re.fullmatch(r"(.*):(\d+)", layer, re.ASCII | re.DOTALL)
    return (match[1], int(match[2])) if match else (layer, None)


def several(output: Any) -> list[Any]:
    """The values that a layer returned in a tuple, a list or a record, in their order; those of others: none."""
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    return list(vars(output).values()) if hasattr(output, "__dataclass_fields__") else []
