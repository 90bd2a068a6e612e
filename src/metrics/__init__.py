"""How two representations are compared: tensors in, numbers out."""

from src.metrics.algebra.moments import PairedMoments, channels_last_rows, flat_rows
from src.metrics.cka import linear_cka
from src.metrics.diagnostics import Diagnostics
from src.metrics.engine.grid import Cell, Grid
from src.metrics.functional import FUNCTIONAL
from src.metrics.registry import MEASURES, METRICS, Metric

__all__ = [
    "FUNCTIONAL",
    "MEASURES",
    "METRICS",
    "Cell",
    "Grid",
    "Diagnostics",
    "Metric",
    "PairedMoments",
    "channels_last_rows",
    "flat_rows",
    "linear_cka",
]
