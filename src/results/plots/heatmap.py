"""Maps of values over rows and columns: pictures of comparisons, of sets of stitches, and charts of studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from src.results.plots.style import INK, LIGHT, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

ANNOTATED = 12  # cells a side; values in more of them could not be read
COLOURS = "cividis"  # for the common kinds of colour blindness, and by lightness alone
# Inches. Annotated cells must hold five characters; others still have to keep their labels apart.
LARGE_CELL, SMALL_CELL, LETTER = 0.5, 0.17, 0.075
DARK = 0.48  # luminance below which a cell is written upon in white


def map_size(rows: Sequence[str], columns: Sequence[str]) -> tuple[float, float]:
    """Inches (width, height) that a map takes, with its labels."""
    cell = _cell(rows, columns)
    label = LETTER * max(map(len, (*rows, *columns)))
    return cell * len(columns) + label, cell * len(rows) + label


def _cell(rows: Sequence[str], columns: Sequence[str]) -> float:
    return LARGE_CELL if max(len(rows), len(columns)) <= ANNOTATED else SMALL_CELL


def two_decimals(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0e}".replace("e+0", "e")


def draw_map(
    axes: Axes,
    table: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    higher_is_better: bool = True,
    framed: bool = True,
    text: Callable[[float], str] = two_decimals,
) -> AxesImage:
    """Draw `table`, (rows, columns), with colours from `low` to `high`; NaN is grey.

    Light is better. framed: the best of each row has a frame. text: what is written into cells, where these are few.
    """
    from matplotlib import colormaps

    colours = colormaps[COLOURS if higher_is_better else f"{COLOURS}_r"].with_extremes(bad=LIGHT)
    image = axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    beside = LETTER * (1 + max(map(len, columns))) <= _cell(rows, columns)
    axes.set_xticks(range(len(columns)), columns, rotation=0 if beside else 90)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    if framed:
        _frame_best(axes, table, higher_is_better)
    if max(table.shape) <= ANNOTATED:
        _write_values(axes, image, table, text)
    return image


def draw_scale(figure: Figure, image: AxesImage, axes: Any, label: str, *, extend: str = "neither") -> None:
    """Put the scale of a map's colours beside one or several axes; `extend` says where values go beyond it."""
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=24, pad=0.02, extend=extend)
    bar.set_label(label, fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL)


def _frame_best(axes: Axes, table: np.ndarray, higher: bool) -> None:
    """Put a frame around the best of each row that has anything to choose from."""
    from matplotlib.patches import Rectangle

    thin = 1 if max(table.shape) <= ANNOTATED else 0.5
    for i, row in enumerate(table):
        if np.isfinite(row).sum() < 2:
            continue
        best = int(np.nanargmax(row) if higher else np.nanargmin(row))
        for colour, width in (("white", 4 * thin), (INK, 2 * thin)):  # a dark frame alone would be lost on dark cells
            corner = (best - 0.46, i - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=colour, linewidth=width))


def _write_values(axes: Axes, image: AxesImage, table: np.ndarray, text: Callable[[float], str]) -> None:
    """Write each value into its cell."""
    for i, row in enumerate(table):
        for j in np.flatnonzero(~np.isnan(row)):
            red, green, blue, _ = image.cmap(image.norm(row[j]))
            ink = "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < DARK else INK
            axes.text(int(j), i, text(float(row[j])), ha="center", va="center", fontsize=SMALL, color=ink)
