"""Scores of probabilities and yes/no answers: plain functions of truth and prediction.

In: ``truth``, bool, shape (images,); ``probability``, float in 0..1, shape (images,). Out: numbers, NaN where a number
does not exist (sensitivity without positives), never an exception. Results come from here and never from Keras's
streaming metrics, whose AUC has 200 thresholds (0.616 where the exact value is 0.619).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from keras_pneumo.errors import PneumoError

CALIBRATION_BINS = 10
"""Equal-width bins of the calibration error (Guo et al. 2017 use 15, Naeini et al. 2015 use 10)."""


class Confusion(NamedTuple):
    """Counts of images."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


def confusion(truth: np.ndarray, decision: np.ndarray) -> Confusion:
    """The four counts of a yes/no answer, both arrays bool, shape (images,)."""
    truth, decision = truth.astype(bool), decision.astype(bool)
    positive = int(np.sum(truth & decision)), int(np.sum(~truth & decision))
    return Confusion(*positive, int(np.sum(truth & ~decision)), int(np.sum(~truth & ~decision)))


def rates(counts: Confusion) -> dict[str, float]:
    """Accuracy, sensitivity, specificity, both predictive values and F1; NaN where nothing is counted."""
    tp, fp, fn, tn = counts
    return {
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def ratio(part: float, whole: float) -> float:
    """``part / whole``, NaN where the whole is 0."""
    return part / whole if whole else float("nan")


def why_undefined(truth: np.ndarray) -> str | None:
    """Why AUROC and similar scores do not exist for this truth, as a sentence; None when they do."""
    if truth.all() or not truth.any():
        if not len(truth):
            return "There is no image."
        kind = "positive" if truth.all() else "negative"
        images = "The only image is" if len(truth) == 1 else f"All {len(truth):,} images are"
        return f"{images} {kind}, so there is nothing to rank them against."
    return None


def auroc(truth: np.ndarray, probability: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting half (Mann-Whitney)."""
    from scipy import stats

    truth = truth.astype(bool)
    if why_undefined(truth):
        return float("nan")
    positives = int(truth.sum())
    rank_sum = stats.rankdata(probability)[truth].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))


def auprc(truth: np.ndarray, probability: np.ndarray) -> float:
    """Average precision: precision at each distinct score weighted by the positives it adds; no interpolation."""
    from sklearn.metrics import average_precision_score

    truth = truth.astype(bool)
    if not truth.any():
        return float("nan")
    return float(average_precision_score(truth, probability))


def threshold_curve(truth: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
    """Every operating point: ``threshold`` (answer yes at or above), ``sensitivity``, ``specificity``, ``ppv``.

    From the strictest (infinite threshold, nothing is positive, its ``ppv`` taken as 1) to the laxest; one row per
    distinct score.
    """
    truth = truth.astype(bool)
    order = np.argsort(-probability, kind="stable")
    scores, positive = probability[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.empty(0, int)
    tp, fp = np.cumsum(positive)[last], np.cumsum(~positive)[last]
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "threshold": np.append(np.inf, scores[last]),
                "sensitivity": np.append(0.0, tp / positive.sum()),
                "specificity": np.append(1.0, 1 - fp / (~positive).sum()),
                "ppv": np.append(1.0, tp / (tp + fp)),
            }
        )


def fit_threshold(
    truth: np.ndarray, probability: np.ndarray, criterion: Literal["youden", "accuracy", "f1"] = "youden"
) -> float:
    """Fit the operating threshold on a validation subset; the answer is yes at or above it.

    Args:
        truth: bool, shape (images,).
        probability: float in 0..1, shape (images,).
        criterion: ``youden`` (the default) maximises sensitivity + specificity, the same as balanced accuracy; it does
            not depend on the share of positives, so it holds for a test set with another share and never
            always answers "no", as ``accuracy`` may at 22% positives. ``f1`` maximises F1.

    Returns:
        A threshold halfway between two neighbouring scores, so that a small shift of a score changes no answer. Of
        several that serve equally well, the middle one by rank (the lower of the two middle ones).

    Raises:
        PneumoError: there is one class only, so no threshold is better than another.
    """
    truth = truth.astype(bool)
    reason = why_undefined(truth)
    if reason:
        raise PneumoError(
            f"No operating threshold can be fitted. {reason} "
            "Use a validation subset with both classes, or give a threshold."
        )
    scores = np.unique(probability)
    below = np.append(0.0, scores[:-1]) if scores[0] > 0 else np.append(scores[0], scores[:-1])
    halfway = (below + scores) / 2
    halfway = np.where(halfway > below, halfway, scores)  # neighbouring floats have nothing between them
    candidates = np.append(halfway, min(1.0, (scores[-1] + 1.0) / 2))
    if candidates[-1] <= scores[-1]:  # a score of 1 leaves no room above itself
        candidates = candidates[:-1]
    positive = np.sort(probability[truth])
    negative = np.sort(probability[~truth])
    tp = len(positive) - np.searchsorted(positive, candidates, "left")
    fp = len(negative) - np.searchsorted(negative, candidates, "left")
    value = {
        "youden": tp / len(positive) - fp / len(negative),
        "accuracy": (tp + len(negative) - fp) / len(truth),
        "f1": 2 * tp / (len(positive) + tp + fp),
    }[criterion]
    best = np.flatnonzero(value >= value.max() - 1e-12)
    return float(candidates[best[(len(best) - 1) // 2]])


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Agreement of two yes/no answers on the same images beyond chance (Cohen 1960); both bool, shape (images,).

    NaN where all answers are alike, since then chance alone agrees on everything.
    """
    from sklearn.metrics import cohen_kappa_score

    if (first.all() and second.all()) or not (first.any() or second.any()):
        return float("nan")
    return float(cohen_kappa_score(first, second))


def brier(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared distance of the probability from 0 or 1 (Brier 1950); 0 is best."""
    return float(np.mean((probability - truth) ** 2)) if len(truth) else float("nan")


def calibration_bins(probability: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """The equal-width bin of each probability, 0 to ``bins - 1``; a bin holds its lower edge, the last also 1."""
    return np.minimum((probability * bins).astype(int), bins - 1)


def calibration_curve(truth: np.ndarray, probability: np.ndarray, bins: int = CALIBRATION_BINS) -> pd.DataFrame:
    """The calibration curve: mean probability and share of positives, per filled bin.

    Returns:
        ``low``, ``high`` (edges), ``n``, ``promised`` (mean probability), ``observed`` (share of positives), and
        ``observed_low``, ``observed_high`` (its 95% Wilson interval).
    """
    from scipy import stats

    which = calibration_bins(probability, bins)
    rows = []
    for number in np.unique(which):
        inside = which == number
        n, hits = int(inside.sum()), int(truth[inside].sum())
        interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
        rows.append(
            {
                "low": number / bins,
                "high": (number + 1) / bins,
                "n": n,
                "promised": float(probability[inside].mean()),
                "observed": hits / n,
                "observed_low": float(interval.low),
                "observed_high": float(interval.high),
            }
        )
    return pd.DataFrame(rows, columns=["low", "high", "n", "promised", "observed", "observed_low", "observed_high"])


def calibration_error(truth: np.ndarray, probability: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: the mean of \\|promised - observed\\| over bins, weighted by their images."""
    curve = calibration_curve(truth, probability, bins)
    if curve.empty:
        return float("nan")
    return float(np.average(np.abs(curve.promised - curve.observed), weights=curve.n))
