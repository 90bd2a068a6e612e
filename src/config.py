"""Where the data sets are and which device computes."""

import os
from io import StringIO
from pathlib import Path

import torch
from dotenv import dotenv_values

CONFIG_FILE = Path(__file__).resolve().parent.parent / "config" / "default.env"


def data_root(kind: str, config_file: Path = CONFIG_FILE) -> Path:
    """Folder of the data sets of one kind, `pytorch` or `celeba`.

    The environment variable DATASET_ROOT_<KIND> wins over the entry of the configuration file.
    Raises ValueError where neither names a folder.
    """
    variable = f"DATASET_ROOT_{kind.upper()}"
    value = os.environ.get(variable) or _read(config_file).get(kind)
    if not value:
        raise ValueError(f"no folder for the {kind} data sets; set {kind} in {config_file} or {variable}")
    return Path(value).expanduser()


def _read(config_file: Path) -> dict[str, str | None]:
    if not config_file.is_file():
        return {}
    lines = config_file.read_text(encoding="utf-8").splitlines()
    # the section header is no dotenv syntax
    assignments = [line for line in lines if not line.lstrip().startswith("[")]
    return dotenv_values(stream=StringIO("\n".join(assignments)))


def choose_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that exists here, or raise ValueError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} asked for, but {torch.cuda.device_count()} GPUs found; try --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' asked for, but there is none; try --device cpu")
    return device
