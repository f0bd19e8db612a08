"""The part of a report that is about an external test set: data that a network was neither trained nor fitted on.

In: a scored :class:`Board`, and the scores on the test images of the network's own data. Out: rows for the page, and
sentences: what the threshold that was fitted at home gives here, how far the probabilities are off, and what limits all
of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.verdict import LABELS, shown
from keras_pneumo.evaluation.report.subgroup_report import RATES, score_text
from keras_pneumo.evaluation.scoring.metrics import Confusion
from keras_pneumo.storage.tables import counted

_COMPARED = ("auroc", "auprc", *RATES, "brier", "calibration_error", "dice", "dice_positives", "negatives_left_empty")


@dataclass(frozen=True, eq=False)
class ExternalReport:
    """What a report says of an external test set beside its scores."""

    cautions: list[str]
    """Sentences for the top of the page: what was left out, what is synthetic, what is not known."""
    contamination: list[str]
    """What was compared with the images that were learned from, and what was found."""
    comparison: list[dict[str, Any]]
    """A row per score: ``label``, ``here``, ``here_span``, ``here_of``, and the same at ``home``."""
    home: str
    """What the scores at home are of; blank where they are not known."""
    calibration: list[str]


def external_report(
    board: Board,
    cautions: list[str],
    contamination: list[str],
    home: Mapping[str, Any] | None = None,
) -> ExternalReport:
    """Make rows and sentences of an external test set.

    Args:
        board: one submission, scored on the images of the external test set.
        cautions: for the top of the page.
        contamination: what was found in common with the images that were learned from.
        home: the row of the network's own board, on the test images of its own data; None where there is none.
    """
    home_of = ""
    if home is not None:
        home_of = (
            f"{counted(int(home['images']), 'test image')} of {counted(int(home['patients']), 'patient')}, "
            f"{int(home['positives']):,} positive"
        )
    return ExternalReport(
        cautions=cautions,
        contamination=contamination,
        comparison=_comparison(board, home),
        home=home_of,
        calibration=_calibration(board, home),
    )


def _comparison(board: Board, home: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    entry = board.teams[0]
    counts = entry.confusion(board.truth.pneumothorax)
    rows = []
    for name in _COMPARED:
        if name not in entry.point:
            continue
        row = {"label": LABELS[name], **_cell("here", name, entry.point[name], entry.intervals[name], counts)}
        if home is not None:
            their = Confusion(*(int(home[count]) for count in Confusion._fields))
            interval = (_number(home, f"{name}_low"), _number(home, f"{name}_high"))
            row |= _cell("home", name, _number(home, name), interval, their)
        rows.append(row)
    return rows


def _cell(where: str, name: str, value: float, interval: tuple[float, float], counts: Confusion) -> dict[str, str]:
    """Value, interval and counts of a score as texts."""
    text = score_text(name, value, interval, counts)
    return {where: text.value, f"{where}_span": text.span, f"{where}_of": text.of}


def _calibration(board: Board, home: Mapping[str, Any] | None) -> list[str]:
    """How far the probabilities are off on average, and how the share of positives differs."""
    entry, positive = board.teams[0], board.truth.pneumothorax
    if entry.probability is None:
        return []
    mean, share = float(entry.probability.mean()), float(positive.mean())
    word = "too high" if mean > share else "too low"
    sentences = [
        f"The mean probability is {shown(mean)} and the share of positives {shown(share)}: on average it is "
        f"{shown(abs(mean - share))} {word} here. The calibration is the network's own; nothing was fitted to these "
        "images."
    ]
    if home is not None and home["images"]:
        sentences.append(
            f"Predictive values depend on the share of positives: {share:.1%} here, "
            f"{home['positives'] / home['images']:.1%} at home."
        )
    return sentences


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name, np.nan)
    return float("nan") if value is None or value == "" else float(value)
