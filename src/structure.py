"""The structure of a network: copies that share its parameters, and names of what its layers return."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def share_structure(model: nn.Module, parameter: Callable[[nn.Parameter], nn.Parameter] = lambda p: p) -> nn.Module:
    """A copy of a model's modules that shares its parameters and buffers, so that cutting never touches the model.

    `parameter` says what stands in the copy for each parameter. Whatever else the model holds, such as cached values,
    is copied. Raises ValueError where that cannot be.
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
        raise ValueError(f"{type(model).__name__} cannot be copied, so it cannot be cut: {reason}") from None


def split_layer(layer: str) -> tuple[str, int | None]:
    """Name of a module and which of its tensors is meant: "lstm:1" -> ("lstm", 1), "conv1" -> ("conv1", None)."""
    match = re.fullmatch(r"(.*):(\d+)", layer, re.ASCII | re.DOTALL)
    return (match[1], int(match[2])) if match else (layer, None)


def several(output: Any) -> list[Any]:
    """The values that a layer returned in a tuple, a list or a record, in their order; those of others: none."""
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    return list(vars(output).values()) if hasattr(output, "__dataclass_fields__") else []
