"""The part of a report that is about an external test set: data that a network was neither trained nor fitted on.

In: a scored :class:`Board`, its subgroups, and the scores on the test images of the network's own data. Out: rows for
the page and for ``subgroups.csv``, and sentences: what the threshold that was fitted at home gives here, how far the
probabilities are off, in which subgroup the network is worst, and what limits all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.board.board import SCORES, Board
from keras_pneumo.evaluation.board.subgroups import MASK_SIZE, SubgroupScores, WorstSubgroup, worst_subgroup
from keras_pneumo.evaluation.board.verdict import LABELS, shown, shown_interval
from keras_pneumo.evaluation.scoring.metrics import Confusion
from keras_pneumo.storage.tables import counted

_RATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sensitivity": ("true_positive", ("true_positive", "false_negative")),
    "specificity": ("true_negative", ("true_negative", "false_positive")),
    "ppv": ("true_positive", ("true_positive", "false_positive")),
    "npv": ("true_negative", ("true_negative", "false_negative")),
}
"""Shares of images: which count, of which."""

_COMPARED = ("auroc", "auprc", *_RATES, "brier", "calibration_error", "dice", "dice_positives", "negatives_left_empty")
SHORT = {"ppv": "PPV", "npv": "NPV"}
"""Names of scores where there is little room."""

_BY_SUBGROUP = ("auroc", *_RATES, "dice", "dice_positives")
_NEEDS = {
    **dict.fromkeys(("auroc", "auprc"), "needs both classes"),
    **dict.fromkeys(("sensitivity", "dice_positives"), "needs positives"),
    **dict.fromkeys(("specificity", "negatives_left_empty"), "needs negatives"),
    "ppv": "no positive answer",
    "npv": "no negative answer",
}
"""Why a score does not exist."""


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
    subgroup_columns: list[str]
    """Names of the scores, as a reader sees them."""
    subgroups: list[dict[str, Any]]
    worst: WorstSubgroup


def external_report(
    board: Board,
    parts: list[SubgroupScores],
    cautions: list[str],
    contamination: list[str],
    home: Mapping[str, Any] | None = None,
) -> ExternalReport:
    """Make rows and sentences of an external test set.

    Args:
        board: one submission, scored on the images of the external test set.
        parts: the same within subgroups; see :func:`.subgroups.scores_within`.
        cautions: for the top of the page.
        contamination: what was found in common with the images that were learned from.
        home: the row of the network's own board, on the test images of its own data; None where there is none.
    """
    columns = [name for name in _BY_SUBGROUP if name in board.teams[0].point]
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
        subgroup_columns=[SHORT.get(name, LABELS[name]) for name in columns],
        subgroups=[_subgroup_row(part, columns) for part in parts],
        worst=worst_subgroup(parts, board.headline),
    )


def subgroup_table(parts: list[SubgroupScores]) -> pd.DataFrame:
    """``subgroups.csv``: a row per subgroup, each score with ``_low`` and ``_high``, blank where it does not exist."""
    rows = []
    for part in parts:
        entry = part.entries[0]
        row: dict[str, Any] = {
            "attribute": part.attribute,
            "subgroup": part.name,
            "images": part.images,
            "patients": part.truth.n_patients,
            "positives": part.positives,
        }
        for name in SCORES:
            if name in entry.point:
                low, high = entry.intervals[name]
                row |= {name: entry.point[name], f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"note": _note(part)})
    return pd.DataFrame(rows)


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
    """Value, interval and counts of a score as texts; of one that does not exist the reason instead of the interval."""
    known = np.isfinite(value)
    of = ""
    if name in _RATES:
        part, whole = _RATES[name]
        of = f"{getattr(counts, part):,} of {sum(getattr(counts, each) for each in whole):,}"
    span = shown_interval(interval) if known and np.isfinite(interval[0]) else ""
    return {where: shown(value), f"{where}_span": span if known else _NEEDS.get(name, ""), f"{where}_of": of}


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


def _subgroup_row(part: SubgroupScores, columns: list[str]) -> dict[str, Any]:
    entry = part.entries[0]
    counts = entry.confusion(part.truth.pneumothorax)
    cells = []
    for name in columns:
        value, interval = entry.point.get(name, np.nan), entry.intervals.get(name, (np.nan, np.nan))
        cell = _cell("here", name, value, interval, counts)
        cells.append((cell["here"], cell["here_span"], cell["here_of"]))
    return {
        "attribute": part.attribute,
        "name": part.name,
        "images": f"{part.images:,}",
        "patients": f"{part.truth.n_patients:,}",
        "positives": f"{part.positives:,}",
        "note": _note(part),
        "cells": cells,
    }


def _note(part: SubgroupScores) -> str:
    beside = "beside all negatives" if part.attribute == MASK_SIZE else ""
    return "; ".join(text for text in (part.lacks_class, beside) if text)


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name, np.nan)
    return float("nan") if value is None or value == "" else float(value)
