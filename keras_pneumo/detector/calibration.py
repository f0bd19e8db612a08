"""One calibrated probability: of images that are told 0.3, three in ten should have a pneumothorax.

In: probabilities and the truth of validation images, by patient. Out: a monotonic curve from one to the other, of the
kind that is better on patients it has not seen (log loss, cross-validated by patient). Training draws positives more
often than they are, so a network's own probability is a ranking first and a probability second.

Sources: Guo et al. 2017 (temperature); Zadrozny and Elkan 2002 (isotonic), Oron and Flournoy 2017 (its steps centred);
Platt 1999 (its end values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedGroupKFold

from keras_pneumo.errors import PneumoError

Kind = Literal["none", "temperature", "isotonic"]
KINDS: tuple[Kind, ...] = ("temperature", "isotonic")
"""What is tried; ``none``, the probability as it is, is scored beside them for comparison."""

FOLDS = 5
_CLIP = 1e-6
"""Probabilities of 0 and 1 have no logit."""


@dataclass(frozen=True)
class Calibration:
    """A curve from the network's probability to the calibrated one."""

    kind: Kind
    temperature: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()
    """Isotonic: points of the curve, straight between them and level beyond."""

    def apply(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64, of the same shape; the order of images never turns round."""
        probability = np.asarray(probability, float)
        if self.kind == "temperature":
            return 1 / (1 + np.exp(-log_odds(probability) / self.temperature))
        if self.kind == "isotonic":
            x, y = np.array(self.knots).T
            return np.interp(probability, x, y)
        return probability

    def as_json(self) -> dict[str, Any]:
        """For the record; :func:`read_calibration` reads it."""
        return {"kind": self.kind, "temperature": self.temperature, "knots": [list(knot) for knot in self.knots]}


@dataclass(frozen=True)
class Fitted:
    """A calibration, and what each kind was worth on images it was not fitted on."""

    calibration: Calibration
    scores: dict[str, dict[str, float]]
    """Kind -> ``log_loss`` and ``brier``, cross-validated by patient; ``none`` among them."""

    @property
    def log_loss(self) -> float:
        """Of the kind that was taken, cross-validated."""
        return self.scores[self.calibration.kind]["log_loss"]

    @property
    def sentence(self) -> str:
        """Which kind was taken and why."""
        if self.calibration.kind == "none":
            return "It is not calibrated: validation shows fewer than two patients with, or without, a pneumothorax."
        parts = [f"{kind} {found['log_loss']:.3f} (Brier {found['brier']:.3f})" for kind, found in self.scores.items()]
        return f"Calibrated by {self.calibration.kind}; cross-validated log loss: {', '.join(parts)}."


def log_odds(probability: np.ndarray) -> np.ndarray:
    """The logits of probabilities, those of 0 and 1 held finite."""
    kept = np.clip(np.asarray(probability, float), _CLIP, 1 - _CLIP)
    return np.log(kept / (1 - kept))


def fit_kind(kind: Kind, truth: np.ndarray, probability: np.ndarray) -> Calibration:
    """One kind of curve through all of these images."""
    if kind == "temperature":

        def loss(log_temperature: float) -> float:
            z = log_odds(probability) / np.exp(log_temperature)
            return float(np.mean(np.logaddexp(0, z) - truth * z))

        found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
        return Calibration("temperature", temperature=float(np.exp(found.x)))
    if kind == "isotonic":
        curve = IsotonicRegression(out_of_bounds="clip").fit(probability, truth)
        return Calibration("isotonic", knots=_centred(np.asarray(probability, float), curve.predict(probability)))
    return Calibration("none")


def _centred(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The knots of a strictly rising curve through the steps of an isotonic one: each step at its images' mean.

    A curve of steps would call many images equally likely that the network had ranked. So few images cannot tell a
    probability of 0 or 1 from Platt's 1 / (n + 2) and (n + 1) / (n + 2) either, so that the ends stay within these.
    """
    end = 1 / (len(x) + 2)
    steps = np.unique(y)
    knots = [(float(x[y == step].mean()), float(np.clip(step, end, 1 - end))) for step in steps]
    low, high = min(end, knots[0][1]) / 2, 1 - min(end, 1 - knots[-1][1]) / 2
    return ((min(0.0, knots[0][0]) - _CLIP, low), *knots, (1.0 + _CLIP, high))


def log_loss(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean negative log likelihood."""
    kept = np.clip(probability, _CLIP, 1 - _CLIP)
    return float(-np.mean(np.where(truth, np.log(kept), np.log(1 - kept))))


def brier(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared distance from the truth."""
    return float(np.mean((probability - truth) ** 2))


def fit_calibration(truth: np.ndarray, probability: np.ndarray, patients: np.ndarray, seed: int = 0) -> Fitted:
    """The kind with the lower cross-validated log loss, fitted on all images.

    With fewer than two patients of either kind no curve can be tried on unseen ones; the probability then stays as it
    is, and the sentence says so.

    Args:
        truth: bool, (n,).
        probability: the network's, (n,).
        patients: patient of each image; no patient is fitted and scored at once.
        seed: of the folds.
    """
    truth = np.asarray(truth, bool)
    folds = min(FOLDS, len(set(patients[truth])), len(set(patients[~truth])))
    if folds < 2:
        plain = {"log_loss": log_loss(truth, probability), "brier": brier(truth, probability)}
        return Fitted(Calibration("none"), {"none": plain})
    scores: dict[str, dict[str, float]] = {}
    for kind in ("none", *KINDS):
        found = np.zeros(len(truth))
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(probability, truth, patients)
        for fitted, scored in parts:
            found[scored] = fit_kind(kind, truth[fitted], probability[fitted]).apply(probability[scored])
        scores[kind] = {"log_loss": log_loss(truth, found), "brier": brier(truth, found)}
    best = min(KINDS, key=lambda kind: scores[kind]["log_loss"])
    return Fitted(fit_kind(best, truth, probability), scores)


def read_calibration(values: dict[str, Any]) -> Calibration:
    """The calibration of a record, checked to be one.

    Raises:
        PneumoError: it is none: an unknown kind, no temperature above 0, or knots that do not rise.
    """
    try:
        knots = tuple((float(x), float(y)) for x, y in values["knots"])
        found = Calibration(values["kind"], float(values["temperature"]), knots)
        x, y = np.array(knots).T if knots else (np.zeros(0), np.zeros(0))
        rising = bool(np.all(np.diff(x) >= 0) and np.all(np.diff(y) >= 0) and np.isfinite([*x, *y]).all())
        known = found.kind in ("none", "temperature") or (found.kind == "isotonic" and len(knots) > 0)
        if known and rising and np.isfinite(found.temperature) and found.temperature > 0:
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise PneumoError("The detector's record holds no calibration. Copy the detector again, or join its runs anew.")
