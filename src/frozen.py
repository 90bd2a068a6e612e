"""Networks that no longer learn, made fast: BatchNorm folded, ReLUs in place, channels last in memory."""

import copy
import operator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def freeze(module: nn.Module) -> nn.Module:
    """Put a module into eval mode, without gradients, and make it faster; its outputs agree to float32 rounding.

    In traced parts each BatchNorm that directly follows a convolution, whose output nobody else uses, is folded
    into a copy of it, and a ReLU writes over what it alone reads. The original network is not changed.
    """
    module.eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            _fold_batchnorms(part)
            _overwrite_in_relus(part)
            part.delete_all_unused_submodules()
            part.recompile()
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _fold_batchnorms(part: fx.GraphModule) -> None:
    for node in list(part.graph.nodes):
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and len(before.users) == 1):
            continue
        convolution, norm = _module(part, before), _module(part, node)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            name = f"{before.target}_folded".replace(".", "_")
            part.add_module(name, _folded(convolution, norm))
            before.target = name
            node.replace_all_uses_with(before)
            part.graph.erase_node(node)


def _overwrite_in_relus(part: fx.GraphModule) -> None:
    """Let each ReLU write over what a convolution, a dense layer or a sum made for it alone, and none of them keeps."""
    in_place = nn.ReLU(inplace=True)
    for node in part.graph.nodes:
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and len(before.users) == 1 and isinstance(_module(part, node), nn.ReLU)):
            continue
        if before.target is operator.add or isinstance(_module(part, before), nn.Conv2d | nn.Linear):
            part.add_module("relu_in_place", in_place)
            node.target = "relu_in_place"


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)  # pyright: ignore
    folded = copy.copy(convolution)  # stride, padding and so on; the original keeps its own parameters
    folded._parameters = {"weight": weight, "bias": bias}
    return folded.requires_grad_(False)


def _module(part: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return part.get_submodule(str(node.target)) if node.op == "call_module" else None
