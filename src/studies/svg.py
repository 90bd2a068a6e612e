"""Charts as SVG text: curves with intervals and maps, whose points know which rows of the table they are made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 560, 320  # of the part with the axes
LEFT, TOP, BOTTOM = 56, 14, 74
LETTER = 6.2  # pixels of a letter of 11 pixels


@dataclass(frozen=True, slots=True)
class Point:
    """A mean over some rows, with its interval, at a place of the x axis."""

    x: int
    y: float
    low: float = math.nan
    high: float = math.nan
    rows: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Series:
    label: str
    colour: str
    points: list[Point] = field(default_factory=list)
    dash: str = ""


def curves(places: Sequence[str], series: Sequence[Series], label: str, *, top: float = 1.0) -> str:
    """Lines over places, from 0 to `top` or what lies above; `label` is that of the y axis."""
    heights = [value for one in series for point in one.points for value in (point.y, point.high) if value == value]
    high = max([top, *heights])
    right = WIDTH
    legend = 60 + LETTER * max((len(one.label) for one in series), default=0)

    def x(place: float) -> float:
        return LEFT + (place + 0.5) * (right - LEFT) / max(1, len(places))

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / high

    parts = [_axes(places, x, y, high, right, label)]
    for one in series:
        shown = [point for point in one.points if point.y == point.y]
        path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in shown)
        dash = f' stroke-dasharray="{one.dash}"' if one.dash else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{one.colour}" stroke-width="1.6"{dash}/>')
        for point in shown:
            parts.append(_point(one, point, x(point.x), y))
    for number, one in enumerate(series):
        at = TOP + 8 + 17 * number
        dash = f' stroke-dasharray="{one.dash}"' if one.dash else ""
        parts.append(
            f'<line x1="{right + 14}" x2="{right + 38}" y1="{at}" y2="{at}" stroke="{one.colour}" '
            f'stroke-width="2"{dash}/>'
            f'<text x="{right + 44}" y="{at + 4}">{escape(one.label)}</text>'
        )
    height = max(HEIGHT, TOP + 17 * len(series) + 20)
    return _svg(WIDTH + legend, height, parts)


def _axes(places: Sequence[str], x, y, high: float, right: float, label: str) -> str:
    parts = []
    for step in range(6):
        value = high * step / 5
        at = y(value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    slanted = sum(map(len, places)) * LETTER > right - LEFT
    every = max(1, math.ceil(len(places) / 40))
    for number, text in enumerate(places):
        if number % every:
            continue
        turn = f' transform="rotate(-40 {x(number):.1f} {y(0) + 14:.1f})" text-anchor="end"' if slanted else ""
        anchor = turn or ' text-anchor="middle"'
        parts.append(f'<text x="{x(number):.1f}" y="{y(0) + 16:.1f}"{anchor}>{escape(text)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="14" y="{middle}" transform="rotate(-90 14 {middle})" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _point(series: Series, point: Point, at: float, y) -> str:
    bar = ""
    text = f"{series.label}: {point.y:.4g}"
    if point.low == point.low:
        low = max(0.0, point.low)
        bar = f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(low):.1f}" y2="{y(point.high):.1f}" stroke="{series.colour}"/>'
        text += f" ({point.low:.4g} to {point.high:.4g})"
    return (
        f'{bar}<circle cx="{at:.1f}" cy="{y(point.y):.1f}" r="3.5" fill="{series.colour}"{_rows(point.rows)}>'
        f"<title>{escape(text)}</title></circle>"
    )


def _rows(rows: Sequence[int]) -> str:
    return f' data-rows="{" ".join(map(str, rows))}"' if len(rows) else ""


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    sources: Sequence[Sequence[Sequence[int]]] = (),
    *,
    low: float = 0.0,
    high: float = 1.0,
    decimals: int = 2,
) -> str:
    """A map of values (rows, columns); `sources` are the rows of the table behind each cell."""
    side = 34 if max(len(rows), len(columns)) <= 14 else 14
    left = 14 + LETTER * max(map(len, rows))
    bottom = 20 + 0.75 * LETTER * max(map(len, columns))
    width, height = left + side * len(columns) + 12, 8 + side * len(rows) + bottom
    parts = []
    for i, row in enumerate(rows):
        at = 8 + side * i
        parts.append(f'<text x="{left - 5:.1f}" y="{at + side / 2 + 4:.1f}" text-anchor="end">{escape(row)}</text>')
        for j, column in enumerate(columns):
            value, x = values[i][j], left + side * j
            share = 0.0 if value != value or high <= low else min(1.0, max(0.0, (value - low) / (high - low)))
            behind = _rows(sources[i][j]) if sources else ""
            fill = colour_of(share) if value == value else "#dddddd"
            title = f"{row}, {column}: " + (f"{value:.4g}" if value == value else "no value")
            parts.append(
                f'<rect x="{x:.1f}" y="{at}" width="{side - 1}" height="{side - 1}" fill="{fill}"{behind}>'
                f"<title>{escape(title)}</title></rect>"
            )
            if side > 20 and value == value:
                ink = "#fff" if share < 0.5 else "#222"
                parts.append(
                    f'<text x="{x + side / 2:.1f}" y="{at + side / 2 + 4}" text-anchor="middle" style="fill:{ink}" '
                    f'class="cell">{value:.{decimals}f}</text>'
                )
    for j, column in enumerate(columns):
        x, y = left + side * (j + 0.5), 14 + side * len(rows)
        parts.append(
            f'<text x="{x:.1f}" y="{y}" text-anchor="end" transform="rotate(-40 {x:.1f} {y})">{escape(column)}</text>'
        )
    return _svg(width, height, parts)


def colour_of(share: float) -> str:
    """From dark blue over grey to yellow: told apart by lightness alone, too."""
    stops = ((0, 32, 81), (60, 77, 110), (127, 124, 117), (187, 175, 113), (253, 234, 69))
    place = share * (len(stops) - 1)
    one = min(int(place), len(stops) - 2)
    mixed = (round(a + (b - a) * (place - one)) for a, b in zip(stops[one], stops[one + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img">{body}</svg>'
    )
