"""Figures of matplotlib as parts of a page: SVG whose marks say what they show and lead to rows of the page's table."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from src.core.errors import UserError
from src.results.plots.style import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Target = tuple[str, Sequence[int]]  # what a mark says, and the rows of the table behind it
MOST_MARKS = 2000  # in one chart; of those that only say what they show, fewer
MOST_SAYINGS = 400
HIT = 60  # square points around a value that take a click
FONTS = "DejaVu Sans, Verdana, sans-serif"  # Verdana is as wide, where a reader lacks the one that was measured
_LINK = re.compile(r'<a xlink:href="mark:(\d+)"[^>]*>(.*?)</a>', re.DOTALL)
_PLACES = re.compile(r' (?:d|x|y|transform)="[^"]*"')
_ID = re.compile(r' id="| xlink:href="#|url\(#')


@contextmanager
def drawing() -> Iterator[None]:
    """A context in which charts are drawn: every text is shown as it is, also with dollars in it.

    Raises UserError, with the remedy, where matplotlib is absent.
    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise UserError("matplotlib is not installed: pip install -r requirements-studies.txt") from None
    with matplotlib.rc_context({"text.parse_math": False}):
        yield


class Chart:
    """A figure and its marks."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self._targets: list[Target] = []

    def mark_points(self, axes: Axes, x: Sequence[float], y: Sequence[float], targets: Sequence[Target]) -> None:
        """Let what is drawn around points say and lead to their targets."""
        style: Any = {"facecolors": "white", "alpha": 0, "linewidths": 0, "clip_on": False, "zorder": 9}
        axes.scatter(x, y, s=HIT, urls=self._links(targets), **style)

    def mark_cells(self, axes: Axes, targets: Mapping[tuple[int, int], Target]) -> None:
        """The same of cells of a map, by row and column."""
        from matplotlib.collections import PolyCollection

        corners = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
        squares = [[(j + x, i + y) for x, y in corners] for i, j in targets]
        links = self._links(list(targets.values()))
        axes.add_collection(PolyCollection(squares, facecolors="white", alpha=0, linewidths=0, urls=links, zorder=9))

    def _links(self, targets: Sequence[Target]) -> list[str]:
        first = len(self._targets)
        self._targets += targets
        return [f"mark:{first + number}" for number in range(len(targets))]

    def svg(self, name: str) -> str:
        """The picture as an element of a page, in which no other has ids that begin with `name`."""
        file = io.BytesIO()
        write(self.figure, file, "svg")
        text = file.getvalue().decode()
        text = text[text.index("<svg") :]
        for part in ("<!--.*?-->", "<metadata>.*?</metadata>", "<style.*?</style>"):
            text = re.sub(part, "", text, flags=re.DOTALL)
        text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
        text = re.sub(r"'DejaVu Sans',[^;\"]*", FONTS, text)
        text = _PLACES.sub(lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), text)
        text = _ID.sub(lambda match: f"{match[0]}{name}-", text)
        return _LINK.sub(self._element, text)

    def _element(self, match: re.Match[str]) -> str:
        """A mark of the picture, with what it says, and its link where it has rows."""
        text, rows = self._targets[int(match[1])]
        title = f"<title>{escape(text)}</title>{match[2]}"
        if not len(rows):
            return f'<g class="mark">{title}</g>'
        return f'<a class="mark" href="#rows={",".join(map(str, rows))}">{title}</a>'
