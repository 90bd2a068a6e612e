"""BatchNorm statistics of the end network that belong to one stitch: they follow what it hands on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.core.errors import UserError
from src.cutting.structure import share_structure

PREFIX = "end:"  # of the names of such arrays in a result
_KINDS = ("running_mean", "running_var")
_HOOKED = "model."  # where a part that hooks cut holds the whole network


def norms_of(part: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms of a part of a network that keep statistics, by the network's own names."""
    named = ((name.removeprefix(_HOOKED), module) for name, module in part.named_modules())
    return {
        name: module for name, module in named if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


class EndNorms(nn.Module):
    """Means and variances of BatchNorms by their names, (channels,) each; to begin with those of the network."""

    def __init__(self, statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.names = list(statistics)
        for name, values in statistics.items():
            for kind in _KINDS:
                self.register_buffer(_flat(name, kind), values[kind].detach().clone())
        self._parts: dict[Any, nn.Module] = {}

    @classmethod
    def of(cls, part: nn.Module) -> "EndNorms":
        return cls({name: {kind: getattr(norm, kind) for kind in _KINDS} for name, norm in norms_of(part).items()})

    def linked(self, key: Any, part: nn.Module) -> nn.Module:
        """A copy of a part, which shares its parameters and has these statistics; known by `key` from then on.

        In training its BatchNorms take the statistics of each batch, and these follow; nothing else trains.
        """
        if key not in self._parts:
            copied = share_structure(part, lambda value: nn.Parameter(value.detach(), requires_grad=False)).eval()
            for name, norm in norms_of(copied).items():
                if name not in self.names:
                    raise UserError(f"the BatchNorm {name} of the end network has no statistics in this stitch")
                for kind in _KINDS:
                    norm._buffers[kind] = getattr(self, _flat(name, kind))
                norm._buffers["num_batches_tracked"] = None
                if norm.momentum is None:
                    norm.momentum = 0.1  # an average over all batches would need their number
            self._parts[key] = copied
        part = self._parts[key]
        for norm in norms_of(part).values():
            norm.train(self.training)
        return part

    def arrays(self) -> dict[str, np.ndarray]:
        """The statistics as arrays by name, as results hold them."""
        return {
            f"{PREFIX}{name}.{kind}": getattr(self, _flat(name, kind)).cpu().numpy().copy()
            for name in self.names
            for kind in _KINDS
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "EndNorms | None":
        """The inverse of `arrays`, other arrays left out; None where there are none."""
        statistics: dict[str, dict[str, Tensor]] = {}
        for key, value in arrays.items():
            if key.startswith(PREFIX):
                name, _, kind = key.removeprefix(PREFIX).rpartition(".")
                statistics.setdefault(name, {})[kind] = torch.as_tensor(np.asarray(value))
        if any(values.keys() != set(_KINDS) for values in statistics.values()):
            raise UserError("its BatchNorm statistics are not whole")
        return cls(statistics) if statistics else None


def _flat(name: str, kind: str) -> str:
    """A name that a buffer may have."""
    return f"{name.replace('.', '/')}/{kind}"
