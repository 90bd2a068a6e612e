"""A weight file <-> a network, its architecture, its data set and its seeds."""

import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.dataset import DATASETS, DatasetSpec, canonical_dataset
from src.files import atomic_write
from src.models import build_model, canonical_name, folder_name

FORMAT = 1
_METADATA = ("model", "dataset", "init_seed", "gradient_seed", "iteration", "recipe")
_SEEDS = re.compile(r"in(\d+)-gn(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained network with what its file says of itself; seeds, iteration and recipe are None where it does not."""

    network: nn.Module
    model: str
    dataset: str
    path: Path
    init_seed: int | None = None
    gradient_seed: int | None = None
    iteration: int | None = None
    recipe: dict[str, Any] | None = None
    sha256: str = ""

    @property
    def spec(self) -> DatasetSpec:
        return DATASETS[self.dataset]

    @property
    def sample(self) -> Tensor:
        """Two blank images of the size that the network expects: enough to learn the shapes of its layers."""
        return torch.zeros(2, self.spec.channels, self.spec.size, self.spec.size)


def weight_folder(out_dir: Path, model: str, dataset: str, init_seed: int, gradient_seed: int) -> Path:
    """Where the weights of one training run belong: <out>/<Model>/<Dataset>/in<i>-gn<j>."""
    return out_dir / folder_name(model) / DATASETS[dataset].folder / f"in{init_seed}-gn{gradient_seed}"


def save(
    path: Path,
    network: nn.Module,
    *,
    model: str,
    dataset: str,
    init_seed: int,
    gradient_seed: int,
    iteration: int,
    recipe: dict[str, Any],
) -> None:
    """Write the network's state with its metadata, atomically; readable with `weights_only=True`.

    `recipe` holds the options that the network was trained with, as built-in values.
    """
    record = {
        "format": FORMAT,
        "model": model,
        "dataset": dataset,
        "init_seed": init_seed,
        "gradient_seed": gradient_seed,
        "iteration": iteration,
        "recipe": recipe,
        "state_dict": {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()},
    }
    with atomic_write(path) as file:
        torch.save(record, file)


def load(path: Path | str, *, model: str | None = None, dataset: str | None = None) -> Checkpoint:
    """Rebuild the network of a weight file, on the CPU, in eval mode.

    The metadata in the file say which architecture and data set it is for; for a plain state dict its path does
    (<Model>/<Dataset>/in<i>-gn<j>/<iteration>.pt), and `model` and `dataset` fill in what the path lacks.
    Raises FileNotFoundError, or ValueError with one line on what is wrong or missing.
    """
    path = Path(path)
    record = _read(path)
    if "state_dict" in record:
        known = {key: record.get(key) for key in _METADATA}
        state = record["state_dict"]
    else:
        known, state = _facts_from_path(path), record
    model = _agree(path, "model", known.pop("model"), model and canonical_name(model))
    dataset = _agree(path, "dataset", known.pop("dataset"), dataset and canonical_dataset(dataset))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    spec = DATASETS[dataset]
    network = build_model(model, channels=spec.channels, classes=spec.classes, size=spec.size)
    _fill(network, state, f"{path} does not fit {model} on {dataset}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Checkpoint(network.eval(), model, dataset, path, sha256=digest, **known)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no weight file, or a damaged one: {reason}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no state dict")
    return dict(record)


def _facts_from_path(path: Path) -> dict[str, Any]:
    """What <Model>/<Dataset>/in<i>-gn<j>/<iteration>.pt tells; None for each part that tells nothing."""
    facts: dict[str, Any] = dict.fromkeys(("model", "dataset", "init_seed", "gradient_seed"))
    facts["iteration"] = int(path.stem) if path.stem.isdigit() else None
    # the seeds' folder may be missing, so every folder of the path is asked, the nearest first
    for folder in path.resolve().parts[-2::-1][:3]:
        if seeds := _SEEDS.fullmatch(folder):
            facts["init_seed"], facts["gradient_seed"] = (int(seed) for seed in seeds.groups())
        for key, canonical in (("model", canonical_name), ("dataset", canonical_dataset)):
            try:
                facts[key] = facts[key] or canonical(folder)
            except ValueError:
                continue
    return facts


def _agree(path: Path, what: str, found: str | None, given: str | None) -> str:
    if found and given and found != given:
        raise ValueError(f"{path} is for the {what} {found}, not {given}")
    if not (found or given):
        raise ValueError(
            f"{path} does not say its {what}; keep it below <Model>/<Dataset>/in<i>-gn<j>/ or name the {what}"
        )
    return found or given or ""


def _fill(network: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    """Load a state dict; refuse another architecture's, other shapes or kinds, and values that are not finite."""
    expected = network.state_dict()
    for name in expected.keys() & state.keys():
        if state[name].shape != expected[name].shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
            raise ValueError(f"{complaint}: {name} has the shape {shapes}")
        if state[name].is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{complaint}: {name} is {state[name].dtype}, expected {expected[name].dtype}")
        if not state[name].isfinite().all():
            raise ValueError(f"{complaint}: {name} holds values that are not finite")
    missing, unexpected = network.load_state_dict(state, strict=False)
    for names, what in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            raise ValueError(f"{complaint}: {names[0]} is {what}" + f" and {len(names) - 1} more" * (len(names) > 1))
