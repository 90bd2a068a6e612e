"""Where the data sets are, and which device computes."""

import os
import re
from pathlib import Path

import torch
from dotenv import dotenv_values

from src.core.errors import UserError

CONFIG_FILE = Path(__file__).resolve().parents[2] / "config" / "default.env"
DECODERS = 8  # processes that decode images, at most
MEMORY = 8e9  # bytes of activations or moments that are held at once, where nobody says another number


def data_root(kind: str, config_file: Path = CONFIG_FILE) -> Path:
    """Folder of the data sets of one kind, `pytorch` or `celeba`.

    The environment variable DATASET_ROOT_<KIND> wins over the entry of the configuration file.
    Raises UserError where neither names a folder.
    """
    variable = f"DATASET_ROOT_{kind.upper()}"
    value = os.environ.get(variable, "").strip() or (_read(config_file).get(kind) or "").strip()
    if not value:
        raise UserError(f"no folder for the {kind} data sets; set {kind} in {config_file} or {variable}")
    try:
        return Path(value).expanduser()
    except RuntimeError:  # ~somebody, whom this machine does not know
        raise UserError(f"no home folder for {value}; mend {kind} in {config_file} or {variable}") from None


def _read(config_file: Path) -> dict[str, str | None]:
    try:
        # the section header is to dotenv a variable without a value; editors may have put a mark before it
        return dotenv_values(config_file, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{config_file} is no UTF-8 text") from None


def usable_cores() -> int:
    """Cores that this process may use: in a container, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoders_of(workers: int = 1) -> int:
    """Processes that decode images for each of so many that share the cores: a few for one, never none."""
    return max(1, min(DECODERS, usable_cores() // workers))


def gpu_numbers() -> list[int]:
    """The GPUs that this process sees, by the numbers that they have where nobody hides any; [] without any."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    if count and len(asked) >= count and all(text.strip().isdecimal() for text in asked[:count]):
        return [int(text) for text in asked[:count]]
    return list(range(count))


def choose_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that exists here, or raise UserError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    match = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name, re.ASCII)
    if not match:
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    # before torch.device sees the number: it takes cuda:256 for cuda:0
    if name.startswith("cuda") and int(match[1] or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} asked for, but {torch.cuda.device_count()} GPUs found; try --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' asked for, but there is none; try --device cpu")
    return torch.device(name)
