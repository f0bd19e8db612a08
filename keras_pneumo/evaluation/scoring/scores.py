"""Computes all scores of one team, for the images as they are and for thousands of resamples of their patients.

In: the truth and one team's answers. Out: a :class:`PatientSums`, and from it the scores for any matrix that says how
often each patient counts, and each patient's contribution to a score. A resample never copies an image: every score is
a function of sums over images, which one matrix product gives for all resamples together, or of ranks, where the
patients' counts are summed along the ranking. So 10,000 resamples of 2,000 images take a fraction of a second per team,
and all teams share the same resamples.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from threadpoolctl import ThreadpoolController

from keras_pneumo.evaluation.scoring.masks import SIZES, parts
from keras_pneumo.evaluation.scoring.metrics import CALIBRATION_BINS, calibration_bins

if TYPE_CHECKING:
    from scipy import sparse

COMMON_SENSITIVITY = 0.8
"""Sensitivity at which all teams' specificities are compared."""

ScoreArrays = dict[str, np.ndarray]

_MEANS_OVER = {
    **dict.fromkeys(("sensitivity", "mask_sensitivity", "positives_missed"), ("positive",)),
    **dict.fromkeys(("specificity", "mask_specificity", "negatives_left_empty"), ("negative",)),
    **dict.fromkeys(("auroc", "balanced_accuracy", "mask_balanced_accuracy"), ("positive", "negative")),
    **dict.fromkeys(("dice_positives", "iou_positives"), ("n_positives",)),
    **{f"dice_{size}": (f"n_positives_{size}",) for size in SIZES},
}
"""Which images a score is a mean over, where these are not all: names of sums; of two, the mean of their shares."""


@dataclass(frozen=True)
class Ranking:
    """How negatives rank among the distinct scores of positives, highest first; rows are those scores.

    ``counts`` is three sparse tables of counts, one above the other, each of shape (distinct scores of positives,
    patients): positives with this score, negatives with it, and negatives below the row before but above this one.
    """

    rows: int
    counts: sparse.csr_array
    negatives: np.ndarray
    """All negatives of each patient, those below every positive too: shape (patients,)."""


@dataclass(frozen=True)
class PatientSums:
    """Sums per patient, shape (patients, len(names)), and the ranking where there are probabilities."""

    names: list[str]
    sums: np.ndarray
    ranking: Ranking | None
    common_sensitivity: float


def sum_by_patient(
    truth: np.ndarray,
    patients: np.ndarray,
    probability: np.ndarray | None = None,
    decision: np.ndarray | None = None,
    masks: pd.DataFrame | None = None,
    common_sensitivity: float = COMMON_SENSITIVITY,
) -> PatientSums:
    """Sum, by patient, the values from which a team's scores are computed.

    Args:
        truth: bool, shape (images,).
        patients: patient number from 0, shape (images,).
        probability: float in 0..1, shape (images,), or None.
        decision: the team's yes/no answer, bool, shape (images,), or None.
        masks: the table of :func:`segmentation.overlap`, or None.
        common_sensitivity: see :data:`COMMON_SENSITIVITY`.
    """
    truth = truth.astype(bool)
    columns = {"n": np.ones(len(truth)), "positive": truth}
    if decision is not None:
        columns |= _confusion_columns("", truth, decision)
    if probability is not None:
        columns["squared_error"] = (probability - truth) ** 2
        which = calibration_bins(probability)
        for number in range(CALIBRATION_BINS):
            columns[f"excess_{number}"] = (which == number) * (probability - truth)
    if masks is not None:
        columns |= _confusion_columns("mask_", truth, (masks.predicted_pixels > 0).to_numpy())
        groups = parts(masks.true_pixels.to_numpy(), masks.predicted_pixels.to_numpy())
        dice, iou = masks.dice.to_numpy(), masks.iou.to_numpy()
        columns |= {"dice": dice, "iou": iou, "iou_positives": iou * groups["positives"]}
        for name in ("positives", "found", *(f"positives_{size}" for size in SIZES)):
            columns[f"n_{name}"] = groups[name]
            columns[f"dice_{name}"] = dice * groups[name]
    total = int(patients.max()) + 1
    values = np.stack([np.asarray(column, float) for column in columns.values()], axis=1)
    sums = np.zeros((total, len(columns)))
    np.add.at(sums, patients, values)
    ranking = None if probability is None else _rank(truth, patients, probability, total)
    return PatientSums(list(columns), sums, ranking, common_sensitivity)


def scores(patient_sums: PatientSums, counts: np.ndarray) -> ScoreArrays:
    """All scores when patient ``p`` counts ``counts[b, p]`` times.

    Args:
        patient_sums: from :func:`sum_by_patient`.
        counts: shape (resamples, patients); a row of ones gives the scores of the images as they are.

    Returns:
        Score name -> float64, shape (resamples,); NaN where a score does not exist.
    """
    return _scores(patient_sums, np.ascontiguousarray(np.asarray(counts, float).T))


def _scores(patient_sums: PatientSums, drawn: np.ndarray) -> ScoreArrays:
    """:func:`scores` for counts laid out as (patients, resamples), the layout that its matrix products need."""
    sums = dict(zip(patient_sums.names, patient_sums.sums.T @ drawn, strict=True))
    values: ScoreArrays = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        if patient_sums.ranking is not None:
            values |= _ranked(patient_sums.ranking, drawn, patient_sums.common_sensitivity)
        if "true_positive" in sums:
            values |= _confusion_scores("", sums)
        if "squared_error" in sums:
            values["brier"] = sums["squared_error"] / sums["n"]
            excess = [np.abs(sums[f"excess_{number}"]) for number in range(CALIBRATION_BINS)]
            values["calibration_error"] = np.sum(excess, axis=0) / sums["n"]
        if "dice" in sums:
            values |= _mask_scores(sums)
            values |= _confusion_scores("mask_", sums)
    return values


def point_scores(patient_sums: PatientSums) -> dict[str, float]:
    """The scores of the images as they are."""
    return {
        name: float(values[0]) for name, values in scores(patient_sums, np.ones((1, len(patient_sums.sums)))).items()
    }


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries whose threads can be limited, found once: each search reads the process's whole memory map."""
    return ThreadpoolController()


def replicate_scores(team_sums: list[PatientSums], draws: Iterator[np.ndarray]) -> list[ScoreArrays]:
    """The scores of several teams in the same resamples: one dict per team, arrays of shape (resamples,)."""
    gathered: list[list[ScoreArrays]] = [[] for _ in team_sums]
    # One thread per team, and none within: the library's own threads would wait for each other, spinning.
    with _libraries().limit(limits=1), ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for counts in draws:
            drawn = np.ascontiguousarray(counts.T, dtype=float)
            for blocks, block in zip(gathered, pool.map(_scores, team_sums, repeat(drawn)), strict=True):
                blocks.append(block)
    return [{name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} for blocks in gathered]


def patient_weights(patient_sums: PatientSums, name: str) -> np.ndarray:
    """The share of each patient in the images that a score is a mean over: shape (patients,), sum 1.

    It depends on the truth alone, so it is the same for all teams. NaN where there is no such image.
    """
    sums = dict(zip(patient_sums.names, patient_sums.sums.T, strict=True))
    sums["negative"] = sums["n"] - sums["positive"]
    with np.errstate(invalid="ignore"):
        return np.mean([sums[over] / sums[over].sum() for over in _MEANS_OVER.get(name, ("n",))], axis=0)


def contributions(score: float, jackknife: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each patient's contribution to a score, shape (patients,): they sum to the score.

    Exact for every score that is a mean over the images that ``weights`` count; for the others (AUROC, F1, ...) it is
    the jackknife's linear approximation.

    Args:
        score: of all images.
        jackknife: the score with each patient left out in turn, shape (patients,).
        weights: from :func:`patient_weights`.
    """
    parts = (1 - weights) * (score - jackknife) + weights * score
    return parts + (score - parts.sum()) * weights


def _confusion_columns(prefix: str, truth: np.ndarray, decision: np.ndarray) -> dict[str, np.ndarray]:
    return {
        f"{prefix}true_positive": truth & decision,
        f"{prefix}false_positive": ~truth & decision,
        f"{prefix}false_negative": truth & ~decision,
        f"{prefix}true_negative": ~truth & ~decision,
    }


def _confusion_scores(prefix: str, sums: ScoreArrays) -> ScoreArrays:
    tp, fp = sums[f"{prefix}true_positive"], sums[f"{prefix}false_positive"]
    fn, tn = sums[f"{prefix}false_negative"], sums[f"{prefix}true_negative"]
    scores_by_name = {
        "accuracy": (tp + tn) / sums["n"],
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
    }
    scores_by_name["balanced_accuracy"] = (scores_by_name["sensitivity"] + scores_by_name["specificity"]) / 2
    return {prefix + name: values for name, values in scores_by_name.items()}


def _mask_scores(sums: ScoreArrays) -> ScoreArrays:
    negatives = sums["n"] - sums["n_positives"]
    scores_by_name = {
        "dice": sums["dice"] / sums["n"],
        "iou": sums["iou"] / sums["n"],
        "dice_positives": sums["dice_positives"] / sums["n_positives"],
        "iou_positives": sums["iou_positives"] / sums["n_positives"],
        "dice_found": sums["dice_found"] / sums["n_found"],
        "negatives_left_empty": (sums["dice"] - sums["dice_positives"]) / negatives,
        "positives_missed": 1 - sums["n_found"] / sums["n_positives"],
    }
    for size in SIZES:
        scores_by_name[f"dice_{size}"] = sums[f"dice_positives_{size}"] / sums[f"n_positives_{size}"]
    return scores_by_name


def _rank(truth: np.ndarray, patients: np.ndarray, probability: np.ndarray, total: int) -> Ranking:
    from scipy import sparse

    positive_scores = np.unique(probability[truth])  # ascending
    rows = len(positive_scores)

    def count_table(members: np.ndarray, index: np.ndarray) -> sparse.csr_array:
        kept = index >= 0
        patient_numbers = patients[members][kept]
        shape = (rows, total)
        return sparse.coo_array(
            (np.ones(len(patient_numbers)), (rows - 1 - index[kept], patient_numbers)), shape=shape
        ).tocsr()

    positive, negative = np.flatnonzero(truth), np.flatnonzero(~truth)
    below = (
        np.searchsorted(positive_scores, probability[negative], "right") - 1
    )  # highest of them not above the negative's score
    tied = np.isin(probability[negative], positive_scores)
    tables = [
        count_table(positive, np.searchsorted(positive_scores, probability[positive])),
        count_table(negative[tied], below[tied]),
        count_table(negative[~tied], below[~tied]),
    ]
    return Ranking(
        rows,
        sparse.vstack(tables, format="csr"),
        np.bincount(patients[negative], minlength=total).astype(float),
    )


def _ranked(ranking: Ranking, drawn: np.ndarray, common_sensitivity: float) -> ScoreArrays:
    """AUROC, average precision, and specificity where the sensitivity first reaches the common one.

    ``drawn`` is how often each patient counts, shape (patients, resamples).
    """
    counts = (ranking.counts @ drawn).reshape(3, ranking.rows, drawn.shape[1])
    gained, tied, above = counts  # each (distinct scores of positives, resamples)
    false = np.cumsum(above + tied, axis=0)
    true = np.cumsum(gained, axis=0)
    positives = gained.sum(axis=0)
    negatives = ranking.negatives @ drawn
    if not ranking.rows:
        undefined = np.full(drawn.shape[1], np.nan)
        return {"auroc": undefined, "auprc": undefined, "specificity_at_common": undefined}
    reached = np.argmax(true >= common_sensitivity * positives - 1e-9, axis=0)
    return {
        "auroc": np.sum(gained * (negatives - false + tied / 2), axis=0) / (positives * negatives),
        "auprc": np.sum(gained * true / np.maximum(true + false, 1), axis=0) / positives,
        "specificity_at_common": np.where(
            positives > 0, 1 - np.take_along_axis(false, reached[None], axis=0)[0] / negatives, np.nan
        ),
    }
