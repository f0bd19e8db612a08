"""Scores each submission within each source of the images: hospital, data set or folder.

In: a scored :class:`Board` whose truth has a column ``source``. Out: for each source its images, and each team's scores
on them with their intervals by patient. Where label and source go together, a network that has learnt the source scores
well over all images and no better than guessing within each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from keras_pneumo.evaluation.board.board import Board, score_entries
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.inputs.truth import Truth

SOURCE = "source"
"""The truth's column; a prepared folder has it where its images are of more than one source."""


@dataclass(frozen=True, eq=False)
class SourceScores:
    """The images of one source, and the submissions scored on them alone."""

    name: str
    truth: Truth
    entries: list[Entry]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.truth.cases)

    @property
    def positives(self) -> int:
        """Number of images with a pneumothorax."""
        return int(self.truth.pneumothorax.sum())


def scores_by_source(board: Board) -> list[SourceScores]:
    """Every submission scored within each source, in the order of their names; empty where there is only one source.

    A score that does not exist there, as AUROC among images of one class, is NaN.
    """
    truth = board.truth
    if SOURCE not in truth.cases or truth.cases[SOURCE].nunique() < 2:
        return []
    scored = []
    for name in sorted(truth.cases[SOURCE].unique()):
        rows = np.flatnonzero((truth.cases[SOURCE] == name).to_numpy())
        part = replace(
            truth,
            cases=truth.cases.iloc[rows].reset_index(drop=True),
            runs=None if truth.runs is None else [truth.runs[row] for row in rows],
        )
        entries = [_only(entry, rows) for entry in board.teams]
        scored.append(SourceScores(str(name), part, _scored(entries, part, board)))
    return scored


def _scored(entries: list[Entry], truth: Truth, board: Board) -> list[Entry]:
    """Each entry scored alone: of several, what their differences are computed from would be made too."""
    return [
        score_entries([entry], truth, board.seed, board.resamples, board.common_sensitivity)[0] for entry in entries
    ]


def _only(entry: Entry, rows: np.ndarray) -> Entry:
    """An entry with some of its images, not scored yet."""
    return replace(
        entry,
        probability=None if entry.probability is None else entry.probability[rows],
        decision=entry.decision[rows],
        masks=None if entry.masks is None else entry.masks.iloc[rows].reset_index(drop=True),
        point={},
        intervals={},
        halves={},
        ranks=None,
    )
