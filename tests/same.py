"""Equality of what results hold."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.testing import assert_close


def assert_same(first: Any, second: Any) -> None:
    """Bit for bit, in values, types, order of keys and memory layout."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, pd.DataFrame):
        # text is of pandas' own kind or plain objects, as its version likes it
        pd.testing.assert_frame_equal(first, second, check_column_type=False, check_index_type=False, check_exact=True)
    elif isinstance(first, pd.Series):
        pd.testing.assert_series_equal(first, second, check_exact=True)
    elif isinstance(first, pd.Index):
        pd.testing.assert_index_equal(first, second)
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        assert first.flags.f_contiguous == second.flags.f_contiguous
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, torch.Tensor):
        assert_close(first, second, rtol=0, atol=0)
    else:
        assert first == second
