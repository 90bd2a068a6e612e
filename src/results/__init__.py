"""Result files: safe reading, atomic writing, and where each number came from.

A result is a pickle of built-in containers, numpy arrays and pandas frames, so that it opens anywhere. Pickles can run
code when they are opened; `read` opens them without running anything (see `reader`).
"""

import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch

from src.core.errors import UserError
from src.core.files import make_folder
from src.core.precision import device_facts
from src.results.frame import keep_row, table
from src.results.storage import FORMAT, read, write

__all__ = ["FORMAT", "keep_row", "provenance", "read", "run_folder", "table", "write"]


def run_folder(out_dir: Path, run_name: str | None) -> Path:
    """Make the folder of a run; without a name it gets the local date and time, and is shared with no other run.

    Raises UserError for a name that leads out of the folder of all runs.
    """
    if run_name:
        if Path(run_name).is_absolute() or ".." in Path(run_name).parts:
            raise UserError(f"--run-name {run_name} leads out of {out_dir}; choose another folder of all runs with -o")
        folder = out_dir / run_name
        make_folder(folder)
        return folder
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    make_folder(out_dir)
    for attempt in range(1, 1000):
        folder = out_dir / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{out_dir / stamp} and its successors exist already; give --run-name")


def provenance(device: torch.device | None = None, *, tf32: bool = False) -> dict[str, Any]:
    """Branch and commit of the code (None outside a checkout), libraries' versions, and the command line that runs.

    Of another device than the processor also `device`: what it is, and whether training rounded to TF32.
    """
    facts = device_facts(device) if device else {}
    commit, branch = (_git("rev-parse", "HEAD", "--abbrev-ref", "HEAD") or [None, None])[:2]
    return {
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in (torch, np, scipy, pd)},
        },
        "git": {"branch": branch, "commit": commit},
        "runner_code": shlex.join(["python", *sys.argv]),
        **({"device": {**facts, "tf32": tf32}} if facts else {}),
    }


def _git(*arguments: str) -> list[str] | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines if done.returncode == 0 and len(lines) == 2 else None
