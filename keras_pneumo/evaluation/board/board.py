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
from keras_pneumo.evaluation.board.differences import LOWER_IS_BETTER, Standings, standings
from keras_pneumo.evaluation.board.entries import (
    Entry,
    baseline_entry,
    entry_sums,
    pretraining_of,
    team_entry,
    with_halves,
    with_intervals,
)
from keras_pneumo.evaluation.inputs.alignment import AlignedSubmission
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.evaluation.scoring.masks import size_of
from keras_pneumo.evaluation.scoring.scores import COMMON_SENSITIVITY, point_scores, replicate_scores
from keras_pneumo.evaluation.scoring.statistics import (
    RESAMPLES,
    Interval,
    leave_one_out,
    random_halves,
    resample_patients,
)
from keras_pneumo.storage.tables import counted, slug

CLASSIFICATION = ("auroc", "auprc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")
CALIBRATION = ("specificity_at_common", "brier", "calibration_error")
SEGMENTATION = (
    *("dice", "dice_positives", "dice_found", "dice_small", "dice_medium", "dice_large", "negatives_left_empty"),
    *("positives_missed", "iou", "iou_positives"),
)
IMPLIED = tuple(f"mask_{name}" for name in ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1"))
SCORES = (*CLASSIFICATION, *CALIBRATION, *SEGMENTATION, *IMPLIED)


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
            f"{counted(len(truth.cases), 'image')} of {counted(truth.n_patients, 'patient')}, "
            f"{int(truth.pneumothorax.sum()):,} positive"
        )

    @cached_property
    def ordered(self) -> list[Entry]:
        """Submissions from best to worst by the headline score, then the metadata-only baselines."""
        scored = [entry for entry in self.teams if np.isfinite(entry.point.get(self.headline, np.nan))]
        sign = 1 if self.headline in LOWER_IS_BETTER else -1
        ranked = sorted(scored, key=lambda entry: (sign * entry.point[self.headline], entry.team))
        rest = [entry for entry in self.entries if entry not in ranked]
        return [*ranked, *[e for e in rest if e.kind == "submission"], *[e for e in rest if e.kind == "baseline"]]

    @cached_property
    def standings(self) -> Standings:
        """Who is better than whom in the headline score: the one source of verdict, leads and ranks."""
        return standings(self.ordered, self.headline)


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
    """The entries with their scores and intervals, and, of several, with what their differences are computed from.

    All are from the same resamples and the same halves of the patients, so differences are paired.
    """
    sums = [entry_sums(entry, truth, common_sensitivity) for entry in entries]
    points = [point_scores(table) for table in sums]
    replicates = replicate_scores(sums, resample_patients(truth.n_patients, resamples, seed))
    left_out = replicate_scores(sums, leave_one_out(truth.n_patients))
    scored = [with_intervals(*each, truth) for each in zip(entries, points, replicates, left_out, strict=True)]
    if len(scored) < 2:
        return scored
    return with_halves(scored, sums, left_out, truth, random_halves(truth.n_patients, resamples, seed))


def _row(entry: Entry, board: Board) -> dict[str, object]:
    truth = board.truth
    counts = entry.confusion(truth.pneumothorax)
    row: dict[str, object] = {
        "team": entry.team,
        "kind": entry.kind,
        "task": entry.info.task if entry.info else "",
        "framework": entry.info.framework if entry.info else "",
        "pretraining": pretraining_of(entry.info).removeprefix("pre-training: ") if entry.info else "",
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
