"""How far two sets of arrays lie apart, and at which of them, in order, they first do so by more than a bound.

In: arrays by name, PyTorch's first, whose order is the order of the computation. Out: a :class:`Difference`. Each kind
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
    """Largest relative one, of what the measure relates to."""
    measured: float
    """What is held against the bound."""


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
"""From PyTorch's array and ours, of one shape, to their gap."""

APART = Gap(math.inf, math.inf, math.inf)


def compare(
    theirs: Arrays, ours: Arrays, measure: Measure, bound: float, tighter: Mapping[str, float] | None = None
) -> Difference:
    """The gap of two sets of arrays; one that is missing, left over, misshapen or not finite is infinitely far off.

    ``tighter`` has bounds of their own for some of the arrays.
    """
    bounds = tighter or {}
    gaps = {name: _gap(array, ours.get(name), measure) for name, array in theirs.items()}
    gaps |= {name: APART for name in ours if name not in theirs}
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


def _gap(theirs: np.ndarray, ours: np.ndarray | None, measure: Measure) -> Gap:
    if ours is None or theirs.shape != ours.shape:
        return APART
    if theirs.dtype.kind == "f" and not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
        return APART
    return measure(theirs, ours)


def exact(theirs: np.ndarray, ours: np.ndarray) -> Gap:
    """Equal to the last bit, or not: measured is the number of unequal elements."""
    if theirs.dtype != ours.dtype:
        return APART
    if theirs.dtype.kind not in "fiu":  # texts
        unequal = int((theirs != ours).sum())
        return Gap(float(unequal > 0), unequal / max(theirs.size, 1), unequal)
    largest, relative = _largest(theirs, ours)
    return Gap(largest, relative, float((theirs != ours).sum()))


def of_range(theirs: np.ndarray, ours: np.ndarray) -> Gap:
    """Largest difference as a share of the reference's range; of a flat reference, of its largest value."""
    largest, relative = _largest(theirs, ours)
    return Gap(largest, relative, relative)


def of_norm(theirs: np.ndarray, ours: np.ndarray) -> Gap:
    """Norm of the difference as a share of the reference's norm; what is nought in one must be nought in the other."""
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    difference, norm = float(np.linalg.norm(theirs - ours)), float(np.linalg.norm(theirs))
    relative = difference / norm if norm else math.inf if difference else 0.0
    return Gap(float(np.abs(theirs - ours).max(initial=0.0)), relative, relative)


def of_value(theirs: np.ndarray, ours: np.ndarray) -> Gap:
    """Largest difference of a value as a share of that value."""
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    difference = np.abs(theirs - ours)
    shares = np.where(difference == 0, 0.0, difference / np.where(theirs == 0, np.finfo(float).tiny, np.abs(theirs)))
    relative = float(shares.max(initial=0.0))
    return Gap(float(difference.max(initial=0.0)), relative, relative)


def summary_of(values: np.ndarray) -> np.ndarray:
    """What :func:`of_spread` compares: number of values, mean, standard deviation, kurtosis (normal 3, uniform 1.8)."""
    values = np.asarray(values, np.float64).ravel()
    mean, std = float(values.mean()), float(values.std())
    kurtosis = float(((values - mean) ** 4).mean() / std**4) if std else 0.0
    return np.array([values.size, mean, std, kurtosis])


def of_spread(theirs: np.ndarray, ours: np.ndarray) -> Gap:
    """Two random draws by their summaries: the difference of mean, spread or shape in standard errors.

    The squared standard error of a standard deviation is ``std**2 (kurtosis - 1) / 4n``, that of a kurtosis at most
    ``24 / n``; both draws have one. Constants must be the same constant. A single random value says nothing.
    """
    (count, mean, std, kurtosis), (_, our_mean, our_std, our_kurtosis) = theirs, ours
    absolute = abs(our_std - std)
    if std == 0 or our_std == 0:
        if count == 1:
            return Gap(0.0, 0.0, 0.0)
        same = std == our_std and mean == our_mean
        return Gap(0.0, 0.0, 0.0) if same else Gap(max(absolute, abs(our_mean - mean)), math.inf, math.inf)
    of_std = absolute / (std * math.sqrt(max(kurtosis - 1, 0.1) / 2 / count))
    of_mean = abs(our_mean - mean) / (std * math.sqrt(2 / count))
    of_shape = abs(our_kurtosis - kurtosis) / math.sqrt(48 / count)
    return Gap(absolute, absolute / std, max(of_std, of_mean, of_shape))


def _largest(theirs: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and that as a share of the reference's range."""
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    if theirs.size == 0:
        return 0.0, 0.0
    largest = float(np.abs(theirs - ours).max())
    scale = float(np.ptp(theirs)) or float(np.abs(theirs).max())
    return largest, largest / scale if scale else math.inf if largest else 0.0
