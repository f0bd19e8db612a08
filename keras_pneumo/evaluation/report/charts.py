"""Charts of curves and intervals as inline SVG, so that a report is one file and follows light and dark mode.

In: numbers. Out: SVG text whose colours are the page's CSS variables (``--c0`` .. ``--c7``, ``--ink``, ``--line``);
all text in it is escaped. matplotlib is not used here, since its pictures cannot follow the reader's light or dark.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
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
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 18, 14, 44
_BESIDE = 240
"""Where the names beside a wide plot end."""
_SIZE, _LINE = 12.5, 17
"""Height of letters, and from one line to the next."""

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


def calibration_caption(board: Board) -> str:
    """What :func:`calibration_figure` shows, for its caption."""
    intervals = ", with 95% Wilson intervals of the observed share" if len(_with_probability(board)) == 1 else ""
    return f"Calibration{intervals}. On the dashed diagonal promise and observation are equal."


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
    goal: float | None = None
    """Drawn as an upright stroke."""


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    title: str,
    x_range: tuple[float, float] | None = (0, 1),
    y_range: tuple[float, float] | None = (0, 1),
    diagonal: bool = False,
    whole_x: bool = False,
    logarithmic: bool = False,
    width: int = 420,
    height: int = 340,
) -> str:
    """A chart of lines or points with axes, grid and legend; ranges of None fit the data.

    Long names of axes and series wrap; none is cut.

    Args:
        series: what is drawn; lines of more than 300 points are thinned.
        x_label: words under the axis.
        y_label: words above the axis.
        title: what a screen reader says.
        x_range: first and last x.
        y_range: first and last y.
        diagonal: draw the line x = y behind everything.
        whole_x: mark whole numbers only along x, as for epochs.
        logarithmic: both axes are logarithmic, and fit the data.
        width: width in CSS pixels; the picture scales.
        height: height of the axes and their numbers in CSS pixels; names and legend are not counted.
    """
    top = _TOP + _LINE * len(names_above := wrapped(y_label, width - 16))
    bottom = top + height - _TOP - _BOTTOM
    if logarithmic:
        marks = sorted({float(v) for s in series for v in s.x})
        x = Axis([v for s in series for v in s.x], _LEFT, width - _RIGHT, logarithmic=True, ticks=marks)
        y = Axis([v for s in series for v in s.y], bottom, top, logarithmic=True)
    else:
        x = Axis([v for s in series for v in s.x], _LEFT, width - _RIGHT, x_range, whole=whole_x)
        y = Axis([v for s in series for v in s.y], bottom, top, y_range)
    parts = [_text(8, 18 + _LINE * line, name, "label") for line, name in enumerate(names_above)]
    parts += x.across(top, bottom, width) + y.along(_LEFT, width - _RIGHT)
    below = bottom + 36
    for name in wrapped(x_label, width - 16):
        parts.append(_text((_LEFT + width - _RIGHT) / 2, below, name, "label", "middle", width))
        below += _LINE
    if diagonal:
        ends = f'x1="{x(x.low)}" y1="{y(y.low)}" x2="{x(x.high)}" y2="{y(y.high)}"'
        parts.append(f'<line class="diagonal" {ends}/>')
    parts += [_draw_series(line, x, y) for line in series]
    legend = [line for line in series if line.name]
    for line in legend if len(legend) > 1 else []:
        kind = f"s{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
        parts.append(f'<line class="{kind}" x1="12" x2="34" y1="{below}" y2="{below}"/>')
        for name in wrapped(line.name, width - 52):
            parts.append(_text(42, below + 4, name))
            below += _LINE
        below += 4
    return _picture("chart", width, below - 2, title, parts)


def interval_chart(
    bars: Sequence[Bar], x_label: str, title: str, reference: float | None = None, logarithmic: bool = False
) -> str:
    """A dot and its interval per row; ``reference`` draws an upright line (0 for a difference, 1 for a ratio).

    It is drawn twice: with the names beside the rows for a wide place, and above them for a narrow one, such as a
    phone; the page's style shows the one that fits.
    """
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high) if math.isfinite(v)]
    if not values:
        return ""
    values += [bar.goal for bar in bars if bar.goal is not None]
    values += [] if reference is None else [reference]
    pictures = [
        _interval_picture(
            bars, x_label, title, reference, Axis(values, first, last, logarithmic=logarithmic), last + 24
        )
        for first, last in ((_BESIDE + 16, 736), (20, 336))
    ]
    return f'<div class="plot">{"".join(pictures)}</div>'


def _interval_picture(
    bars: Sequence[Bar], x_label: str, title: str, reference: float | None, x: Axis, width: float
) -> str:
    beside = x.first > _BESIDE
    y, top, rows = 8.0, 8.0, []
    for bar in bars:
        lines = wrapped(bar.name, _BESIDE - 12 if beside else width - 32, 13)
        height = max(30, 12 + _LINE * len(lines)) if beside else 26 + _LINE * len(lines)
        first = y + height / 2 + 4 - _LINE * (len(lines) - 1) / 2 if beside else y + 16
        for number, line in enumerate(lines):
            at, anchor = (_BESIDE, "end") if beside else (16, "")
            rows.append(_text(at, first + _LINE * number, line, "name", anchor))
        rows.append(_draw_bar(bar, x, y + height / 2 if beside else y + height - 9))
        y += height
    parts = x.across(top, y, width)
    if reference is not None:
        parts.append(f'<line class="reference" x1="{x(reference)}" x2="{x(reference)}" y1="{top}" y2="{y}"/>')
    parts += rows
    lines = wrapped(x_label, width - 16 if not beside else width - _BESIDE)
    middle = (x.first + x.last) / 2
    parts += [_text(middle, y + 36 + _LINE * n, line, "label", "middle", width) for n, line in enumerate(lines)]
    return _picture(f"chart {'wide' if beside else 'narrow'}", width, y + 28 + _LINE * len(lines), title, parts)


def _draw_bar(bar: Bar, x: Axis, y: float) -> str:
    kind = "muted" if bar.muted else f"s{bar.colour % COLOURS}"
    parts = []
    if math.isfinite(bar.low) and math.isfinite(bar.high):
        parts.append(f'<line class="{kind} thick" x1="{x(bar.low)}" x2="{x(bar.high)}" y1="{y}" y2="{y}"/>')
    if bar.goal is not None:
        parts.append(f'<line class="goal" x1="{x(bar.goal)}" x2="{x(bar.goal)}" y1="{y - 9}" y2="{y + 9}"/>')
    if math.isfinite(bar.value):
        parts.append(f'<circle class="{kind} dot" cx="{x(bar.value)}" cy="{y}" r="5"/>')
    return "".join(parts)


class Axis:
    """The scale of a picture along one side: called with a value it gives the position."""

    def __init__(
        self,
        values: Numbers,
        first: float,
        last: float,
        ends: tuple[float, float] | None = None,
        whole: bool = False,
        logarithmic: bool = False,
        ticks: Sequence[float] | None = None,
    ) -> None:
        """The axis for ``values`` between the positions ``first`` and ``last``.

        Args:
            values: what must be on it, where ``ends`` are None.
            first: position of its low end.
            last: position of its high end.
            ends: its low and its high end, as values.
            whole: mark whole numbers only.
            logarithmic: whether equal ratios are equally long; values must then be above 0.
            ticks: the marked values; None finds round ones.
        """
        self.first, self.last, self.logarithmic = first, last, logarithmic
        if logarithmic:
            logs = [math.log10(v) for v in values if math.isfinite(v) and v > 0]
            pad = max((max(logs) - min(logs)) * 0.05, 0.06)
            self.low, self.high = 10 ** (min(logs) - pad), 10 ** (max(logs) + pad)
            self.ticks = list(ticks) if ticks else _round_ratios(self.low, self.high)
        else:
            self.low, self.high = ends or _range(values)
            self.ticks = _ticks(self.low, self.high, whole)

    def __call__(self, value: float) -> float:
        """The position of a value."""
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)

    def name(self, tick: float) -> str:
        """A mark as it is written: on an axis of equal steps all with a power of ten, or none."""
        beside = [tick] if self.logarithmic else self.ticks
        return _number(tick, any(value and not 1e-3 <= abs(value) < 1e5 for value in beside))

    def across(self, top: float, bottom: float, width: float) -> list[str]:
        """Upright grid lines with their values below, within a picture of this width."""
        parts, end = [], -math.inf
        for tick in self.ticks:
            name = self.name(tick)
            half = text_width(name, _SIZE) / 2
            middle = min(max(self(tick), half + 2), width - half - 2)
            parts.append(f'<line class="grid" x1="{self(tick)}" x2="{self(tick)}" y1="{top}" y2="{bottom}"/>')
            if middle - half > end + 4:  # a number that would cover its neighbour is left out, its line is not
                parts.append(_text(middle, bottom + 16, name, "", "middle"))
                end = middle + half
        return parts

    def along(self, left: float, right: float) -> list[str]:
        """Level grid lines with their values at the left."""
        parts = []
        for tick in self.ticks:
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{self(tick)}" y2="{self(tick)}"/>')
            parts.append(_text(left - 7, self(tick) + 4, self.name(tick), "", "end"))
        return parts


def text_width(text: str, size: float = 12.5) -> float:
    """The width of a text in CSS pixels, as wide as common fonts without serifs draw it (DejaVu Sans, the widest)."""
    return size * sum(_letter_width(letter) for letter in text)


def _letter_width(letter: str) -> float:
    if letter in "iljI.,:;|'’!ftr ()[]/-":
        return 0.41
    if letter in "mwMW@%…" or unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.64 if letter.islower() or letter.isdigit() else 0.79


_PIECES = re.compile(r"(?:[^\s_\-./]|\.(?=\d))*(?:[_\-/]|\.(?!\d))|(?:[^\s_\-./]|\.(?=\d))+|\s+")
"""A word up to where it may wrap, or white space; no wrap within a number."""


def wrapped(text: str, width: float, size: float = 12.5) -> list[str]:
    """A text in lines of at most this width: broken between words, else after ``_``, ``-``, ``.`` and ``/``.

    Only a word that is wider than a line is broken within.
    """
    lines, line = [], ""
    for piece in _PIECES.findall(text):
        for letters in [piece] if text_width(piece, size) <= width else piece:
            if text_width((line + letters).rstrip(), size) > width:
                lines.append(line.strip())
                line = ""
            line += letters if line or not letters.isspace() else ""
    return [part for part in [*lines, line.strip()] if part] or [""]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "", width: float | None = None) -> str:
    """A text; a centred one is moved so that it stays within a picture of ``width``."""
    if width is not None:
        half = text_width(text, _SIZE) / 2
        x = max(min(x, width - half - 4), half + 4)
    more = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}"{more}>{escape(text)}</text>'


def _picture(kind: str, width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {round(width)} {round(height)}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _draw_series(series: Series, px: Axis, py: Axis) -> str:
    kind = f"s{series.colour % COLOURS}" + (" dashed" if series.dashed else "")
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    if len(x) > MOST_POINTS and not series.points:
        kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
        x, y = x[kept], y[kept]
    parts = []
    if series.low is not None and series.high is not None:
        for centre, low, high in zip(series.x, series.low, series.high, strict=True):
            if math.isfinite(low) and math.isfinite(high):
                ends = f'y1="{py(low)}" y2="{py(high)}"'
                parts.append(f'<line class="{kind}" x1="{px(centre)}" x2="{px(centre)}" {ends}/>')
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


def _range(values: Numbers) -> tuple[float, float]:
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


def _number(value: float, powers: bool) -> str:
    if value and powers:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _round_ratios(low: float, high: float) -> list[float]:
    """Round values between two: powers of ten, with 2 and 5 (or 1.5, 3 and 7 too) where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        values = [round(step * 10.0**decade, 12) for decade in decades for step in steps]
        values = [value for value in values if low <= value <= high]
        if len(values) >= 4:
            break
    return values
