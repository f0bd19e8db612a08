"""Scores every submission and every metadata-only baseline on the same images with the same resamples.

In: a :class:`Truth` and each team's :class:`AlignedSubmission`. Out: a :class:`Board`: one row per image and team, then
one row per team with an interval for every score, and the paired difference of any two rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.board.baselines import Baseline, baselines
from keras_pneumo.evaluation.board.entries import Entry, baseline_entry, entry_sums, team_entry, with_scores
from keras_pneumo.evaluation.inputs.alignment import AlignedSubmission
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.evaluation.scoring.masks import size_of
from keras_pneumo.evaluation.scoring.scores import COMMON_SENSITIVITY, replicate_scores
from keras_pneumo.evaluation.scoring.statistics import (
    RESAMPLES,
    Interval,
    bca_interval,
    bca_p,
    leave_one_out,
    resample_patients,
)
from keras_pneumo.storage.tables import slug

CLASSIFICATION = ("auroc", "auprc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")
CALIBRATION = ("specificity_at_common", "brier", "calibration_error")
SEGMENTATION = (
    *("dice", "dice_positives", "dice_found", "dice_small", "dice_medium", "dice_large", "negatives_left_empty"),
    *("positives_missed", "iou", "iou_positives"),
)
IMPLIED = tuple(f"mask_{name}" for name in ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1"))
SCORES = (*CLASSIFICATION, *CALIBRATION, *SEGMENTATION, *IMPLIED)
LOWER_IS_BETTER = frozenset({"brier", "calibration_error", "positives_missed"})
"""Scores where less is better; every other score on the board is better when higher."""


@dataclass(frozen=True, eq=False)
class Board:
    """All entries scored on one truth; ``skipped`` holds the baselines that the tables do not allow."""

    truth: Truth
    entries: list[Entry]
    skipped: list[Baseline]
    seed: int
    resamples: int
    common_sensitivity: float
    wanted_headline: str = ""

    @property
    def teams(self) -> list[Entry]:
        """The submissions, without the metadata-only baselines."""
        return [entry for entry in self.entries if entry.kind == "submission"]

    @property
    def headline(self) -> str:
        """The score that the verdict is about: AUROC where every team gives probabilities, else Dice, else accuracy.

        Or ``wanted_headline``, if every team has it.
        """
        if self.wanted_headline and all(self.wanted_headline in entry.point for entry in self.teams):
            return self.wanted_headline
        if all("auroc" in entry.point for entry in self.teams):
            return "auroc"
        return "dice" if all("dice" in entry.point for entry in self.teams) else "accuracy"

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per entry: its description, then each score with ``_low`` and ``_high``; best submission first."""
        return pd.DataFrame([_row(entry, self) for entry in self.ordered])

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """One row per image and submission, before any mean is taken."""
        return pd.concat([_image_rows(entry, self.truth) for entry in self.teams], ignore_index=True)

    @property
    def extent(self) -> str:
        """How much was scored, for the end of a sentence: ``1,372 images of 1,145 patients, 290 positive``."""
        truth = self.truth
        return (
            f"{len(truth.cases):,} images of {truth.n_patients:,} patients, {int(truth.pneumothorax.sum()):,} positive"
        )

    @cached_property
    def ordered(self) -> list[Entry]:
        """Submissions from best to worst by the headline score, then the metadata-only baselines."""
        scored = [entry for entry in self.teams if np.isfinite(entry.point.get(self.headline, np.nan))]
        ranked = sorted(scored, key=lambda entry: (-entry.point[self.headline], entry.team))
        rest = [entry for entry in self.entries if entry not in ranked]
        return [*ranked, *[e for e in rest if e.kind == "submission"], *[e for e in rest if e.kind == "baseline"]]


def score_submissions(
    truth: Truth,
    submissions: list[AlignedSubmission],
    seed: int = 0,
    resamples: int = RESAMPLES,
    common_sensitivity: float = COMMON_SENSITIVITY,
    names: list[str] | None = None,
    headline: str = "",
) -> Board:
    """Score submissions and every metadata-only baseline on one truth.

    Args:
        truth: the scored images.
        submissions: aligned with that truth by :func:`.alignment.align_submission`.
        seed: seed of the patients' bootstrap.
        resamples: number of resamples.
        common_sensitivity: the sensitivity at which specificities are compared.
        names: a name for each submission, where teams share one; by default the declared team.
        headline: the score that the verdict is about.
    """
    names = names or [submission.info.team for submission in submissions]
    entries: list[Entry] = []
    for submission, name in zip(submissions, names, strict=True):
        entries.append(team_entry(name, slug(name, [entry.slug for entry in entries]), submission, truth))
    every_baseline = baselines(truth)
    for baseline in every_baseline:
        if baseline.probability is not None:
            entries.append(baseline_entry(baseline, slug(baseline.name, [e.slug for e in entries]), truth))
    scored = score_entries(entries, truth, seed, resamples, common_sensitivity)
    skipped = [baseline for baseline in every_baseline if baseline.probability is None]
    return Board(truth, scored, skipped, seed, resamples, common_sensitivity, headline)


def score_entries(
    entries: list[Entry], truth: Truth, seed: int, resamples: int, common_sensitivity: float
) -> list[Entry]:
    """The entries with their scores and intervals, all from the same resamples, so that differences are paired."""
    sums = [entry_sums(entry, truth, common_sensitivity) for entry in entries]
    replicates = replicate_scores(sums, resample_patients(truth.n_patients, resamples, seed))
    left_out = replicate_scores(sums, leave_one_out(truth.n_patients))
    return [with_scores(*each, truth) for each in zip(entries, sums, replicates, left_out, strict=True)]


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """One entry's score minus another's on the same images, with its paired 95% interval by patient."""

    score: str
    value: float
    interval: Interval
    p: float
    """Two-sided p of no difference, by the same bootstrap as the interval; unadjusted."""

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0


def paired_difference(first: Entry, second: Entry, name: str) -> PairedDifference:
    """The paired difference of one score, first minus second; NaN where either entry has no such score."""
    value = first.point.get(name, float("nan")) - second.point.get(name, float("nan"))
    if name not in first.replicates or name not in second.replicates:
        return PairedDifference(name, float("nan"), Interval(float("nan"), float("nan")), float("nan"))
    replicates = first.replicates[name] - second.replicates[name]
    left_out = first.jackknife[name] - second.jackknife[name]
    interval = bca_interval(replicates, value, left_out)
    return PairedDifference(name, value, interval, bca_p(replicates, value, left_out))


def _row(entry: Entry, board: Board) -> dict[str, object]:
    truth = board.truth
    counts = entry.confusion(truth.pneumothorax)
    row: dict[str, object] = {
        "team": entry.team,
        "kind": entry.kind,
        "task": entry.info.task if entry.info else "",
        "framework": entry.info.framework if entry.info else "",
        "images": len(truth.cases),
        "patients": truth.n_patients,
        "positives": int(truth.pneumothorax.sum()),
    }
    for name in SCORES:
        low, high = entry.intervals.get(name, Interval(float("nan"), float("nan")))
        row |= {name: entry.point.get(name, float("nan")), f"{name}_low": low, f"{name}_high": high}
    row |= dict(counts._asdict())
    if entry.masks is not None:
        implied = metrics.confusion(truth.pneumothorax, (entry.masks.predicted_pixels > 0).to_numpy())
        row |= {f"mask_{name}": value for name, value in implied._asdict().items()}
    yes_without, no_with = entry.contradictions or (float("nan"), float("nan"))
    row |= {"yes_without_mask": yes_without, "no_with_mask": no_with}
    row |= {"threshold": entry.threshold, "threshold_source": entry.threshold_source, "notes": "; ".join(entry.notes)}
    return row


def _image_rows(entry: Entry, truth: Truth) -> pd.DataFrame:
    rows = pd.DataFrame(
        {"team": entry.team, "image_id": truth.cases.image_id, "pneumothorax": truth.cases.pneumothorax}
    )
    rows["probability"] = np.nan if entry.probability is None else entry.probability
    rows["answer"] = entry.decision.astype(int)
    rows["right"] = (entry.decision == truth.pneumothorax).astype(int)
    if entry.masks is not None:
        rows = pd.concat([rows, entry.masks], axis=1)
        rows["size"] = size_of(entry.masks.true_pixels.to_numpy())
    return rows
