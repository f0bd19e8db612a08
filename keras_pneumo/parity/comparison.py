"""How far two sets of arrays are apart, and which array, in order, is the first beyond a bound.

In: arrays by name, first PyTorch's, whose order is the order of the computation. Out: a :class:`Difference`. Each kind
of quantity has its own measure: pixels are equal or not, activations are compared by the layer's range, gradients by
their norm, losses and rates value by value, and randomly drawn weights in standard errors of their standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Gap:
    """How far apart two arrays are."""

    absolute: float
    """Largest absolute difference."""
    relative: float
    """Largest relative difference, of what the measure relates to."""
    measured: float
    """What is compared with the bound."""


@dataclass(frozen=True)
class Difference:
    """How far apart two sets of arrays are."""

    absolute: float
    relative: float
    measured: float
    first: str = ""
    """The first array, in PyTorch's order, that is beyond the bound; blank where none is."""
    worst: str = ""
    """The array with the largest measured difference; blank where all are equal."""
    compared: int = 0
    """How many arrays."""

    @property
    def within(self) -> bool:
        """Whether all arrays are within the bound."""
        return not self.first


Measure = Callable[[np.ndarray, np.ndarray], Gap]
"""From PyTorch's array and actual, of one shape, to their gap."""

APART = Gap(math.inf, math.inf, math.inf)


def compare(
    expected: Arrays, actual: Arrays, measure: Measure, bound: float, tighter: Mapping[str, float] | None = None
) -> Difference:
    """Compare two sets of arrays; one that is missing, left over, of another shape or not finite is infinitely far off.

    ``tighter`` holds smaller bounds for some of the arrays.
    """
    bounds = tighter or {}
    gaps = {name: _gap(array, actual.get(name), measure) for name, array in expected.items()}
    gaps |= {name: APART for name in actual if name not in expected}
    if not gaps:
        raise ValueError("there is nothing to compare")
    worst = max(gaps, key=lambda name: gaps[name].measured)
    return Difference(
        absolute=max(gap.absolute for gap in gaps.values()),
        relative=max(gap.relative for gap in gaps.values()),
        measured=gaps[worst].measured,
        first=next((name for name, gap in gaps.items() if not gap.measured <= bounds.get(name, bound)), ""),
        worst=worst if gaps[worst].measured > 0 else "",
        compared=len(gaps),
    )


def _gap(expected: np.ndarray, actual: np.ndarray | None, measure: Measure) -> Gap:
    if actual is None or expected.shape != actual.shape:
        return APART
    if expected.dtype.kind == "f" and not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return APART
    return measure(expected, actual)


def exact(expected: np.ndarray, actual: np.ndarray) -> Gap:
    """Count unequal elements: equal means equal to the last bit."""
    if expected.dtype != actual.dtype:
        return APART
    if expected.dtype.kind not in "fiu":  # texts
        unequal = int((expected != actual).sum())
        return Gap(float(unequal > 0), unequal / max(expected.size, 1), unequal)
    largest, relative = _largest(expected, actual)
    return Gap(largest, relative, float((expected != actual).sum()))


def of_range(expected: np.ndarray, actual: np.ndarray) -> Gap:
    """Return the largest difference as a share of the reference's range; of a flat reference, of its largest value."""
    largest, relative = _largest(expected, actual)
    return Gap(largest, relative, relative)


def of_mean(expected: np.ndarray, actual: np.ndarray) -> Gap:
    """Return the mean difference as a share of the reference's range; for pixels of which a few may fall either way."""
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    largest, relative = _largest(expected, actual)
    scale = largest / relative if relative and math.isfinite(relative) else 1.0
    mean = float(np.abs(expected - actual).mean()) if expected.size else 0.0
    return Gap(largest, mean / scale, mean / scale)


def of_norm(expected: np.ndarray, actual: np.ndarray) -> Gap:
    """Return the norm of the difference as a share of the reference's norm; zero must be zero in both."""
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    difference, norm = float(np.linalg.norm(expected - actual)), float(np.linalg.norm(expected))
    relative = difference / norm if norm else math.inf if difference else 0.0
    return Gap(float(np.abs(expected - actual).max(initial=0.0)), relative, relative)


def of_value(expected: np.ndarray, actual: np.ndarray) -> Gap:
    """Return the largest difference of a value as a share of that value."""
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    difference = np.abs(expected - actual)
    shares = np.where(
        difference == 0, 0.0, difference / np.where(expected == 0, np.finfo(float).tiny, np.abs(expected))
    )
    relative = float(shares.max(initial=0.0))
    return Gap(float(difference.max(initial=0.0)), relative, relative)


def of_multiple(expected: np.ndarray, actual: np.ndarray) -> Gap:
    """Return how many times the reference's distance a distance is."""
    multiple = float(actual[0] / expected[0]) if expected[0] else math.inf if actual[0] else 0.0
    return Gap(float(actual[0]), multiple, multiple)


def summary_of(values: np.ndarray) -> np.ndarray:
    """Return what :func:`of_spread` compares: count, mean, standard deviation, kurtosis (normal 3, uniform 1.8)."""
    values = np.asarray(values, np.float64).ravel()
    mean, std = float(values.mean()), float(values.std())
    kurtosis = float(((values - mean) ** 4).mean() / std**4) if std else 0.0
    return np.array([values.size, mean, std, kurtosis])


def of_spread(expected: np.ndarray, actual: np.ndarray) -> Gap:
    """Compare two random draws by their summaries: the difference of mean, spread or shape in standard errors.

    The squared standard error of a standard deviation is ``std**2 (kurtosis - 1) / 4n``, that of a kurtosis at most
    ``24 / n``; both draws have one. Constants must be the same constant. A single random value says nothing.
    """
    (count, mean, std, kurtosis), (_, actual_mean, actual_std, actual_kurtosis) = expected, actual
    absolute = abs(actual_std - std)
    if std == 0 or actual_std == 0:
        if count == 1:
            return Gap(0.0, 0.0, 0.0)
        same = std == actual_std and mean == actual_mean
        return Gap(0.0, 0.0, 0.0) if same else Gap(max(absolute, abs(actual_mean - mean)), math.inf, math.inf)
    of_std = absolute / (std * math.sqrt(max(kurtosis - 1, 0.1) / 2 / count))
    of_mean = abs(actual_mean - mean) / (std * math.sqrt(2 / count))
    of_shape = abs(actual_kurtosis - kurtosis) / math.sqrt(48 / count)
    return Gap(absolute, absolute / std, max(of_std, of_mean, of_shape))


def _largest(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute difference, and that as a share of the reference's range."""
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    if expected.size == 0:
        return 0.0, 0.0
    largest = float(np.abs(expected - actual).max())
    scale = float(np.ptp(expected)) or float(np.abs(expected).max())
    return largest, largest / scale if scale else math.inf if largest else 0.0
