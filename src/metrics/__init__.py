"""How two representations are compared: tensors in, numbers out."""

from src.metrics.cka import linear_cka
from src.metrics.functional import FUNCTIONAL
from src.metrics.grid import Cell, Grid
from src.metrics.health import Health
from src.metrics.moments import PairedMoments, channels_last_rows, flat_rows
from src.metrics.registry import MEASURES, METRICS, Metric

__all__ = [
    "FUNCTIONAL",
    "MEASURES",
    "METRICS",
    "Cell",
    "Grid",
    "Health",
    "Metric",
    "PairedMoments",
    "channels_last_rows",
    "flat_rows",
    "linear_cka",
]
