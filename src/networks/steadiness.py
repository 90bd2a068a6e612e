"""Whether what a network says of an image depends on that image alone: one trial, and the module where it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from src.cutting.structure import several

SAME = 1e-3  # of the largest value: far above roundings, which other sizes of a batch move, and far below a mask
Record = list[tuple[str, list[Tensor], list[Tensor]]]  # of each call: module, inputs, outputs; the network itself last


def tried(network: nn.Module, *, channels: int, size: int) -> tuple[str | None, str | None]:
    """The modules by which a network, in eval mode, answers by chance, and by the rest of the batch; None: it does not.

    An image is shown beside another and alone; where the answers differ, each again. Torch's global generator is left
    as it was.
    """
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, channels, size, size, generator=generator).clamp_(-2, 2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        beside, alone = _said(network, both), _said(network, both[:1])
        if beside is None or (alone is not None and _alike(beside, alone, 1)):
            return None, None
        first, second = _recorded(network, both), _recorded(network, both)
        if by_chance := _leaving(network, first, second):
            return by_chance, None
        if alone is None:  # a norm over the batch refuses one image
            return None, _norm_of(network)
        return None, _leaving(network, first, _recorded(network, both[:1]), rows=1)


def _said(network: nn.Module, images: Tensor) -> list[Tensor] | None:
    """The tensors that a network returns; None where it fails, which is said elsewhere."""
    try:
        return _tensors(network(images))
    except (RuntimeError, ValueError):
        return None


def _recorded(network: nn.Module, images: Tensor) -> Record:
    """What goes into each module and comes out, in the order in which they end."""
    record: Record = []
    with _hooked(network, record):
        network(images)
    return record


@contextmanager
def _hooked(network: nn.Module, record: Record) -> Iterator[None]:
    def note(name: str) -> Any:
        return lambda module, given, output: record.append((name, _tensors(given), _tensors(output)))

    hooks = [module.register_forward_hook(note(name)) for name, module in network.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values.detach().clone()]  # since a later module may work in place
    return [one.detach().clone() for one in several(values) if isinstance(one, Tensor)]


def _leaving(network: nn.Module, one: Record, other: Record, rows: int | None = None) -> str | None:
    """The innermost module that made other outputs of the same inputs; None where the whole output is the same."""
    if _alike(one[-1][2], other[-1][2], rows):
        return None
    for (name, given, output), (_, also_given, also_output) in zip(one, other, strict=False):
        if _alike(given, also_given, rows) and not _alike(output, also_output, rows):
            kind = type(network.get_submodule(name)).__name__
            return f"{name} ({kind})" if name else kind
    return type(network).__name__


def _alike(one: list[Tensor], other: list[Tensor], rows: int | None) -> bool:
    for x, y in zip(one, other, strict=False):
        x, y = (value[:rows] if rows and value.dim() else value for value in (x, y))
        if x.shape != y.shape or not x.is_floating_point():
            continue
        largest = max(float(x.abs().max()), float(y.abs().max()), 1e-30) if x.numel() else 1.0
        if not float((x - y).abs().max() if x.numel() else 0) <= SAME * largest:
            return False
    return True


def _norm_of(network: nn.Module) -> str:
    """The first norm over the batch, which needs more than one image."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return f"{name} ({type(module).__name__})"
    return type(network).__name__
