"""Which figures a report has, drawn by :mod:`keras_pneumo.evaluation.report.charts`.

In: a :class:`Board` or a training log. Out: SVG text, '' where there is nothing to draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.board.board import Board, difference
from keras_pneumo.evaluation.board.teams import Entry
from keras_pneumo.evaluation.board.verdict import LABELS
from keras_pneumo.evaluation.report.charts import COLOURS, Bar, Series, interval_chart, line_chart
from keras_pneumo.evaluation.scoring import metrics

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
    first, *others = board.ordered
    bars = []
    for other in others:
        gap = difference(first, other, board.headline)
        if np.isfinite(gap.value):
            bars.append(Bar(f"over {other.team}", gap.value, *gap.interval, 0, other.kind == "baseline"))
    label = LABELS[board.headline]
    return interval_chart(bars, f"Lead of {first.team} in {label}, 95% interval, paired", "Leads", 0.0) if bars else ""


def roc_figure(board: Board) -> str:
    """ROC curves, a dot at each team's own threshold."""
    series = []
    truth = board.truth.pneumothorax
    for colour, team in _with_probability(board):
        assert team.probability is not None
        curve = metrics.threshold_curve(truth, team.probability)
        series.append(Series(team.team, 1 - curve.specificity, curve.sensitivity, colour))
        at = metrics.rates(team.confusion(truth))
        series.append(Series("", [1 - at["specificity"]], [at["sensitivity"]], colour, points=True))
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
    """Observed share against promised probability in ten bins."""
    series = []
    for colour, team in _with_probability(board):
        assert team.probability is not None
        curve = metrics.calibration_curve(board.truth.pneumothorax, team.probability)
        spread = len(_with_probability(board)) == 1  # intervals of many teams would cover each other
        low, high = (curve.observed_low, curve.observed_high) if spread else (None, None)
        series.append(Series(team.team, curve.promised, curve.observed, colour, points=True, low=low, high=high))
    if not series:
        return ""
    return line_chart(series, "Promised probability", "Observed share", "Calibration", diagonal=True)


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
    most = max(max(one.x) for one in series) or 1.0
    spread = [bound for one in series for bound in (*(one.low or ()), *(one.high or ())) if np.isfinite(bound)]
    bottom, top = min(spread, default=0.0), max(spread, default=1.0)
    pad = (top - bottom) * 0.1 or 0.05
    return line_chart(
        series, "Training hours", LABELS[name], "Score against cost", (0, most * 1.08), (bottom - pad, top + pad)
    )


def training_figures(log: pd.DataFrame) -> list[dict[str, Any]]:
    """Loss, validation AUROC or Dice, and learning rate over the epochs, from what columns the log has."""
    step = log["epoch"].to_numpy() if "epoch" in log.columns else np.arange(1, len(log) + 1)
    figures = []
    wanted = (
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
    for caption, label, columns, y_range in wanted:
        series = [
            Series(name, step, pd.to_numeric(log[column], errors="coerce"), colour, points=len(log) < 30)
            for colour, (column, name) in enumerate(columns)
            if column in log.columns and pd.to_numeric(log[column], errors="coerce").notna().any()
        ]
        if series:
            svg = line_chart(series, "Epoch", label, label, None, y_range, whole_x=True, height=260)
            figures.append({"caption": caption, "svg": svg})
    return figures
