"""What a weight file holds: a state dict, under whatever wrapper, and what it says of itself."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from src.core.errors import UserError
from src.core.files import read_bytes
from src.core.tensor_files import Skipped, parse_safetensors, parse_tensors
from src.core.text import in_line
from src.dataset import canonical_dataset
from src.models import canonical_name
from src.networks.weight_facts import WeightFacts, check_state

TRAINING = ("init_seed", "gradient_seed", "iteration", "recipe", "train_fraction", "shuffle_labels", "adversarial")
_METADATA = ("model", "dataset", "init_seed", "gradient_seed", "iteration", "recipe", "preprocessing", "labels")
_NUMBER = r"\d+(?:\.\d+)?(?:e-\d+)?"
_SEEDS = re.compile(rf"in(\d+)-gn(\d+)(?:-f({_NUMBER}))?(?:-s({_NUMBER}))?(?:-adv({_NUMBER}))?")
# under which others keep weights, and averaged ones, beside what they know of a training
RAW = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
AVERAGED = (
    *("state_dict_ema", "model_ema_state_dict", "ema_state_dict", "model_ema", "ema_model", "ema", "params_ema"),
    *("swa_state_dict", "swa_model", "averaged_model"),
)
_DEPTH = 4  # wrappers within wrappers


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A state dict and the `facts` that metadata, or the path in our own layout, tell of it; None for what is unsaid.

    `source_sha256` is of the Python file that built the network, where one did, and `notes` say what was taken off.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    facts: dict[str, Any]
    has_metadata: bool = False
    source_sha256: str | None = None
    notes: tuple[str, ...] = ()


def read_weights(path: Path, *, averaged: bool = False) -> WeightFile:
    """Read a weight file, running nothing in it; with `averaged` the averaged weights of one that has both.

    Raises FileNotFoundError, or UserError with one line on what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}")
    content = read_bytes(path)
    try:
        record = parse_safetensors(content) if path.suffix == ".safetensors" else parse_tensors(content, skip=True)
    except UserError as error:
        raise UserError(f"{path} is no weight file, or a damaged one: {in_line(str(error))}") from None
    digest = hashlib.sha256(content).hexdigest()
    if isinstance(record, dict) and "format" in record and "state_dict" in record:
        if averaged:
            raise _no_averaged(path)
        return _of_ours(path, digest, record)
    state, notes = _unwrapped(path, record, averaged)
    return WeightFile(path, digest, state, _facts_from_path(path), notes=notes)


def _of_ours(path: Path, digest: str, record: dict[str, Any]) -> WeightFile:
    state = check_state(path, record["state_dict"])
    if odd := next((value for key in _METADATA if isinstance(value := record.get(key), Skipped)), None):
        raise UserError(f"{path} is no weight file, or a damaged one: it asks for {odd}, which no such file needs")
    facts = WeightFacts.from_file(path, record).facts()
    return WeightFile(path, digest, state, facts, True, record.get("source_sha256"))


def _unwrapped(path: Path, record: Any, averaged: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in what a training wrote, and a note of where it was."""
    value, taken, note = record, [], ""
    for _ in range(_DEPTH):
        _refuse_module(path, value)
        held = {key: inner for key in (*RAW, *AVERAGED) if _may_hold(inner := _get(value, key))}
        raw, mean = (next((key for key in keys if key in held), None) for keys in (RAW, AVERAGED))
        if not held:
            break
        if averaged and not mean and not set(taken) & set(AVERAGED) and not raw:
            break
        key = (mean or raw) if averaged else (raw or mean)
        if raw and mean:
            note = f"; the averaged ones are under {mean!r}: ?weights=ema" * (not averaged)
        elif mean and not raw:
            note = ", which are averaged; there are no others"
        value = held[key or ""]
        taken.append(key or "")
    _refuse_module(path, value)
    state = _state_in(value)
    if not state:
        raise UserError(f"{path} holds no state dict of tensors")
    state = check_state(path, state)
    behind = {part for name in state for part in name.split(".")[:_DEPTH]}  # a prefix may say it as well
    if averaged and not (set(taken) | behind) & set(AVERAGED):
        raise _no_averaged(path)
    if not taken:
        return state, ()
    return state, (f"{path}: the weights under {'.'.join(taken)!r} are taken{note}",)


def _no_averaged(path: Path) -> UserError:
    return UserError(f"{path} holds no averaged weights; leave out ?weights=ema")


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _may_hold(value: Any) -> bool:
    return isinstance(value, Skipped) or (isinstance(value, Mapping) and len(value) > 0)


def _refuse_module(path: Path, value: Any) -> None:
    if isinstance(value, Skipped):
        raise UserError(
            f"{path} holds a whole {value}, which nothing here unpickles; where it is from, save its weights alone: "
            "torch.save(network.state_dict(), 'weights.pt')"
        )


def _state_in(value: Any) -> dict[str, Tensor] | None:
    """The tensors of a state dict; what stands beside them under a plain word (`epoch`) is left out."""
    if not isinstance(value, Mapping):
        return None
    tensors = {name: one for name, one in value.items() if isinstance(one, Tensor) and isinstance(name, str)}
    others = [name for name in value if name not in tensors]
    return None if any(not isinstance(name, str) or "." in name for name in others) else tensors


def _facts_from_path(path: Path) -> dict[str, Any]:
    """What <Model>/<Dataset>/in<i>-gn<j>.../<iteration>.pt tells, all of it or nothing: other folders mean nothing.

    Links are not followed, since where they lead need not be named after a network.
    """
    facts: dict[str, Any] = dict.fromkeys(_METADATA)
    model, dataset, seeds = ("", "", "", *Path(os.path.abspath(path)).parts)[-4:-1]
    if not (match := _SEEDS.fullmatch(seeds)):
        return facts
    try:
        facts["model"], facts["dataset"] = canonical_name(model), canonical_dataset(dataset)
    except UserError:
        return dict.fromkeys(_METADATA)
    facts["iteration"] = int(path.stem) if path.stem.isdecimal() else None
    facts["init_seed"], facts["gradient_seed"] = int(match[1]), int(match[2])
    facts["train_fraction"], facts["shuffle_labels"] = float(match[3] or 1), float(match[4] or 0)
    facts["adversarial"] = float(match[5] or 0)
    return facts
