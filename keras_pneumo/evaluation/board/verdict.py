"""Summarises a board in sentences.

In: a :class:`Board`. Out: a :class:`Verdict`: which team beats which, whether they beat every metadata-only
baseline, and by how much, with interval and number of images. No sentence claims more than its interval allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.differences import ALPHA, LOWER_IS_BETTER, PairedDifference
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.scoring.metrics import why_undefined
from keras_pneumo.storage.tables import counted

FEW = 20
"""Patients with positive images, or with negative ones, below which the page warns that little can be concluded."""

FEW_PATIENTS = 50
"""Patients below which 95% intervals of single scores hold less than that; simulated by ``tests/study_lab.py``."""

LABELS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "f1": "F1",
    "specificity_at_common": "Specificity at common sensitivity",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
    "dice": "Dice",
    "dice_positives": "Dice on positives",
    "dice_found": "Dice on positives found",
    "dice_small": "Dice, small",
    "dice_medium": "Dice, medium",
    "dice_large": "Dice, large",
    "negatives_left_empty": "Negatives left empty",
    "positives_missed": "Positives missed",
    "iou": "IoU",
    "iou_positives": "IoU on positives",
}


@dataclass(frozen=True)
class Verdict:
    """``tone`` is ``good``, ``unclear`` or ``bad``; ``sentences`` come first, ``warnings`` limit them."""

    tone: str
    headline: str
    sentences: list[str]
    warnings: list[str] = field(default_factory=list)


def verdict(board: Board) -> Verdict:
    """The result of a board: the two best teams compared, and every team against the baselines.

    On phantoms the headline says so, since it is what is quoted.
    """
    result = _verdict(board)
    if not board.truth.synthetic:
        return result
    caution = "All images are synthetic (phantoms): these scores say nothing about real radiographs."
    headline = f"{result.headline.removesuffix('.')} on synthetic phantoms."
    return replace(result, headline=headline, warnings=[caution, *result.warnings])


def _verdict(board: Board) -> Verdict:
    ranked = [team for team in board.ordered if team.kind == "submission"]
    warnings = _warnings(board)
    if not ranked:
        return Verdict("unclear", "There is no submission to evaluate.", [], warnings)
    score = board.headline
    if all(math.isnan(team.point.get(score, math.nan)) for team in ranked):
        reason = _why_nothing(board)
        return Verdict("unclear", f"{LABELS[score]} cannot be computed.", [reason], warnings)
    if len(ranked) == 1:
        tone, sentences = _against_baselines(ranked[0], board)
        return Verdict(tone, sentences[0], sentences[1:], warnings)
    if not board.standings.pairs:
        tone, sentences = _against_baselines(ranked[0], board)
        rest = f"No other submission has {LABELS[score]}, so none can be compared with it."
        return Verdict(tone, sentences[0], [*sentences[1:], rest], warnings)
    pair = board.standings.pairs[0]
    first, second, gap = pair.first, pair.second, pair.difference
    headline = (
        f"{first.team} beats {second.team}."
        if pair.different
        else f"{first.team} and {second.team} cannot be told apart."
    )
    pairs = len(board.standings.pairs)
    tested = pairs > 1 and math.isfinite(pair.p_holm)
    multiple = f"; p {shown_p(pair.p_holm)} after Holm’s adjustment for {pairs} pairs of teams" if tested else ""
    sentences = [f"{_gap(gap)}, {board.extent}{multiple}."]
    winners = [team for team in ranked if board.standings.beats_baselines(team)]
    none_better = "None of them beats every metadata-only baseline."
    if len(winners) == len(ranked):
        subject = "Both" if len(ranked) == 2 else f"All {len(ranked)}"
        sentences.append(f"{subject} beat every metadata-only baseline.")
    elif winners:
        sentences.append(f"{len(winners)} of {len(ranked)} beat every metadata-only baseline.")
    else:
        sentences.append(none_better)
    return Verdict(("good" if pair.different else "unclear") if winners else "bad", headline, sentences, warnings)


def shown(value: float, digits: int = 3) -> str:
    """A number as text: three decimals, a real minus sign, a dash if it does not exist."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def shown_p(p: float) -> str:
    """A p value as text: three decimals, and ``< 0.001`` instead of zero."""
    return "< 0.001" if p < 0.001 else shown(p)


def shown_interval(interval: tuple[float, float]) -> str:
    """``0.912 to 0.968``; a dash if there is no interval."""
    low, high = interval
    return f"{shown(low)} to {shown(high)}" if math.isfinite(low) else "–"


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """``0.943 (95% interval 0.912 to 0.968)``, or that there is no interval."""
    span = f"95% interval {shown_interval(interval)}" if math.isfinite(interval[0]) else "without an interval"
    return f"{shown(value)} ({span})"


def _against_baselines(team: Entry, board: Board) -> tuple[str, list[str]]:
    score = board.headline
    pairs = board.standings.against_baselines(team)
    own = f"Its {LABELS[score]} is {with_interval(team.point[score], team.intervals[score])}, {board.extent}."
    if not pairs:
        return "unclear", [f"{team.team} has no metadata-only baseline to be compared with.", own]
    sign = -1 if score in LOWER_IS_BETTER else 1
    doubtful = [pair for pair in pairs if not (pair.different and pair.better is team)]
    pair = max(doubtful or pairs, key=lambda pair: sign * pair.second.point[score])
    baseline, value = pair.second, shown(pair.second.point[score])
    if not doubtful:
        text = (
            f"The best of them, “{baseline.team}” ({baseline.explanation}), has {value}: "
            f"{_gap(pair.difference, lower=True)}."
        )
        return "good", [f"{team.team} beats every metadata-only baseline.", own, text]
    word = "is worse than" if pair.different else "cannot be told apart from"
    text = f"“{baseline.team}” ({baseline.explanation}) has {value}: {_gap(pair.difference, lower=True)}."
    return (
        "bad" if pair.different else "unclear",
        [f"{team.team} {word} a metadata-only baseline, “{baseline.team}”.", own, text],
    )


def _gap(gap: PairedDifference, lower: bool = False) -> str:
    """The difference with its interval, or why it has none; ``lower``: within a sentence."""
    word = "difference" if lower else "Difference"
    text = f"{word} in {LABELS[gap.score]} {shown(gap.value)}"
    if math.isfinite(gap.interval.low):
        return f"{text}, 95% interval {shown_interval(gap.interval)}"
    return f"{text} (which cannot be tested: without one of the patients there is no such score)"


def _why_nothing(board: Board) -> str:
    return why_undefined(board.truth.pneumothorax) or "No submission has the predictions that it needs."


def _warnings(board: Board) -> list[str]:
    truth = board.truth
    warnings = list(truth.notes)
    kinds = (("positive", truth.pneumothorax), ("negative", ~truth.pneumothorax))
    patients, kind = min((len(np.unique(truth.patient_codes[members])), name) for name, members in kinds)
    if patients < FEW:
        limit = (
            "the intervals are wide and little can be concluded."
            if patients > 1
            else "differences in scores that need both kinds cannot be tested."
        )
        warnings.append(f"Only {counted(patients, 'patient')} with {kind} images: {limit}")
    if truth.n_patients < FEW_PATIENTS:
        held = "83 to 94" if truth.n_patients < FEW else "91 to 94"
        warnings.append(
            f"Only {counted(truth.n_patients, 'patient')}: of 100 intervals of single scores that are to hold the true "
            f"score 95 times, about {held} do with so few.{_about_differences(board)}"
        )
    pairs = math.comb(len(board.teams), 2)
    # The smallest p of B random halves is 1 / (B + 1), and Holm multiplies it by the number of pairs.
    enough = math.ceil(pairs / ALPHA) - 1
    if board.resamples < enough:
        warnings.append(
            f"{board.resamples:,} resamples are too few to tell any of {pairs:,} pairs of teams apart after Holm's "
            f"adjustment, so ranks mean little; use at least {enough:,}."
        )
    return warnings


def _about_differences(board: Board) -> str:
    """That few patients do not matter for the differences between teams, where all of these can be tested."""
    pairs = board.standings.pairs
    tested = pairs and all(math.isfinite(pair.difference.p) for pair in pairs)
    return " Differences between teams are not affected." if tested else ""
