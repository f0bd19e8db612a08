"""Whether two frameworks' scores are equivalent, from several trainings of each on the same test patients.

In: for each seed the difference of a score, first framework minus second, and the same difference with each patient
left out. Out: the mean difference with an interval that counts both seeds and patients, and a verdict against a margin
that was declared beforehand.

The model is Obuchowski and Rockette's (1995) for studies in which several readers read the same patients, with seeds in
the place of readers: both are random, and they are crossed. The variance of the mean difference over n seeds is

    S2 / n + c,

S2 being the variance of the differences over seeds, and c the covariance that the differences of two seeds have because
the patients are the same (by the jackknife over patients). S2 holds the patients' part that two seeds do not share, so
nothing is counted twice. Degrees of freedom: Satterthwaite's, of both terms (Hillis 2007 has those of the first). A
crossed bootstrap, which resamples seeds and patients, would need more than five seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from keras_pneumo.evaluation.scoring.statistics import Interval

Outcome = Literal["equivalent", "different", "undecided"]

MARGIN = 0.02
"""Default margin: scores, AUROC or Dice, that differ by less are taken as equivalent."""

LEVEL = 0.95
"""How often the interval is to hold the true difference."""

EQUIVALENCE_LEVEL = 0.9
"""The level of the interval that must lie within the margin: the same as two one-sided tests at 5%."""

MOST_SEEDS, MOST_PATIENTS = 100, 1000
"""Most seeds, and most times the patients, that a recommendation goes up to."""

_NOTHING = 1e-12


@dataclass(frozen=True)
class SeededDifference:
    """The mean difference of a score over seeds, and what its uncertainty is made of."""

    differences: np.ndarray
    """Of each seed, first framework minus second: (seeds,)."""
    seed_variance: float
    """Variance of the differences over seeds beyond what the patients explain; at least 0."""
    own_patients: float
    """Variance through the patients that the difference of one seed does not share with another's."""
    shared_patients: float
    """Variance through the patients that the differences of all seeds share; no further seed makes it smaller."""
    patients: int
    patient_freedom: float
    """Degrees of freedom of the patients' variance."""

    @property
    def seeds(self) -> int:
        """How many trainings of each framework."""
        return len(self.differences)

    @property
    def value(self) -> float:
        """The mean difference."""
        return float(np.mean(self.differences))

    def error(self, seeds: int | None = None, patients: int | None = None) -> tuple[float, float]:
        """Standard error of the mean difference and its degrees of freedom; for other numbers what they would be.

        NaN with one seed, which says nothing of another.
        """
        n, share = seeds or self.seeds, self.patients / (patients or self.patients)
        if n < 2 or self.seeds < 2:
            return math.nan, math.nan
        of_seeds = (self.seed_variance + self.own_patients * share) / n
        of_patients = self.shared_patients * share
        variance = of_seeds + of_patients
        if variance < _NOTHING**2:
            return 0.0, float(n - 1)
        freedom_of_patients = max(self.patient_freedom / share, 1.0)
        freedom = variance**2 / (of_seeds**2 / (n - 1) + of_patients**2 / freedom_of_patients)
        return math.sqrt(variance), freedom

    def half_width(self, level: float = LEVEL, seeds: int | None = None, patients: int | None = None) -> float:
        """Half the width of the interval; infinite with one seed."""
        from scipy import stats

        error, freedom = self.error(seeds, patients)
        return math.inf if math.isnan(error) else float(stats.t.ppf((1 + level) / 2, freedom)) * error

    def interval(self, level: float = LEVEL) -> Interval:
        """The interval of the mean difference."""
        reach = self.half_width(level)
        return Interval(self.value - reach, self.value + reach)


def seeded_difference(differences: np.ndarray, left_out: np.ndarray, with_positives: np.ndarray) -> SeededDifference:
    """The mean difference over seeds.

    Args:
        differences: of each seed, the first framework's score minus the second's: (seeds,).
        left_out: the same with each patient left out: (seeds, patients).
        with_positives: whether each patient has an image with pneumothorax: (patients,).
    """
    differences = np.asarray(differences, float)
    seeds, patients = left_out.shape
    spread = left_out - left_out.mean(axis=1, keepdims=True)
    covariances = (patients - 1) / patients * spread @ spread.T  # jackknife (Efron and Stein 1981)
    own = float(np.mean(np.diag(covariances)))
    shared = 0.0
    if seeds > 1:
        shared = float((covariances.sum() - np.trace(covariances)) / (seeds * (seeds - 1)))
    shared = min(max(shared, 0.0), own)
    total = float(np.var(differences, ddof=1)) if seeds > 1 else math.nan
    return SeededDifference(
        differences,
        max(total - (own - shared), 0.0) if seeds > 1 else math.nan,
        # What S2 has over the seeds' own variance; all of it where it is smaller than the patients say.
        min(own - shared, total) if seeds > 1 else own - shared,
        shared,
        patients,
        _patient_freedom(spread.mean(axis=0), with_positives),
    )


def _patient_freedom(spread: np.ndarray, with_positives: np.ndarray) -> float:
    """Welch and Satterthwaite's degrees of freedom: the few patients with positives make their part uncertain."""
    parts = [(float(np.sum(spread[group] ** 2)), int(group.sum())) for group in (with_positives, ~with_positives)]
    total = sum(part for part, _ in parts)
    below = sum(part**2 / max(count - 1, 1) for part, count in parts if count)
    return total**2 / below if below > 0 else float(max(len(spread) - 1, 1))


@dataclass(frozen=True)
class Verdict:
    """What follows from a mean difference and the margin."""

    outcome: Outcome
    margin: float
    interval: Interval
    """The 95% interval of the mean difference."""
    equivalence_interval: Interval
    """The 90% interval, which must lie within the margin."""
    p_equivalence: float
    """The larger p of the two one-sided tests: of a true difference at the margin or beyond it."""
    p_different: float
    """Two-sided p of no difference."""
    more_seeds: int | None
    """About so many seeds more would decide, if all else stays; None where decided, or where no number would."""
    more_patients: int | None
    """About so many test patients in all would decide with these seeds; None as above."""

    def sentences(self, score: str, difference: SeededDifference, first: str, second: str) -> list[str]:
        """The verdict in plain words; the first sentence is the headline."""
        low, high = self.interval
        figures = (
            f"The mean difference, {first} minus {second}, is {signed(difference.value)} "
            f"(95% interval {signed(low)} to {signed(high)})."
        )
        if self.outcome == "equivalent":
            beside = " It is not zero, but smaller than the margin." if low > 0 or high < 0 else ""
            return [f"Equivalent: {score} differs by less than {self.margin:g}.", figures + beside]
        if self.outcome == "different":
            better = first if difference.value > 0 else second
            return [f"Different: {better} has the higher {score}.", figures]
        return [
            f"Undecided: {score} may or may not differ by {self.margin:g}.",
            figures,
            self._what_would_decide(difference),
        ]

    def _what_would_decide(self, difference: SeededDifference) -> str:
        ways = []
        if self.more_seeds is not None:
            ways.append(f"about {self.more_seeds} more seed{'s' * (self.more_seeds != 1)} with these patients")
        if self.more_patients is not None:
            ways.append(f"about {self.more_patients} test patients in place of {difference.patients} with these seeds")
        if difference.seeds < 2:
            return "One seed says nothing about another: train at least two, better five."
        if not ways:
            return "At a difference so close to the margin no reasonable number of seeds or patients would decide."
        if self.more_seeds is None:
            ways.append("no number of seeds alone would, since all are tested on the same patients")
        return f"If the difference stays as it is, this would decide: {', or '.join(ways)}."


def equivalence_verdict(difference: SeededDifference, margin: float = MARGIN) -> Verdict:
    """The verdict: *equivalent* by two one-sided tests, else *different* where the 95% interval excludes 0.

    A difference that is certain but smaller than the margin is *equivalent*: that is what the margin was declared for.

    Args:
        difference: from :func:`seeded_difference`.
        margin: declared before the first training; greater than 0.
    """
    outer, inner = difference.interval(LEVEL), difference.interval(EQUIVALENCE_LEVEL)
    outcome: Outcome = "undecided"
    if difference.seeds > 1:
        if -margin < inner.low and inner.high < margin:
            outcome = "equivalent"
        elif outer.low > 0 or outer.high < 0:
            outcome = "different"
    seeds = patients = None
    if outcome == "undecided" and difference.seeds > 1:
        seeds = _least(
            lambda n: difference.half_width(EQUIVALENCE_LEVEL, seeds=n),
            lambda n: difference.half_width(LEVEL, seeds=n),
            difference,
            margin,
            difference.seeds,
            MOST_SEEDS,
        )
        patients = _least(
            lambda m: difference.half_width(EQUIVALENCE_LEVEL, patients=m),
            lambda m: difference.half_width(LEVEL, patients=m),
            difference,
            margin,
            difference.patients,
            MOST_PATIENTS * difference.patients,
        )
    return Verdict(
        outcome,
        margin,
        outer,
        inner,
        max(_p(difference, -margin, upper=True), _p(difference, margin, upper=False)),
        min(1.0, 2 * min(_p(difference, 0.0, upper=True), _p(difference, 0.0, upper=False))),
        None if seeds is None else seeds - difference.seeds,
        patients,
    )


def _least(
    equivalence: Callable[[int], float],
    difference_from_zero: Callable[[int], float],
    difference: SeededDifference,
    margin: float,
    now: int,
    most: int,
) -> int | None:
    """The smallest number over ``now`` that decides either way, by bisection, since intervals only get narrower."""
    distance = abs(difference.value)

    def decides(number: int) -> bool:
        return equivalence(number) < margin - distance or difference_from_zero(number) < distance

    if not decides(most):
        return None
    low, high = now, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _p(difference: SeededDifference, null: float, upper: bool) -> float:
    """One-sided p of a true difference of ``null``, against a larger one (``upper``) or a smaller one."""
    from scipy import stats

    error, freedom = difference.error()
    apart = (difference.value - null) * (1 if upper else -1)
    if math.isnan(error):
        return 1.0
    if error == 0:
        return 0.0 if apart > 0 else 1.0
    return float(stats.t.sf(apart / error, freedom))


def signed(value: float) -> str:
    """A difference with its sign and four decimals; ``–`` where it does not exist."""
    return "–" if not math.isfinite(value) else f"{value:+.4f}".replace("-", "−")
