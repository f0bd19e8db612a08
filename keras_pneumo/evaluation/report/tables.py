"""The tables of a report as rows of text: numbers rounded, marked and put beside what they are to be held against.

In: a :class:`Board` and its :class:`Findings`. Out: lists that the page's template only has to lay out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_pneumo.evaluation.board.board import LOWER_IS_BETTER, Board, difference
from keras_pneumo.evaluation.board.findings import Findings
from keras_pneumo.evaluation.board.teams import Entry
from keras_pneumo.evaluation.board.verdict import LABELS, shown, shown_p
from keras_pneumo.evaluation.scoring.masks import SIZES, size_of

_PROBABILITY_COLUMNS = ("auroc", "auprc", "accuracy", "sensitivity", "specificity", "brier")
DICE_PARTS = (
    *("dice", "negatives_left_empty", "positives_missed", "dice_positives", "dice_found"),
    *("dice_small", "dice_medium", "dice_large", "iou_positives"),
)
_MASK_COLUMNS = ("dice", "dice_positives", "negatives_left_empty", "positives_missed")


def tiles(team: Entry, board: Board) -> list[dict[str, str]]:
    """A single team's scores, each beside what it is to be held against."""
    positive = board.truth.pneumothorax
    prevalence = float(positive.mean())
    notes = {
        "auroc": "guessing: 0.500",
        "auprc": f"guessing: {shown(prevalence)}",
        "accuracy": f"the majority answer: {shown(max(prevalence, 1 - prevalence))}",
        "sensitivity": f"at its threshold; {int(positive.sum()):,} positives",
        "specificity": f"at its threshold; {int((~positive).sum()):,} negatives",
        "brier": f"the share of positives for all: {shown(prevalence * (1 - prevalence))}; lower is better",
        "calibration_error": "lower is better",
        "dice": f"outlining nothing: {shown(1 - prevalence)}",
        "dice_positives": f"{int(positive.sum()):,} positives; a missed one counts 0",
        "negatives_left_empty": f"{int((~positive).sum()):,} negatives",
        "positives_missed": "lower is better",
        "specificity_at_common": f"at sensitivity {board.common_sensitivity:g}",
    }
    return [
        {
            "label": LABELS[name],
            "value": shown(team.point[name]),
            "interval": "{} to {}".format(*map(shown, team.intervals[name])),
            "note": note,
        }
        for name, note in notes.items()
        if name in team.point
    ]


def columns(board: Board) -> list[str]:
    """Which scores the board shows: those that any team has, and AUROC, which every no-pixel answer has."""
    probabilities = [n for n in _PROBABILITY_COLUMNS if n == "auroc" or any(n in team.point for team in board.teams)]
    return probabilities + [n for n in _MASK_COLUMNS if any(n in team.point for team in board.teams)]


def board_rows(board: Board, findings: Findings | None) -> list[dict[str, Any]]:
    """The board, best first; the best value of each score is marked."""
    names = columns(board)
    best = {}
    for name in names:
        known = [team.point[name] for team in board.teams if np.isfinite(team.point.get(name, np.nan))]
        if known:
            best[name] = min(known) if name in LOWER_IS_BETTER else max(known)
    rows = []
    for entry in board.ordered:
        cells = []
        for name in names:
            if name not in entry.point:
                cells.append({"value": "–", "interval": "", "best": False})
                continue
            low, high = entry.intervals[name]
            span = f"{shown(low)} to {shown(high)}" if np.isfinite(low) else ""
            top = entry.kind == "submission" and len(board.teams) > 1 and entry.point[name] == best.get(name)
            cells.append({"value": shown(entry.point[name]), "interval": span, "best": top})
        rank = (
            findings.ranks.get(entry.team) if findings and entry.kind == "submission" and len(board.teams) > 1 else None
        )
        rows.append({"entry": entry, "cells": cells, "rank": rank})
    return rows


def leads(board: Board) -> list[dict[str, str | bool]]:
    """The best submission against every other entry, by the headline score."""
    ranked = board.ordered
    found: list[dict[str, str | bool]] = []
    for other in ranked[1:]:
        gap = difference(ranked[0], other, board.headline)
        if np.isfinite(gap.value):
            span = f"{shown(gap.interval.low)} to {shown(gap.interval.high)}"
            found.append({"other": other.team, "value": shown(gap.value), "interval": span, "certain": gap.certain})
    return found


def confusions(board: Board) -> list[dict[str, Any]]:
    """Each team's four counts and where its threshold came from."""
    found = []
    for team in board.teams:
        threshold = "" if team.threshold is None else f"{team.threshold:.3g}, "
        found.append(
            {
                "team": team.team,
                "counts": team.confusion(board.truth.pneumothorax),
                "rule": f"Threshold {threshold}{team.threshold_source}"
                if threshold
                else f"Yes where {team.threshold_source}",
            }
        )
    return found


def dice_rows(board: Board) -> list[dict[str, Any]]:
    """The Dice taken apart: with its interval, each mean that it is made of, for every entry with masks."""
    rows = []
    for entry in board.ordered:
        if entry.masks is None:
            continue
        cells = []
        for name in DICE_PARTS:
            low, high = entry.intervals[name]
            cells.append((shown(entry.point[name]), f"{shown(low)} to {shown(high)}" if np.isfinite(low) else ""))
        rows.append({"team": entry.team, "kind": entry.kind, "cells": cells})
    return rows


def size_counts(board: Board) -> dict[str, int]:
    """How many true masks are small, medium and large; empty where the truth has no masks."""
    if board.truth.areas is None:
        return {}
    sizes = size_of(board.truth.areas)
    return {name: int(np.sum(sizes == name)) for name in SIZES}


def pair_rows(board: Board, findings: Findings) -> list[dict[str, Any]]:
    """Every pair of teams, one line per score."""
    return [
        {
            "first": pair["first"],
            "second": pair["second"],
            "score": LABELS[pair["score"]],
            "headline": pair["score"] == board.headline,
            "difference": shown(pair["difference"]),
            "interval": f"{shown(pair['low'])} to {shown(pair['high'])}",
            "p": shown_p(pair["p"]),
            "p_holm": shown_p(pair["p_holm"]),
            "p_other": shown_p(pair["p_other"]),
            "other_test": pair["other_test"],
        }
        for pair in findings.pairs.to_dict("records")
    ]


def joint_rows(board: Board) -> list[dict[str, Any]]:
    """For teams with both: the image-level answer by probability beside the one that the outline implies."""
    rows = []
    for team in board.teams:
        if team.contradictions is None:
            continue
        cells = []
        for name in ("accuracy", "sensitivity", "specificity"):
            cells += [shown(team.point[name]), shown(team.point[f"mask_{name}"])]
        rows.append({"team": team.team, "cells": cells + [f"{number:,}" for number in team.contradictions]})
    return rows
