"""How two representations are compared: tensors in, numbers out."""

from src.metrics.cka import linear_cka
from src.metrics.comparison import Comparison
from src.metrics.health import Health
from src.metrics.moments import PairedMoments, channels_last_rows, flat_rows
from src.metrics.registry import METRICS, Metric

__all__ = [
    "METRICS",
    "Comparison",
    "Health",
    "Metric",
    "PairedMoments",
    "channels_last_rows",
    "flat_rows",
    "linear_cka",
]
