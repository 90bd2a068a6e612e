"""What sections make their tables of: rows of pairs of networks, and values in words with their intervals."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from src.studies.frames import ENDS, NETWORKS, Frame
from src.studies.means import with_intervals

DIGITS = 5  # that a file of results keeps
Rows = list[list[str]]


def named(frame: Frame, columns: Mapping[str, str]) -> Frame:
    """Some columns of a frame, called otherwise: {new: old}; the two networks come first."""
    chosen = frame[[*ENDS, *columns.values()]].copy()
    chosen.columns = [*ENDS, *columns]
    for end in ENDS:
        chosen[end] = [short_name(name) for name in chosen[end]]
    return chosen


def short_name(network: str) -> str:
    """A network by its seed, where that of its weights and that of its batches are the same: tiny10 in0-gn0 is in0."""
    return re.sub(r" in(\d+)-gn\1(?=-|$)", r" in\1", network)


def relative(frame: Frame, columns: Iterable[str]) -> Frame:
    """The same frame with accuracies as shares of that of the end network."""
    return frame.assign(**{name: frame[name] / frame["accuracy_end"] for name in columns})


def in_order(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they come."""
    return list(dict.fromkeys(values))


def one_order(comparisons: Frame) -> Frame:
    """Each two networks in the order in which they come first: the other says the same, turned round."""
    first: dict[frozenset[str], tuple[str, str]] = {}
    pairs = zip(comparisons[NETWORKS[0]], comparisons[NETWORKS[1]], strict=True)
    return comparisons[[first.setdefault(frozenset(pair), pair) == pair for pair in pairs]]


def means(frame: Frame, keys: Sequence[str], measures: Sequence[str]) -> Frame:
    """Means with intervals over networks, of values that are bounded by nothing."""
    return with_intervals(frame, keys, measures, unbounded=measures)


def cell(row: Mapping[Any, Any], name: str, *, scale: float = 100, digits: int = 1, signed: bool = False) -> str:
    """A mean and its interval, in percent or points unless said otherwise."""
    return spanned(row[name], row[f"{name}_low"], row[f"{name}_high"], scale=scale, digits=digits, signed=signed)


def spanned(value: float, low: float, high: float, *, scale: float = 1, digits: int = 2, signed: bool = False) -> str:
    """A value and the ends of its interval, where it has one."""
    if math.isnan(value):
        return ""
    sign = "+" if signed else ""
    mean, least, most = (f"{scale * one:{sign}.{digits}f}" for one in (value, low, high))
    return mean if math.isnan(low) else f"{mean} [{least}, {most}]"


def plain(value: float, *, scale: float = 100, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{scale * value:.{digits}f}"


def percent(values: Any) -> list[float]:
    return [100 * float(value) for value in np.asarray(values, float)]


def of_correlation(value: Any, half: Any) -> tuple[Any, Any]:
    """The ends of an interval of a correlation, from half its width: on Fisher's scale, so that they stay below 1."""
    inside = np.clip(value, -0.999999, 0.999999)
    centre, reach = np.arctanh(inside), half / (1 - inside**2)
    return np.tanh(centre - reach), np.tanh(centre + reach)
