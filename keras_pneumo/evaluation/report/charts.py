"""Charts of curves and intervals as inline SVG, so that a report is one file and follows light and dark mode.

In: numbers. Out: SVG text whose colours are the page's CSS variables (``--c0`` .. ``--c7``, ``--ink``, ``--line``);
all text in it is escaped. matplotlib is not used here, since its pictures cannot follow the reader's light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import escape

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.board.verdict import LABELS
from keras_pneumo.evaluation.scoring import metrics

COLOURS = 8
MOST_POINTS = 300
Numbers = Sequence[float] | np.ndarray | pd.Series
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 14, 14, 44

MOST_CURVES = COLOURS
"""Teams in one chart of curves; more cannot be told apart by colour."""


def _with_probability(board: Board) -> list[tuple[int, Entry]]:
    if metrics.why_undefined(board.truth.pneumothorax):
        return []
    teams = [entry for entry in board.ordered if entry.kind == "submission" and entry.probability is not None]
    return list(enumerate(teams[:MOST_CURVES]))


def score_figure(board: Board) -> str:
    """The headline score of every entry with its interval."""
    name = board.headline
    position = {team.slug: number for number, team in enumerate(e for e in board.ordered if e.kind == "submission")}
    bars = [
        Bar(
            entry.team, entry.point[name], *entry.intervals[name], position.get(entry.slug, 0), entry.kind == "baseline"
        )
        for entry in board.ordered
        if np.isfinite(entry.point.get(name, np.nan))
    ]
    reference = 0.5 if name == "auroc" else None
    return interval_chart(bars, f"{LABELS[name]}, 95% interval by patient", f"{LABELS[name]} of every entry", reference)


def gap_figure(board: Board) -> str:
    """The best submission's lead over every other entry, paired."""
    bars = [
        Bar(lead.second.team, lead.difference.value, *lead.difference.interval, 0, lead.second.kind == "baseline")
        for lead in board.standings.leads
    ]
    label = LABELS[board.headline]
    return interval_chart(bars, f"Lead in {label}, 95% interval, paired", "Leads", 0.0) if bars else ""


def roc_figure(board: Board) -> str:
    """ROC curves, a dot at each team's own threshold."""
    series = []
    truth = board.truth.pneumothorax
    for colour, team in _with_probability(board):
        assert team.probability is not None
        curve = metrics.threshold_curve(truth, team.probability)
        series.append(Series(team.team, 1 - curve.specificity, curve.sensitivity, colour))
        point = metrics.rates(team.confusion(truth))
        series.append(Series("", [1 - point["specificity"]], [point["sensitivity"]], colour, points=True))
    if not series:
        return ""
    return line_chart(series, "1 − specificity", "Sensitivity", "ROC curves", diagonal=True)


def precision_figure(board: Board) -> str:
    """Precision against recall, steps as average precision counts them, and the level of guessing."""
    series = []
    truth = board.truth.pneumothorax
    for colour, team in _with_probability(board):
        assert team.probability is not None
        curve = metrics.threshold_curve(truth, team.probability).iloc[1:]
        series.append(Series(team.team, curve.sensitivity, curve.ppv, colour))
    if not series:
        return ""
    share = float(truth.mean())
    series.append(Series("", [0, 1], [share, share], 7, dashed=True))
    return line_chart(series, "Recall (sensitivity)", "Precision", "Precision-recall curves")


def calibration_figure(board: Board) -> str:
    """Observed share of positives against predicted probability in ten bins."""
    series = []
    for colour, team in _with_probability(board):
        assert team.probability is not None
        curve = metrics.calibration_curve(board.truth.pneumothorax, team.probability)
        spread = len(_with_probability(board)) == 1  # intervals of many teams would cover each other
        low, high = (curve.observed_low, curve.observed_high) if spread else (None, None)
        series.append(Series(team.team, curve.promised, curve.observed, colour, points=True, low=low, high=high))
    if not series:
        return ""
    return line_chart(series, "Predicted probability", "Observed share", "Calibration", diagonal=True)


def budget_figure(board: Board) -> str:
    """The headline score, with its interval, against declared training hours; '' unless two teams declare them."""
    name = board.headline
    series = []
    for colour, team in enumerate(entry for entry in board.ordered if entry.kind == "submission"):
        hours = team.info.training_hours if team.info else None
        if hours is None or not np.isfinite(team.point.get(name, np.nan)):
            continue
        size = f", {team.info.image_size} px" if team.info and team.info.image_size else ""
        low, high = team.intervals[name]
        label = f"{team.team}{size}"
        series.append(Series(label, [hours], [team.point[name]], colour, points=True, low=[low], high=[high]))
    if len(series) < 2:
        return ""
    most = max(max(point.x) for point in series) or 1.0
    bounds = [bound for point in series for bound in (*(point.low or ()), *(point.high or ())) if np.isfinite(bound)]
    bottom, top = min(bounds, default=0.0), max(bounds, default=1.0)
    pad = (top - bottom) * 0.1 or 0.05
    return line_chart(
        series,
        "Training hours",
        LABELS[name],
        "Score and training hours",
        (0, most * 1.08),
        (bottom - pad, top + pad),
    )


def training_figures(log: pd.DataFrame) -> list[dict[str, Any]]:
    """Loss, validation AUROC or Dice, and learning rate over the epochs, from what columns the log has."""
    step = log["epoch"].to_numpy() if "epoch" in log.columns else np.arange(1, len(log) + 1)
    figures = []
    charts = (
        ("Loss over the epochs.", "Loss", [("loss", "training"), ("validation_loss", "validation")], None),
        (
            "Validation AUROC over the epochs; results come from the test set.",
            "AUROC",
            [("validation_auroc", "")],
            None,
        ),
        ("Validation Dice over the epochs; results come from the test set.", "Dice", [("validation_dice", "")], None),
        ("Learning rate over the epochs.", "Learning rate", [("learning_rate", "")], None),
    )
    for caption, label, columns, y_range in charts:
        series = [
            Series(name, step, pd.to_numeric(log[column], errors="coerce"), colour, points=len(log) < 30)
            for colour, (column, name) in enumerate(columns)
            if column in log.columns and pd.to_numeric(log[column], errors="coerce").notna().any()
        ]
        if series:
            svg = line_chart(series, "Epoch", label, label, None, y_range, whole_x=True, height=260)
            figures.append({"caption": caption, "svg": svg})
    return figures


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
    total = height + (20 * len(legend) + 6 if legend else 0)

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
    parts += [_draw_series(line, px, py) for line in series]
    for position, line in enumerate(legend):
        y = height + 12 + 20 * position
        kind = f"s{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + 22}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT + 30}" y="{y + 4}">{escape(_short(line.name, 44))}</text>')
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


def _draw_series(series: Series, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    kind = f"s{series.colour % COLOURS}" + (" dashed" if series.dashed else "")
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    if len(x) > MOST_POINTS and not series.points:
        kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
        x, y = x[kept], y[kept]
    parts = []
    if series.low is not None and series.high is not None:
        for centre, low, high in zip(series.x, series.low, series.high, strict=True):
            parts.append(f'<line class="{kind}" x1="{px(centre)}" x2="{px(centre)}" y1="{py(low)}" y2="{py(high)}"/>')
    path, pen = [], "M"
    for position, value in zip(x, y, strict=True):
        if not (math.isfinite(position) and math.isfinite(value)):
            pen = "M"
            continue
        if series.stepped and pen == "L":
            path.append(f"H{px(position)}")
        path.append(f"{pen}{px(position)} {py(value)}")
        pen = "L"
    if path:
        parts.append(f'<path class="{kind}" d="{"".join(path)}"/>')
    if series.points:
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
