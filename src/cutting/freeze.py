"""Networks that no longer learn, made fast: BatchNorm folded, ReLUs in place, channels last in memory."""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.cutting.structure import in_channels_last, needs_plain_memory, share_structure
from src.cutting.tracing import FOLDS


def freeze(part: nn.Module) -> nn.Module:
    """A faster copy of a part of a network, in eval mode and without gradients; outputs agree to float32 rounding.

    In traced parts each BatchNorm that in the whole network directly follows a convolution, whose output nobody else
    uses, is folded into a copy of it, and a ReLU writes over what it alone reads. A convolution that is asked for
    itself is computed beside the folded one, so that what a layer gives does not depend on which others are asked for.
    The part, and the network that it is of, are not changed.
    """
    part = share_structure(part, lambda value: nn.Parameter(value.detach(), requires_grad=False)).eval()
    for graph_module in [module for module in part.modules() if isinstance(module, fx.GraphModule)]:
        _fold_batchnorms(graph_module)
        _overwrite_in_relus(graph_module)
        graph_module.graph.eliminate_dead_code()
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
    return part if needs_plain_memory(part) else in_channels_last(part)


def cast_once(part: nn.Module, *inputs: Tensor) -> nn.Module:
    """A copy of a frozen part whose parameters are bfloat16 where autocast would cast them at each call.

    Autocast remembers casts of parameters that learn, and of no others. Which it casts is seen from one pass of
    `inputs` under it; a parameter that is also read as it is stays. Outputs are the same to the bit.
    """
    watched = _Casts(part)
    with watched:
        part(*inputs)
    low = {id(value) for value in watched.cast.values()} - {id(value) for value in watched.read.values()}
    return share_structure(part, lambda value: _in_bfloat16(value) if id(value) in low else value)


def _in_bfloat16(value: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.detach().to(torch.bfloat16), requires_grad=False)


class _Casts(TorchDispatchMode):
    """Notes which parameters of a part become bfloat16 within the block, and which are read otherwise."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._known = {id(value): value for value in part.parameters()}
        self.cast: dict[int, nn.Parameter] = {}
        self.read: dict[int, nn.Parameter] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        casts = function is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16
        for value in tree_leaves((args, kwargs)):
            if id(value) in self._known:
                (self.cast if casts else self.read)[id(value)] = value
        return function(*args, **kwargs)


def _fold_batchnorms(part: fx.GraphModule) -> None:
    for node in list(part.graph.nodes):
        before = node.args[0] if node.args else None
        if not (node.meta.get(FOLDS) and isinstance(before, fx.Node)):
            continue
        convolution, norm = _module(part, before), _module(part, node)
        if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        has_statistics = norm.running_mean is not None and norm.running_var is not None
        if _is_plain(convolution, nn.Conv2d) and _is_plain(norm, nn.BatchNorm2d) and has_statistics:
            with part.graph.inserting_before(node):
                folded = part.graph.call_module(_added(part, "folded", _folded(convolution, norm)), before.args)
            node.replace_all_uses_with(folded)
            part.graph.erase_node(node)


def _is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module is of a kind and nothing else: no subclass, no weight that a hook or parametrization makes."""
    hooks = ("_forward_pre_hooks", "_forward_hooks")
    return type(module) is kind and not any(getattr(module, name) for name in hooks)


def _overwrite_in_relus(part: fx.GraphModule) -> None:
    """Let each ReLU write over what a convolution, a dense layer or a sum made for it alone, and none of them keeps."""
    name = None
    for node in part.graph.nodes:
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and len(before.users) == 1 and _is_plain(_module(part, node), nn.ReLU)):
            continue
        if before.target is operator.add or isinstance(_module(part, before), nn.Conv2d | nn.Linear):
            name = name or _added(part, "relu_in_place", nn.ReLU(inplace=True))
            node.target = name


def _added(part: nn.Module, name: str, module: nn.Module) -> str:
    """Add a module under a name that nothing in the part has; returns that name."""
    number = 0
    while hasattr(part, f"{name}_{number}"):
        number += 1
    part.add_module(f"{name}_{number}", module)
    return f"{name}_{number}"


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)  # pyright: ignore
    folded = copy.copy(convolution)  # stride, padding and so on; the original keeps its own parameters
    folded._parameters = {"weight": weight, "bias": bias}
    return folded.requires_grad_(False)


def _module(part: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return part.get_submodule(str(node.target)) if node.op == "call_module" else None
