"""Intervals of scores and tests of their differences, always by patient.

In: a truth, scores or answers of one or two teams, and the patient of each image. Out: intervals and p values.
Images of one patient are not independent, so patients are resampled, and variances are summed over patients.
In the order of this file: resampling, the bootstrap interval of one score, means with intervals, the difference of two
teams by swapping their answers patient by patient, DeLong's test, and the other tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from keras_pneumo.errors import PneumoError

RESAMPLES = 10_000
LEVEL = 0.95


class Interval(NamedTuple):
    """Bounds of an interval; NaN where it cannot be computed."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """A two-sided paired test: the difference (first minus second), its standard error (NaN if it has none), and p."""

    difference: float
    error: float
    p: float


def resample_patients(patients: int, resamples: int, seed: int, block: int = 500) -> Iterator[np.ndarray]:
    """How often each patient is drawn in each resample of the patient-cluster bootstrap (Field and Welsh 2007).

    Args:
        patients: number of patients, drawn with replacement, so each brings all images or none.
        resamples: number of resamples in all.
        seed: the same seed gives the same draws whatever ``block`` is, so teams scored apart stay paired.
        block: resamples per array.

    Yields:
        int64 counts, shape (up to ``block``, patients); each row sums to ``patients``.
    """
    if patients < 1:
        raise PneumoError("There is no patient to resample. Give at least one.")
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, patients, size=(rows, patients))
        drawn += np.arange(rows)[:, None] * patients
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)


def random_halves(patients: int, halves: int, seed: int, block: int = 500) -> Iterator[np.ndarray]:
    """Random halves of the patients: each patient is in a half with probability 1/2, independently.

    Args:
        patients: number of patients.
        halves: number of halves in all.
        seed: the same seed gives the same halves whatever ``block`` is.
        block: halves per array.

    Yields:
        float64 of 0 and 1, shape (up to ``block``, patients).
    """
    rng = np.random.default_rng([seed, 1])  # not the bootstrap's stream
    for start in range(0, halves, block):
        yield (rng.random((min(block, halves - start), patients)) < 0.5).astype(float)


def leave_one_out(patients: int, block: int = 500) -> Iterator[np.ndarray]:
    """The jackknife's counts: every patient once, but one left out per row; in blocks as :func:`resample_patients`."""
    for start in range(0, patients, block):
        rows = np.arange(start, min(start + block, patients))
        counts = np.ones((len(rows), patients), np.int64)
        counts[np.arange(len(rows)), rows] = 0
        yield counts


def bca_interval(replicates: np.ndarray, point: float, jackknife: np.ndarray, level: float = LEVEL) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987, section 6).

    BCa and not the plain percentile, because test sets are small and scores near 1 are skewed: in a simulation
    (``tests/study_lab.py single``) with 40 patients and a true AUROC of 0.96, the percentile interval held the truth in
    88.1% of 2,000 studies, this one in 92.9%; with 150 patients and 0.86 in 94.2% and 94.5%. For the difference of two
    teams BCa is worse than the percentile and :func:`swap_difference` better than both.

    Args:
        replicates: the score in each resample, shape (resamples,); those where it did not exist (NaN) are left out.
        point: the score of the images as they are.
        jackknife: the score with each patient left out in turn, shape (patients,).
        level: how often the interval is to hold the true score.

    Returns:
        The interval; NaN when more than half of the replicates do not exist, or the score itself does not.
    """
    from scipy import stats

    finite, bias, acceleration = _bca(replicates, point, jackknife)
    if len(finite) == 0:
        return Interval(float("nan"), float("nan"))
    tails = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(finite, stats.norm.cdf(bias + tails / (1 - acceleration * tails)))
    return Interval(float(low), float(high))


def _bca(replicates: np.ndarray, point: float, jackknife: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The replicates that exist, the bias correction and the acceleration; no replicates where there is no interval."""
    from scipy import stats

    finite = replicates[np.isfinite(replicates)]
    if not np.isfinite(point) or len(finite) == 0 or len(finite) < len(replicates) / 2:
        return np.empty(0), 0.0, 0.0
    left_out = jackknife[np.isfinite(jackknife)]
    pull = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float(np.sum(pull**2))
    acceleration = float(np.sum(pull**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    return finite, float(stats.norm.ppf(_share_below(finite, point))), acceleration


def _share_below(replicates: np.ndarray, value: float) -> float:
    """Share of replicates below ``value``, ties counting half; kept away from 0 and 1, whose normal quantiles are
    infinite."""
    share = (np.mean(replicates < value) + np.mean(replicates <= value)) / 2
    return float(np.clip(share, 1 / (len(replicates) + 1), len(replicates) / (len(replicates) + 1)))


def exact_interval(hits: int, n: int, level: float = LEVEL) -> Interval:
    """Clopper-Pearson interval of ``hits`` of ``n``, for shares where the bootstrap has no width (15 of 15 correct)."""
    from scipy import stats

    if n == 0:
        return Interval(float("nan"), float("nan"))
    bounds = stats.binomtest(hits, n).proportion_ci(level, method="exact")
    return Interval(float(bounds.low), float(bounds.high))


def mean_by_patient(
    values: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, Interval]:
    """Mean over the images that have a value, and its interval over patients; NaN where none has.

    Args:
        values: (images,), NaN where there is none.
        patients: patient number from 0, (images,).
        resamples: number of resamples of the patients.
        seed: of the resamples.
    """
    counted = np.isfinite(values)
    if not counted.any():
        return float("nan"), Interval(float("nan"), float("nan"))
    total = int(patients.max()) + 1
    sums = np.bincount(patients[counted], weights=values[counted], minlength=total)
    images = np.bincount(patients[counted], minlength=total)
    value = float(values[counted].mean())

    def means(draws: Iterable[np.ndarray]) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([(drawn @ sums) / (drawn @ images) for drawn in draws])

    return value, bca_interval(means(resample_patients(total, resamples, seed)), value, means(leave_one_out(total)))


def mean_with_interval(values: np.ndarray, patients: np.ndarray, resamples: int, seed: int) -> tuple[float, Interval]:
    """Mean and interval by patient; where all are 0 or all are 1, the exact binomial interval over the patients.

    Args:
        values: (images,); NaN for an image that does not count.
        patients: number of each image's patient, (images,).
        resamples: of the patients.
        seed: of the resamples.
    """
    counted = np.isfinite(values)
    total = len(np.unique(patients[counted]))
    if all_alike(values):
        value = float(values[counted][0])
        return value, exact_interval(total if value else 0, total)
    return mean_by_patient(values, patients, resamples, seed)


def all_alike(values: np.ndarray) -> bool:
    """Whether all values (NaN aside) are 0, or all are 1: then the bootstrap interval has no width."""
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and float(np.ptp(finite)) == 0 and float(finite[0]) in (0, 1)


class Difference(NamedTuple):
    """A paired difference (first minus second) with its interval and the two-sided p of the null value."""

    value: float
    interval: Interval
    p: float


NO_DIFFERENCE = Difference(float("nan"), Interval(float("nan"), float("nan")), float("nan"))
_EQUAL = 1e-12
"""Sums of contributions that differ by less than this are equal; they are sums of a few thousand numbers under 1."""


def swap_difference(
    value: float, sums: np.ndarray, shares: np.ndarray, level: float = LEVEL, null: float = 0.0
) -> Difference:
    """Interval and p of a difference, by swapping the two teams' answers patient by patient (Fisher's randomisation).

    If two teams are equally good, it does not matter which of them gave which answers on a patient. So the difference
    is compared with what it becomes when the teams are swapped on a random half of the patients, which changes the
    sign of these patients' contributions. For a score that is a mean over images this test is exact at any number of
    patients: equal teams are called different in at most 5% of comparisons. The bootstrap holds that only with many
    patients: by Dice on positives it calls some pair of five equal teams different, after Holm, in 10.5% of boards of
    40 patients (percentile; BCa in 16%), this test in 4.3% (``tests/study_lab.py``). The interval holds every value of
    the difference that the same test does not reject; its bounds are quantiles of the differences on random halves
    (Hartigan 1969, typical values), so the interval excludes ``null`` exactly when p is at most 1 - ``level``.

    Args:
        value: the difference, which is the sum of all patients' contributions.
        sums: sum of the contributions of the patients in each random half, shape (halves,).
        shares: the weight of the patients in each half, from 0 to 1, shape (halves,): a shift of the difference by x
            shifts a half's sum by x times its share.
        level: how often the interval is to hold the true difference.
        null: the difference that p is about.

    Returns:
        The difference, the interval (infinite where so few patients have weight that no value can be rejected), and p,
        which is never under 1 / (halves + 1). NaN where a number is not known.
    """
    if not (np.isfinite(value) and np.isfinite(sums).all() and np.isfinite(shares).all()):
        return NO_DIFFERENCE
    least, most = _swap_bounds(value, sums, shares)
    rejected = int(np.floor((1 - level) * (len(sums) + 1) + _EQUAL))  # a value is rejected if p <= rejected / (n + 1)
    interval = Interval(float("-inf"), float("inf"))
    if 0 < rejected <= len(sums):
        low = float(np.partition(least, rejected - 1)[rejected - 1])
        high = float(np.partition(most, len(most) - rejected)[len(most) - rejected])
        interval = Interval(low, high)
    beyond = np.sum(least <= null) if null < value else np.sum(most >= null)
    return Difference(value, interval, 1.0 if null == value else float((1 + beyond) / (1 + len(sums))))


def _swap_bounds(value: float, sums: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smaller and the larger of the differences on each half and on its other half; infinite where one is empty."""
    halves = []
    for total, share in ((sums, shares), (value - sums, 1 - shares)):
        total = np.where(np.abs(total) < _EQUAL, 0.0, total)
        with np.errstate(invalid="ignore", divide="ignore"):
            halves.append(np.where(share > _EQUAL, total / share, np.nan))
    first, second = halves
    known = np.isfinite(first) & np.isfinite(second)
    return (
        np.where(known, np.minimum(first, second), -np.inf),
        np.where(known, np.maximum(first, second), np.inf),
    )


class DelongSums(NamedTuple):
    """One team's AUROC, and its patients' sums of DeLong's structural components, each minus the AUROC.

    Of two teams on the same images the difference of their sums gives the variance of the difference of their AUROCs.
    """

    area: float
    positive: np.ndarray
    """Sum over a patient's positives of (share of the negatives below it - area) / positives, shape (patients,)."""
    negative: np.ndarray
    """Sum over a patient's negatives of (share of the positives above it - area) / negatives, shape (patients,)."""
    positive_patients: int
    negative_patients: int


def delong_sums(truth: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> DelongSums:
    """The sums by patient from which the variance of an AUROC is computed, by mid-ranks (Sun and Xu 2014).

    Args:
        truth: bool, shape (images,).
        scores: shape (images,).
        patients: patient number from 0, shape (images,).
    """
    from scipy import stats

    truth = truth.astype(bool)
    m, n = int(truth.sum()), int((~truth).sum())
    total = int(patients.max()) + 1
    if m == 0 or n == 0:
        return DelongSums(float("nan"), np.full(total, np.nan), np.full(total, np.nan), 0, 0)
    everyone = stats.rankdata(scores)
    # Share of negatives below each positive, and of positives above each negative: the structural components.
    v10 = (everyone[truth] - stats.rankdata(scores[truth])) / n
    v01 = 1 - (everyone[~truth] - stats.rankdata(scores[~truth])) / m
    area = float(v10.mean())
    return DelongSums(
        area,
        np.bincount(patients[truth], weights=v10 - area, minlength=total) / m,
        np.bincount(patients[~truth], weights=v01 - area, minlength=total) / n,
        len(np.unique(patients[truth])),
        len(np.unique(patients[~truth])),
    )


def delong(
    truth: np.ndarray, probabilities: np.ndarray, clusters: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of several scores on the same images, and their covariance.

    Args:
        truth: bool, shape (images,), with both classes.
        probabilities: shape (teams, images).
        clusters: patient of each image, shape (images,). Without it, DeLong et al. 1988; with it, Obuchowski 1997,
            which is DeLong's when every image has a patient of its own.

    Returns:
        AUROC, shape (teams,); covariance, shape (teams, teams), NaN where a class has a single member (or cluster).
    """
    codes = np.arange(len(truth)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = [delong_sums(truth, np.asarray(row, float), codes) for row in np.atleast_2d(probabilities)]
    areas = np.array([team.area for team in sums])
    s10, s01, s11 = _delong_terms(sums)
    return areas, s10 + s01 + s11 + s11.T


def _delong_terms(sums: Sequence[DelongSums]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The covariance's three terms: among positives, among negatives, and between the two within a patient."""
    positive, negative = np.stack([team.positive for team in sums]), np.stack([team.negative for team in sums])
    k10, k01, total = sums[0].positive_patients, sums[0].negative_patients, positive.shape[1]
    if k10 < 2 or k01 < 2:
        undefined = np.full((len(sums), len(sums)), np.nan)
        return undefined, undefined, undefined
    return (
        positive @ positive.T * k10 / (k10 - 1),
        negative @ negative.T * k01 / (k01 - 1),
        positive @ negative.T * total / (total - 1),
    )


def delong_difference(first: DelongSums, second: DelongSums, level: float = LEVEL, null: float = 0.0) -> Difference:
    """Interval and p of the difference of two AUROCs by patient (Obuchowski 1997), with Student's t.

    The variance has two parts, from the patients with positives and from those with negatives, and the few positives of
    a chest radiograph test set make the first uncertain; so the quantile is Student's t with Welch and Satterthwaite's
    degrees of freedom, not the normal one. With 40 patients and 5 positive ones the normal quantile calls equal teams
    different in 7% of boards.

    Returns:
        NaN where a class has fewer than two patients, or the difference has no variance but is not ``null`` (all ranks
        of both teams are certain, as for a perfect AUROC beside a constant score).
    """
    from scipy import stats

    value = first.area - second.area
    apart = DelongSums(
        value,
        first.positive - second.positive,
        first.negative - second.negative,
        first.positive_patients,
        first.negative_patients,
    )
    s10, s01, s11 = (float(term[0, 0]) for term in _delong_terms([apart]))
    variance = s10 + s01 + 2 * s11
    if np.isnan(variance):
        return NO_DIFFERENCE
    if variance < _EQUAL**2 or s10 + s01 < _EQUAL**2:
        return Difference(0.0, Interval(0.0, 0.0), 1.0) if null == 0 and abs(value) < _EQUAL else NO_DIFFERENCE
    freedom = (s10 + s01) ** 2 / (s10**2 / (first.positive_patients - 1) + s01**2 / (first.negative_patients - 1))
    error = float(np.sqrt(variance))
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value - null) / error, freedom))
    return Difference(value, Interval(value - reach, value + reach), p)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> PairedTest:
    """Exact McNemar test of two teams' yes/no answers: is each equally often the only one that is right?

    Args:
        first_right: whether the first team is right, bool, shape (images,).
        second_right: the same for the second team.

    Returns:
        Difference in accuracy, no standard error, and the exact two-sided binomial p. The test takes images as
        independent; the board shows the interval by patient of the same difference beside it.
    """
    from scipy import stats

    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(~first_right & second_right))
    difference = (only_first - only_second) / len(first_right) if len(first_right) else float("nan")
    if only_first + only_second == 0:
        return PairedTest(difference, float("nan"), 1.0)
    p = stats.binomtest(only_first, only_first + only_second).pvalue
    return PairedTest(difference, float("nan"), float(p))


def permutation_test(first: np.ndarray, second: np.ndarray, most: int = 20_000, seed: int = 0) -> PairedTest:
    """Permutation test of two teams' mean scores over several trainings: which team a training belongs to is permuted.

    Args:
        first: one score per training of the first team, shape (seeds,).
        second: the same for the second team; the numbers may differ.
        most: up to this number all permutations are tried, which makes p exact; beyond it so many are drawn at random
            (p then counts the observed one too, see Phipson and Smyth 2010).
        seed: seed of the random permutations.

    Returns:
        Difference of the means, no standard error, and the share of permutations with at least as large a difference in
        either direction. For equal numbers it cannot be under 2 / C(n1 + n2, n1): 0.1 for three seeds against three.
    """
    both = np.concatenate([first, second]).astype(float)
    k = len(first)
    observed = float(first.mean() - second.mean())
    if comb(len(both), k) <= most:
        members = np.array(list(combinations(range(len(both)), k)))
        extra = 0
    else:
        rng = np.random.default_rng(seed)
        members = np.argsort(rng.random((most, len(both))), axis=1)[:, :k]
        extra = 1
    sums = both[members].sum(axis=1)
    gaps = sums / k - (both.sum() - sums) / (len(both) - k)
    hits = int(np.sum(np.abs(gaps) >= abs(observed) - 1e-12))
    return PairedTest(observed, float("nan"), (hits + extra) / (len(gaps) + extra))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment (1979) of several p values, in the order given; NaN stays NaN and is not counted.

    Written here because scipy has only Benjamini and Hochberg's adjustment, and statsmodels would be a further
    dependency for these few lines.
    """
    p = np.asarray(p_values, float)
    adjusted = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p, kind="stable") if not np.isnan(p[index])]
    highest = 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - position) * p[index]))
        adjusted[index] = highest
    return adjusted
