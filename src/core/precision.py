"""In which precision things are computed, which is decided here alone; and what a device is, for results.

All that is reported is float32, with float64 where a sum or a decomposition says so. Training is float32, too, unless
`--tf32` or `--amp` asks for less.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from src.core.errors import UserError

OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # of some containers: matrix products are TF32 unless somebody asks again
AMPERE = (8, 0)  # the first GPUs that multiply TF32


@contextlib.contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """A context in which GPUs may round the factors of float32 products and convolutions to 10 bits (TF32), or not.

    Otherwise torch rounds those of convolutions and not those of matrices, and a container may say that it rounds all.
    Raises UserError where it would do so all the same.
    """
    backends: tuple[Any, Any] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = tf32
        if not tf32 and any(backend.allow_tf32 for backend in backends):
            raise UserError(f"float32 products are rounded to TF32 on this machine; unset {OVERRIDE}")
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@contextlib.contextmanager
def repeatable(*, enabled: bool) -> Iterator[None]:
    """A context in which convolutions on a GPU give the same bits each time, if `enabled`."""
    backend: Any = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    try:
        if enabled:
            backend.deterministic, backend.benchmark = True, False
        yield
    finally:
        backend.deterministic, backend.benchmark = before


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """A context, or decorator, in which GPUs multiply float32 numbers as they are: of all that is reported."""
    with products(tf32=False):
        yield


def mixed_precision(device: torch.device, *, enabled: bool) -> torch.autocast:
    """A context in which matrix products and convolutions run in bfloat16 on the device, if `enabled`.

    Bfloat16 has the range of float32, so gradients need no scaling.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products; also True where that is not known."""
    known = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return known.get("architecture") != "x86_64" or bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def require_tf32(device: torch.device) -> None:
    """Raise UserError where TF32 is asked for on a device that has none."""
    if device.type != "cuda":
        raise UserError(f"--tf32 is of GPUs of NVIDIA, and this is {device.type}; leave it out")
    if torch.cuda.get_device_capability(device) < AMPERE:
        raise UserError(f"--tf32: {torch.cuda.get_device_name(device)} does not multiply TF32; leave it out")


@functools.cache
def device_facts(device: torch.device) -> dict[str, Any]:
    """What tells results of a device from those of others: its name, torch and CUDA; {} of processors.

    A processor's own keys and results say nothing of it, as they always did.
    """
    if device.type == "cpu":
        return {}
    facts = {"kind": device.type, "name": device.type, "torch": str(torch.__version__), "cuda": torch.version.cuda}
    if device.type == "cuda":
        facts["name"] = torch.cuda.get_device_name(device)
    return facts
