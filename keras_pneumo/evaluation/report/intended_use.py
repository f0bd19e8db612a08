"""What a model may be used for, in plain sentences for the top of its report and for others who describe it.

In: a scored :class:`Board` of the model, what its record says of the images that it learned from, and its subgroups.
Out: sentences. They say what was measured, on what and how surely, and what is not known; never more than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.board.subgroups import ENOUGH
from keras_pneumo.evaluation.board.verdict import LABELS, with_interval
from keras_pneumo.evaluation.report.subgroup_report import SubgroupReport
from keras_pneumo.storage.tables import counted, listed, one_line

_MEASURED = ("auroc", "sensitivity", "specificity", "dice", "dice_positives")


def intended_use(
    board: Board, record: Mapping[str, Any], subgroups: SubgroupReport | None = None, external: bool = False
) -> list[str]:
    """What the first submission of a board may be used for.

    Args:
        board: on which it is scored.
        record: of the run or the detector: ``trained_on`` and ``synthetic`` are read.
        subgroups: its scores within subgroups, if there are any.
        external: whether the scored images are of other data than it learned from.
    """
    team = board.teams[0]
    return [
        "Use it for research only: to study such networks and to compare them. It is not a medical device, and no "
        "diagnosis, triage or treatment may rest on it.",
        _learned(record),
        _measured(team, board),
        _counts(team, board),
        _beside_tables(team, board),
        _elsewhere(board, external),
        *([_small_groups(subgroups)] if subgroups is not None and subgroups.small else []),
    ]


def _learned(record: Mapping[str, Any]) -> str:
    known = record.get("trained_on")
    images = one_line(str(known), 200) if known else "images that its record does not name"
    if record.get("synthetic") is True:
        return f"It learned from {images}. They are drawn, not taken: what it answers about a radiograph says nothing."
    return f"It learned from {images}. Nothing is known about its answers on images of another kind."


def _measured(team: Entry, board: Board) -> str:
    kind = "synthetic phantoms: " if board.truth.synthetic else ""
    scores = [
        f"{_label(name)} {with_interval(team.point[name], team.intervals[name])}"
        for name in _MEASURED
        if math.isfinite(team.point.get(name, math.nan))
    ]
    return f"Measured on {kind}{board.extent}: {listed(scores)}." if scores else f"No score exists on {board.extent}."


def _counts(team: Entry, board: Board) -> str:
    counts = team.confusion(board.truth.pneumothorax)
    positives, negatives = counts.true_positive + counts.false_negative, counts.true_negative + counts.false_positive
    return (
        f"It found {counts.true_positive:,} of {counted(positives, 'image')} with a pneumothorax, and said yes to "
        f"{counts.false_positive:,} of {counted(negatives, 'image')} without one."
    )


def _beside_tables(team: Entry, board: Board) -> str:
    if not board.standings.against_baselines(team):
        return (
            "It was compared with no metadata-only baseline, so its scores may come from something other than images."
        )
    if board.standings.beats_baselines(team):
        return "It does better than every metadata-only baseline, that is, than tables without the images."
    return (
        "It does not surely do better than every metadata-only baseline: its scores are no proof that it uses what the "
        "images show."
    )


def _elsewhere(board: Board, external: bool) -> str:
    if external:
        return "The scored images are of other data than it learned from, and nothing was fitted to them."
    same = "The scored images are of the same data as those it learned from"
    if board.truth.patients == "none":
        return f"{same}, and the patients are not known: a patient may be on both sides, and the scores too high."
    return f"{same}, of other patients. Scores elsewhere are not known; keras-pneumo evaluate measures them."


def _small_groups(subgroups: SubgroupReport) -> str:
    few = f"fewer than {ENOUGH} positives or {ENOUGH} negatives"
    return f"Too few images to say anything of these groups ({few}): {listed(subgroups.small)}."


def _label(name: str) -> str:
    """A score's name within a sentence."""
    label = LABELS[name]
    return label if name in ("auroc", "dice", "dice_positives") else label.lower()
