"""The section of a report on calibration: what the probabilities promise before and after it, on the test images.

In: the truth, probabilities before and after calibration, and the patients. Out: a :class:`CalibrationReport`, text and
a chart. Calibrated: of the images with a probability of 0.3, three in ten have a pneumothorax.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.verdict import shown, shown_interval
from keras_pneumo.evaluation.report.charts import Series, line_chart
from keras_pneumo.evaluation.scoring.metrics import calibration_curve
from keras_pneumo.evaluation.scoring.statistics import mean_by_patient
from keras_pneumo.storage.tables import counted

_CLIP = 1e-6
"""A probability of 0 or 1 would have an infinite log loss."""


@dataclass(frozen=True)
class CalibrationReport:
    """Everything that the page shows."""

    sentences: list[str]
    rows: list[dict[str, str]]
    """``score``, and ``before``, ``after``, ``change``, each with its interval as ``..._span``."""
    chart: Markup


def calibration_report(board: Board, before: np.ndarray, after: np.ndarray, sentences: list[str]) -> CalibrationReport:
    """Score the probabilities of the scored images before and after calibration, with intervals by patient.

    Args:
        board: gives truth, patients and the number of resamples.
        before: the network's own probabilities, (n,), in the truth's order.
        after: the calibrated ones, (n,).
        sentences: how the calibration was fitted, and whether it is applied.
    """
    positive, patients = board.truth.pneumothorax, board.truth.patient_codes
    rows = []
    for score, loss in (("Brier score", _squared_error), ("Log loss", _log_loss)):
        row = {"score": score}
        errors = {"before": loss(positive, before), "after": loss(positive, after)}
        for name, values in {**errors, "change": errors["after"] - errors["before"]}.items():
            value, interval = mean_by_patient(values, patients, board.resamples, board.seed)
            row |= {name: shown(value), f"{name}_span": shown_interval(interval)}
        rows.append(row)
    series = []
    for colour, (name, values) in enumerate((("before", before), ("after", after))):
        curve = calibration_curve(positive, values)
        series.append(Series(name, curve.promised, curve.observed, colour, dashed=not colour, points=True))
    chart = line_chart(series, "Predicted probability", "Observed share", "Calibration before and after", diagonal=True)
    extent = f"{counted(len(positive), 'image')} of {counted(board.truth.n_patients, 'patient')}"
    return CalibrationReport(
        [*sentences, f"Scored on {extent}; lower is better, for both scores."], rows, Markup(chart)
    )


def _squared_error(positive: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each image's part of the Brier score, (n,)."""
    return (probability - positive) ** 2


def _log_loss(positive: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each image's negative log likelihood, (n,)."""
    clipped = np.clip(probability, _CLIP, 1 - _CLIP)
    return -np.log(np.where(positive, clipped, 1 - clipped))
