"""What all pictures share: colours safe for colour-blind eyes, sizes of letters, and how a file is written."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from src.core.errors import UserError
from src.core.files import atomic_write
from src.core.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
DPI = 130
# Points, for pictures about 9 inches wide: about 12 pixels high where a page shows them 840 pixels wide.
SMALL, NORMAL, LARGE = 9, 10, 11.5
# Okabe and Ito's palette: distinct for the common kinds of colour blindness.
ORANGE, BLUE, GREEN, INK, GREY, LIGHT = "#E69F00", "#0072B2", "#009E73", "#222222", "#8C8C8C", "#DDDDDD"


def require_matplotlib() -> None:
    """Raise UserError, with the remedy, where matplotlib is absent."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install -r requirements-plots.txt") from None


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """A white figure, in inches, that belongs to no window and to no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    if title:
        figure.suptitle(textwrap.fill(title, int(11 * width)), fontsize=LARGE, color=INK)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, PDF or SVG file, as its ending says, atomically; equal figures make equal files."""
    with atomic_write(path) as file:
        write(figure, file, path.suffix.removeprefix("."))


def write(figure: Figure, file: IO[bytes], kind: str) -> None:
    """Write one of FORMATS into an open file; equal figures make equal bytes."""
    from matplotlib import rc_context

    _show_plainly(figure)
    # dates out, and names of parts from what they are; texts stay texts, which readers and editors can search
    options: dict[str, Any] = {
        "png": {"pil_kwargs": {"optimize": True}},
        "pdf": {"metadata": {"CreationDate": None}},
        "svg": {"metadata": {"Date": None}},
    }[kind]
    with rc_context({"svg.hashsalt": "0", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, dpi=DPI, **options)


def _show_plainly(figure: Figure) -> None:
    """Texts of files as they are, whatever they hold: no control character, and no formula."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            if isinstance(formatter := axis.get_major_formatter(), FixedFormatter):
                formatter.seq = [visible(label) for label in formatter.seq]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(visible(text.get_text()))
        text.set_parse_math(False)


def finish(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str = "") -> None:
    """Title and labels of one panel; `grid` names the axis that has faint lines: "x", "y", "both" or none."""
    if title:
        axes.set_title(title, fontsize=NORMAL, color=INK)
    axes.set_xlabel(x, fontsize=SMALL, color=INK)
    axes.set_ylabel(y, fontsize=SMALL, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK)
    if grid:
        axes.grid(True, axis=grid, color=LIGHT, linewidth=0.6)  # pyright: ignore[reportArgumentType]
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(*axes: Axis) -> None:
    """Ticks at whole numbers only, at most six of them."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def logarithmic(axes: Axes) -> None:
    """A logarithmic scale upwards, its ticks in plain numbers: no text of a picture is read as formulas."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, **options: Any) -> None:
    axes.legend(fontsize=SMALL, frameon=False, handlelength=1.6, borderaxespad=0.2, **options)


def empty(axes: Axes, text: str) -> None:
    """A panel that says why it shows nothing."""
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=SMALL, color=INK, transform=axes.transAxes, wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])
