"""Digests of built-in values."""

import hashlib
import json
from typing import Any


def digest(record: Any) -> str:
    """SHA-256 of built-in values, in hexadecimal."""
    text = json.dumps(_exact(record), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _exact(value: Any) -> Any:
    """The same with floating-point numbers spelled to the last bit, and apart from whole ones."""
    if isinstance(value, float):
        return f"float {value.hex()}"
    if isinstance(value, dict):
        return {str(key): _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    return value
