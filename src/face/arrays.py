"""Arrays of any library as those of ours."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.errors import UserError, first_line


def array_of(value: Any, called: str) -> np.ndarray:
    """An array of numpy, torch or anything with `__array__`; bfloat16 as float32. Raises UserError for what is none."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        return value.numpy()
    try:
        array = np.asarray(value)
    except Exception as error:  # somebody else's __array__
        raise UserError(f"{called} is no array: {type(error).__name__}: {first_line(error)}") from None
    if array.dtype.name == "bfloat16":  # of ml_dtypes, as jax has it
        return array.astype(np.float32)
    if array.dtype.hasobject:
        raise UserError(f"{called} is a {type(value).__name__} of objects, not of numbers")
    return array


def tensor_of(value: Any, called: str) -> Tensor:
    """The same as a tensor; one of torch stays where it is."""
    if isinstance(value, Tensor):
        return value.detach()
    array = array_of(value, called)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
