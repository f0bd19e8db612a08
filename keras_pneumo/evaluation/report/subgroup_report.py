"""The section of a report on subgroups: each one's images and scores, and in which the network is worst.

In: a board's submissions scored within subgroups. Out: a :class:`SubgroupReport`, text for the page, and the table that
is ``subgroups.csv``. A score that does not exist in a subgroup has the reason in the place of its interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.board.board import SCORES
from keras_pneumo.evaluation.board.subgroups import (
    ENOUGH,
    MASK_SIZE,
    UNKNOWN,
    SubgroupScores,
    WorstSubgroup,
    worst_subgroup,
)
from keras_pneumo.evaluation.board.verdict import LABELS, shown, shown_interval
from keras_pneumo.evaluation.scoring.metrics import Confusion

RATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sensitivity": ("true_positive", ("true_positive", "false_negative")),
    "specificity": ("true_negative", ("true_negative", "false_positive")),
    "ppv": ("true_positive", ("true_positive", "false_positive")),
    "npv": ("true_negative", ("true_negative", "false_negative")),
}
"""Shares of images: which count, of which."""

_SHORT = {"ppv": "PPV", "npv": "NPV"}
"""Names of scores where there is little room."""

_BY_SUBGROUP = ("auroc", *RATES, "dice", "dice_positives")
_NEEDS = {
    **dict.fromkeys(("auroc", "auprc"), "needs both classes"),
    **dict.fromkeys(("sensitivity", "dice_positives"), "needs positives"),
    **dict.fromkeys(("specificity", "negatives_left_empty"), "needs negatives"),
    "ppv": "no positive answer",
    "npv": "no negative answer",
}
"""Why a score does not exist."""


class ScoreText(NamedTuple):
    """A score as text: its value, its interval or why there is none, and of a rate its two counts."""

    value: str
    span: str
    of: str


@dataclass(frozen=True, eq=False)
class SubgroupReport:
    """What the page shows."""

    columns: list[str]
    """Names of the scores, as a reader sees them."""
    rows: list[dict[str, Any]]
    """``attribute``, ``name``, ``images``, ``patients``, ``positives``, ``note`` and ``cells``, one for each column."""
    worst: WorstSubgroup
    small: list[str]
    """The subgroups that have fewer positives or negatives than one needs to be named the worst."""


def subgroup_report(parts: list[SubgroupScores], headline: str) -> SubgroupReport | None:
    """Make the section; None where there are no subgroups.

    Args:
        parts: the first submission's scores within subgroups; see :func:`.subgroups.scores_within`.
        headline: the score by which the worst is found.
    """
    if not parts:
        return None
    columns = [name for name in _BY_SUBGROUP if any(name in part.entries[0].point for part in parts)]
    return SubgroupReport(
        columns=[_SHORT.get(name, LABELS[name]) for name in columns],
        rows=[_row(part, columns) for part in parts],
        worst=worst_subgroup(parts, headline),
        small=[
            f"{part.attribute} {part.name}"
            for part in parts
            if min(part.positives, part.images - part.positives) < ENOUGH and part.name != UNKNOWN
        ],
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


def score_text(name: str, value: float, interval: tuple[float, float], counts: Confusion) -> ScoreText:
    """Value, interval and counts of a score; of one that does not exist the reason instead of the interval."""
    known = np.isfinite(value)
    of = ""
    if name in RATES:
        part, whole = RATES[name]
        of = f"{getattr(counts, part):,} of {sum(getattr(counts, each) for each in whole):,}"
    span = shown_interval(interval) if known and np.isfinite(interval[0]) else ""
    return ScoreText(shown(value), span if known else _NEEDS.get(name, ""), of)


def _row(part: SubgroupScores, columns: list[str]) -> dict[str, Any]:
    entry = part.entries[0]
    counts = entry.confusion(part.truth.pneumothorax)
    nothing = (np.nan, np.nan)
    return {
        "attribute": part.attribute,
        "name": part.name,
        "images": f"{part.images:,}",
        "patients": f"{part.truth.n_patients:,}",
        "positives": f"{part.positives:,}",
        "note": _note(part),
        "cells": [
            score_text(name, entry.point.get(name, np.nan), entry.intervals.get(name, nothing), counts)
            for name in columns
        ],
    }


def _note(part: SubgroupScores) -> str:
    beside = "beside all negatives" if part.attribute == MASK_SIZE else ""
    return "; ".join(text for text in (part.lacks_class, beside) if text)
