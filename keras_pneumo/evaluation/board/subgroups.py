"""Scores each submission within parts of the images: by source, and by sex, age, view, tube, mask size and maker.

In: a scored :class:`Board`. Out: for each part its images, and each team's scores on them with their intervals by
patient, at the thresholds of the whole. A score over all images hides the patients on whom a network fails; and where
label and source go together, a network that has learnt the source scores well over all and no better than guessing
within each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.labels.devices import FILE as DEVICES
from keras_pneumo.data.labels.devices import TUBE, kinds_of, read_devices
from keras_pneumo.data.prepared.manifest import MAKERS
from keras_pneumo.evaluation.board.board import Board, score_entries
from keras_pneumo.evaluation.board.differences import LOWER_IS_BETTER
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.board.verdict import LABELS, with_interval
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.scoring.masks import SIZES, size_of
from keras_pneumo.storage.tables import read_table

SOURCE = "source"
"""The truth's column; a prepared folder has it where its images are of more than one source."""

MASK_SIZE = "mask size"
"""The attribute whose groups are positives of one size beside all negatives, since negatives have no size."""

ENOUGH = 10
"""Positives, and negatives, from which on a subgroup may be named the worst: of fewer, chance alone makes one bad."""

FEWER = 2_000
"""Resamples for the intervals of subgroups in a report that is about the whole."""

_AGES = ((0, 18), (18, 40), (40, 65), (65, 200))
"""Years: from the first, below the second."""

UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class SubgroupScores:
    """The images of one subgroup, and the submissions scored on them alone."""

    attribute: str
    """What the images have in common: ``source``, ``sex``, ..."""
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

    @property
    def lacks_class(self) -> str:
        """``no positives`` or ``no negatives`` where one class is missing, so that some scores do not exist; or ''."""
        if self.positives == 0:
            return "no positives"
        return "no negatives" if self.positives == self.images else ""


def scores_by_source(board: Board) -> list[SubgroupScores]:
    """Every submission scored within each source, in the order of their names; empty where there is only one source.

    A score that does not exist there, as AUROC among images of one class, is NaN.
    """
    cases = board.truth.cases
    return scores_within(board, {SOURCE: cases[SOURCE].astype(str)}) if SOURCE in cases else []


def scores_within(board: Board, attributes: Mapping[str, pd.Series]) -> list[SubgroupScores]:
    """Every submission scored within each group of each attribute; an attribute with a single group is left out.

    Args:
        board: scored.
        attributes: name of each attribute, and the group of each scored image, in the order of the truth; '' where an
            image is in none. Of :data:`MASK_SIZE` all negatives are in each group.
    """
    positive = board.truth.pneumothorax
    scored = []
    for attribute, groups in attributes.items():
        values = groups.to_numpy(str)
        names = list(groups.cat.categories) if isinstance(groups.dtype, pd.CategoricalDtype) else sorted(set(values))
        names = [str(name) for name in names if name and (values == name).any()]
        if len(names) < 2:
            continue
        for name in names:
            inside = values == name
            if attribute == MASK_SIZE:
                inside |= ~positive
            scored.append(_scored(board, attribute, name, np.flatnonzero(inside)))
    return scored


def with_fewer_resamples(board: Board, most: int = FEWER) -> Board:
    """A board for :func:`scores_within` whose intervals take less time: dozens of subgroups would take minutes."""
    return replace(board, resamples=min(board.resamples, most))


def attributes_of(truth: Truth, folder: Path | None = None) -> dict[str, pd.Series]:
    """The attributes by which images are scored apart, as far as they are known; see :func:`scores_within`.

    Args:
        truth: with ``sex``, ``age`` (years) and ``view``, ``source`` where there are several, and masks where known.
        folder: the prepared folder, which may hold ``devices.csv`` (chest tubes) and ``makers.csv``.
    """
    cases = truth.cases
    attributes: dict[str, pd.Series] = {}
    if SOURCE in cases:
        attributes[SOURCE] = cases[SOURCE].astype(str)
    attributes["sex"] = _named(cases["sex"], {"F": "female", "M": "male"})
    bands = [f"under {to}" if not low else f"{low} to {to - 1}" if to < 200 else f"{low} and over" for low, to in _AGES]
    ages = pd.cut(cases["age"].astype(float), [_AGES[0][0], *(to for _, to in _AGES)], right=False, labels=bands)
    attributes["age"] = ages.cat.add_categories(UNKNOWN).fillna(UNKNOWN)
    attributes["view"] = _named(cases["view"], {"PA": "PA", "AP": "AP"})
    if folder is not None and (folder / DEVICES).is_file():
        devices = read_devices(folder / DEVICES)
        if TUBE in kinds_of(devices):
            tube = [TUBE in devices.get(image_id, {}) for image_id in cases["image_id"]]
            attributes[TUBE] = pd.Series(np.where(tube, "yes", "no"))
    if truth.areas is not None:
        attributes[MASK_SIZE] = pd.Series(
            pd.Categorical(np.where(truth.pneumothorax, size_of(truth.areas), ""), [*SIZES, ""])
        )
    if folder is not None and (folder / MAKERS).is_file():
        table = read_table(folder / MAKERS)
        makers = dict(zip(table["image_id"], table["maker"].str.upper(), strict=True))
        attributes["maker"] = cases["image_id"].map(makers).fillna(UNKNOWN)
    return attributes


@dataclass(frozen=True)
class WorstSubgroup:
    """The subgroup in which a submission has its worst headline score, and what that is worth, in sentences."""

    sentences: list[str]
    group: SubgroupScores | None
    """None where no subgroup has images enough."""


def worst_subgroup(parts: list[SubgroupScores], score: str, enough: int = ENOUGH) -> WorstSubgroup:
    """Name the subgroup with the worst score of the first submission, among those with images enough of both classes.

    Images of which an attribute is not known are no subgroup here.

    Args:
        parts: from :func:`scores_within`.
        score: the score that is compared, such as ``auroc``.
        enough: positives, and negatives, that a subgroup must have.
    """
    sign = -1 if score in LOWER_IS_BETTER else 1

    def value(part: SubgroupScores) -> float:
        return sign * part.entries[0].point.get(score, math.nan)

    parts = [part for part in parts if part.name != UNKNOWN]
    compared = [
        part
        for part in parts
        if min(part.positives, part.images - part.positives) >= enough and np.isfinite(value(part))
    ]
    rule = f"at least {enough} positives and {enough} negatives"
    if len(compared) < 2:
        text = f"No worst subgroup is named: {len(compared) or 'none'} of {len(parts)} has {rule}." if parts else ""
        return WorstSubgroup([text] if text else [], None)
    worst = min(compared, key=value)
    sentences = [_sentence(worst, score)]
    if worst.attribute == MASK_SIZE and (others := [part for part in compared if part.attribute != MASK_SIZE]):
        sentences.append(f"Aside from the size of the mask: {_sentence(min(others, key=value), score, lower=True)}")
    sentences.append(
        f"It is the worst of {len(compared)} subgroups with {rule} ({len(parts) - len(compared)} have fewer). One of "
        "many is always the worst, and looks worse than it is by chance alone; its interval is not adjusted for that. "
        "Take it for a place to look, not for a finding."
    )
    return WorstSubgroup(sentences, worst)


def _sentence(part: SubgroupScores, score: str, lower: bool = False) -> str:
    entry = part.entries[0]
    shown = with_interval(entry.point[score], entry.intervals[score])
    beside = " beside all negatives" if part.attribute == MASK_SIZE else ""
    return (
        f"{'the' if lower else 'The'} worst {LABELS[score]} is that of {part.attribute} {part.name}: {shown}, "
        f"{part.images:,} images of {part.truth.n_patients:,} patients, {part.positives:,} positive{beside}."
    )


def _named(values: pd.Series, names: Mapping[str, str]) -> pd.Series:
    """Known values by their names, in that order; all others are unknown."""
    return pd.Series(pd.Categorical(values.map(names).fillna(UNKNOWN), [*names.values(), UNKNOWN]))


def _scored(board: Board, attribute: str, name: str, rows: np.ndarray) -> SubgroupScores:
    """The submissions scored on some images; each alone: else what their differences are computed from is made too."""
    part = board.truth.with_rows(rows)
    entries = [
        score_entries([_only(entry, rows)], part, board.seed, board.resamples, board.common_sensitivity)[0]
        for entry in board.teams
    ]
    return SubgroupScores(attribute, name, part, entries)


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
