"""Curves and intervals as inline SVG, so that a report is one file, sharp in print and legible in the dark.

In: numbers. Out: SVG text whose colours are the page's CSS variables (``--c0`` .. ``--c7``, ``--ink``, ``--line``) and
whose every word is escaped. matplotlib is not used here, since its pictures cannot follow the reader's light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import escape

COLOURS = 8
MOST_POINTS = 300
Numbers = Sequence[float] | np.ndarray | pd.Series
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 14, 44


@dataclass(frozen=True)
class Series:
    """One line or set of points: ``x`` and ``y`` of equal length; ``colour`` 0 to 7; NaN points break the line."""

    name: str
    x: Numbers
    y: Numbers
    colour: int = 0
    dashed: bool = False
    points: bool = False
    stepped: bool = False
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass(frozen=True)
class Bar:
    """One row of an interval plot."""

    name: str
    value: float
    low: float
    high: float
    colour: int = 0
    muted: bool = False


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    title: str,
    x_range: tuple[float, float] | None = (0, 1),
    y_range: tuple[float, float] | None = (0, 1),
    diagonal: bool = False,
    whole_x: bool = False,
    width: int = 420,
    height: int = 340,
) -> str:
    """A chart of lines or points with axes, grid and legend; ranges of None fit the data.

    Args:
        series: what is drawn; lines of more than 300 points are thinned.
        x_label: words under the axis.
        y_label: words beside the axis.
        title: what a screen reader says.
        x_range: first and last x.
        y_range: first and last y.
        diagonal: draw the line x = y behind everything.
        whole_x: mark whole numbers only along x, as for epochs.
        width: width in CSS pixels; the picture scales.
        height: height in CSS pixels, the legend not counted.
    """
    x0, x1 = x_range or _range([v for s in series for v in s.x])
    y0, y1 = y_range or _range([v for s in series for v in s.y])
    legend = [s for s in series if s.name]
    legend = legend if len(legend) > 1 else []
    total = height + 20 * len(legend)

    def px(value: float) -> float:
        return round(_LEFT + (value - x0) / (x1 - x0) * (width - _LEFT - _RIGHT), 1)

    def py(value: float) -> float:
        return round(height - _BOTTOM - (value - y0) / (y1 - y0) * (height - _BOTTOM - _TOP), 1)

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {total}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    ]
    for tick in _ticks(x0, x1, whole_x):
        parts.append(f'<line class="grid" x1="{px(tick)}" x2="{px(tick)}" y1="{py(y0)}" y2="{py(y1)}"/>')
        parts.append(f'<text x="{px(tick)}" y="{py(y0) + 16}" text-anchor="middle">{_number(tick)}</text>')
    for tick in _ticks(y0, y1):
        parts.append(f'<line class="grid" x1="{px(x0)}" x2="{px(x1)}" y1="{py(tick)}" y2="{py(tick)}"/>')
        parts.append(f'<text x="{px(x0) - 7}" y="{py(tick) + 4}" text-anchor="end">{_number(tick)}</text>')
    parts.append(
        f'<text class="label" x="{px((x0 + x1) / 2)}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = py((y0 + y1) / 2)
    parts.append(
        f'<text class="label" x="13" y="{middle}" text-anchor="middle" transform="rotate(-90 13 {middle})">'
        f"{escape(y_label)}</text>"
    )
    if diagonal:
        parts.append(f'<line class="diagonal" x1="{px(x0)}" y1="{py(y0)}" x2="{px(x1)}" y2="{py(y1)}"/>')
    parts += [_drawn(one, px, py) for one in series]
    for position, one in enumerate(legend):
        y = height + 12 + 20 * position
        kind = f"s{one.colour % COLOURS}{' dashed' if one.dashed else ''}"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + 22}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT + 30}" y="{y + 4}">{escape(_short(one.name, 44))}</text>')
    parts.append("</svg>")
    return "".join(parts)


def interval_chart(
    bars: Sequence[Bar], x_label: str, title: str, reference: float | None = None, width: int = 680
) -> str:
    """A dot and its interval per row, names at the left; ``reference`` draws an upright line (0 for a difference)."""
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high) if math.isfinite(v)]
    if reference is not None:
        values.append(reference)
    if not values:
        return ""
    x0, x1 = _range(values)
    left, row, top = 236, 30, 8
    bottom = top + row * len(bars)
    height = bottom + 44

    def px(value: float) -> float:
        return round(left + (value - x0) / (x1 - x0) * (width - left - 24), 1)

    parts = [
        f'<svg class="chart wide" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    ]
    for tick in _ticks(x0, x1):
        parts.append(f'<line class="grid" x1="{px(tick)}" x2="{px(tick)}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{px(tick)}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
    if reference is not None:
        parts.append(f'<line class="reference" x1="{px(reference)}" x2="{px(reference)}" y1="{top}" y2="{bottom}"/>')
    for position, bar in enumerate(bars):
        y = top + row * position + row / 2
        kind = "muted" if bar.muted else f"s{bar.colour % COLOURS}"
        parts.append(
            f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(_short(bar.name, 28))}</text>'
        )
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            parts.append(f'<line class="{kind} thick" x1="{px(bar.low)}" x2="{px(bar.high)}" y1="{y}" y2="{y}"/>')
        if math.isfinite(bar.value):
            parts.append(f'<circle class="{kind} dot" cx="{px(bar.value)}" cy="{y}" r="5"/>')
    parts.append(
        f'<text class="label" x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append("</svg>")
    return "".join(parts)


def _drawn(one: Series, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    kind = f"s{one.colour % COLOURS}" + (" dashed" if one.dashed else "")
    x, y = np.asarray(one.x, float), np.asarray(one.y, float)
    if len(x) > MOST_POINTS and not one.points:
        kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
        x, y = x[kept], y[kept]
    parts = []
    if one.low is not None and one.high is not None:
        for at, low, high in zip(one.x, one.low, one.high, strict=True):
            parts.append(f'<line class="{kind}" x1="{px(at)}" x2="{px(at)}" y1="{py(low)}" y2="{py(high)}"/>')
    path, pen = [], "M"
    for at, value in zip(x, y, strict=True):
        if not (math.isfinite(at) and math.isfinite(value)):
            pen = "M"
            continue
        if one.stepped and pen == "L":
            path.append(f"H{px(at)}")
        path.append(f"{pen}{px(at)} {py(value)}")
        pen = "L"
    if path:
        parts.append(f'<path class="{kind}" d="{"".join(path)}"/>')
    if one.points:
        parts += [
            f'<circle class="{kind} dot" cx="{px(a)}" cy="{py(v)}" r="3.5"/>'
            for a, v in zip(x, y, strict=True)
            if math.isfinite(a) and math.isfinite(v)
        ]
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers between ``low`` and ``high``, about five; whole ones if asked."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= 5.5:
            step *= factor
            break
    if whole:
        step = max(1, math.ceil(step - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value and not 1e-2 <= abs(value) < 1e5:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e−").replace("e+0", "e").replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
