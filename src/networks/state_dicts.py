"""A state dict into a network: prefixes of wrappers, tied weights, heads of another size, and what does not fit."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from src.core.errors import UserError

State = dict[str, Tensor]
Tell = Callable[[str], None]
# what DataParallel, torch.compile, Lightning and others put before names; behind them those of averaged weights
RAW = ("module.", "_orig_mod.", "model.", "net.", "network.", "_forward_module.")
AVERAGED = ("ema.", "ema_model.", "model_ema.", "averaged_model.", "swa_model.")
AUXILIARY = ("AuxLogits", "aux1", "aux2")  # heads of torchvision's Inceptions
_DEPTH, _SHOWN = 3, 3


def silent(line: str) -> None:
    pass


def fill(
    network: nn.Module, state: State, complaint: str, *, on_message: Tell = silent, averaged: bool = False
) -> None:
    """Load a state dict; refuse another architecture's, other shapes or kinds, and values that are not finite.

    Prefixes that known wrappers leave are taken off, of which `on_message` hears; with `averaged` those of averaged
    weights are looked for first.
    """
    own = network.state_dict()
    state = _with_tied(own, matched(own, state, complaint, on_message, averaged))
    for name, wanted in own.items():
        if name not in state:
            continue  # the network itself says below whether it can do without
        value = state[name]
        require_shape(name, value, wanted, complaint)
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_complex() or value.is_floating_point() != wanted.is_floating_point():
            raise UserError(f"{complaint}: {name} is {value.type()}, expected {wanted.dtype}")
        if value.is_floating_point() and value.dtype.itemsize == 1:  # torch has few functions of these
            value = value.float()
        if not value.isfinite().all():
            raise UserError(f"{complaint}: {name} holds values that are not finite")
    if absent := [head for head in optional_heads(network) if not any(name.startswith(f"{head}.") for name in state)]:
        leave_out(network, absent)
    missing, unexpected = network.load_state_dict(state, strict=False)
    unexpected = [name for name in unexpected if not name.startswith(tuple(f"{head}." for head in AUXILIARY))]
    if not missing and not unexpected:
        return
    names, what = (missing, "missing") if missing else (unexpected, "unexpected")
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    both = f"; it has {_some(unexpected)} where {_some(missing)} are wanted" if missing and unexpected else ""
    raise UserError(f"{complaint}: {names[0]} is {what}{more}{both}")


def require_shape(name: str, value: Tensor, wanted: Tensor, complaint: str) -> None:
    """Refuse a tensor of another shape than that of a network."""
    if value.is_nested:
        raise UserError(f"{complaint}: {name} is {value.type()}, expected {wanted.dtype}")
    if value.shape != wanted.shape:
        raise UserError(f"{complaint}: {name} has the shape {tuple(value.shape)}, expected {tuple(wanted.shape)}")


def optional_heads(network: nn.Module) -> tuple[str, ...]:
    """The auxiliary heads of a network, which serve its training alone."""
    return tuple(head for head in AUXILIARY if isinstance(getattr(network, head, None), nn.Module))


def leave_out(network: nn.Module, heads: Iterable[str]) -> None:
    """Take auxiliary heads away, as torchvision itself does."""
    for head in heads:
        setattr(network, head, None)
        vars(network)["aux_logits"] = False


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def head_of(network: nn.Module) -> str:
    """The name of the last linear layer, which decides between classes; UserError where there is none."""
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise UserError(f"{type(network).__name__} has no linear layer, so no head")
    return heads[-1]


def fill_body(network: nn.Module, state: State, complaint: str, *, on_message: Tell = silent) -> str | None:
    """Load a state dict whose head may differ in size, and nothing else: the head then stays as it is.

    Returns its name where it stayed, None where it came from the state dict.
    """
    own = network.state_dict()
    state = matched(own, state, complaint, on_message)
    head = head_of(network)
    parts = [name for name in own if name.startswith(f"{head}.")]
    stays = any(name in state and state[name].shape != own[name].shape for name in parts)
    if stays:
        state = state | {name: own[name] for name in parts}
    fill(network, state, complaint)
    return head if stays else None


def matched(own: State, state: State, complaint: str = "", on_message: Tell = silent, averaged: bool = False) -> State:
    """The state dict under the names of a network, where taking off prefixes makes more of them meet."""
    plain = len(own.keys() & state.keys())
    if plain == len(own):
        return state
    found = [(len(own.keys() & stripped.keys()), prefix, stripped) for prefix, stripped in _stripped(state)]
    most = max((count for count, *_ in found), default=0)
    if most <= plain:
        return state
    best = [(prefix, stripped) for count, prefix, stripped in found if count == most]
    mean = [one for one in best if one[0].startswith(AVERAGED)]
    prefix, chosen = next(iter(mean), best[0]) if averaged else next((one for one in best if one not in mean), best[0])
    note = f"{complaint.partition(' does not fit')[0]}: {prefix!r} before its names is taken off"
    if left := [name for name in state if not name.startswith(prefix) and not name.startswith(AVERAGED)]:
        note += f", and without it {_some(left)} {'are' if len(left) > 1 else 'is'} left out"
    if mean and len(mean) < len(best) and not averaged:
        note += f"; averaged weights are behind {mean[0][0]!r}: ?weights=ema"
    on_message(f"note: {note}")
    return chosen


def _stripped(state: State, before: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, State]]:
    """What is left of a state dict behind known prefixes, one after the other."""
    for prefix in (*RAW, *AVERAGED):
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner:
            yield before + prefix, _without_inner(inner)
            if depth > 1:
                yield from _stripped(inner, before + prefix, depth - 1)


def _without_inner(state: State) -> State:
    """Names without those of wrappers between them (`layer1._orig_mod.0`), where a part alone was wrapped."""
    return {name.replace("._orig_mod.", ".").removeprefix("_orig_mod."): value for name, value in state.items()}


def _with_tied(own: State, state: State) -> State:
    """The state dict with weights that a network has twice and a file once."""
    places: dict[tuple[int, torch.Size], str] = {}
    for name, value in own.items():
        if name in state and value.numel():
            places.setdefault((value.data_ptr(), value.shape), name)
    tied = {
        name: state[kept]
        for name, value in own.items()
        if name not in state and value.numel() and (kept := places.get((value.data_ptr(), value.shape)))
    }
    return state | tied
