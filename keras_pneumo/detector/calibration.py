"""Calibration of the probability: of images with a probability of 0.3, three in ten should have a pneumothorax.

In: probabilities and the truth of validation images, by patient. Out: a monotonic curve from one to the other, of the
kind that is better on patients it has not seen (log loss, cross-validated by patient). Training draws positives more
often than they occur, so a network's own probability ranks images well but is too high or too low.

The temperature is fitted here and not by scikit-learn: its ``CalibratedClassifierCV(method="temperature")`` (1.9) wants
a classifier object, keeps the temperature in a private attribute, and does not limit it to a sensible range.

Sources: Guo et al. 2017 (temperature); Zadrozny and Elkan 2002 (isotonic), Oron and Flournoy 2017 (its steps centred);
Platt 1999 (its end values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn import metrics
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedGroupKFold

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.metrics import brier

Kind = Literal["none", "temperature", "isotonic"]
KINDS: tuple[Kind, ...] = ("temperature", "isotonic")
"""The kinds that are tried. ``none``, the probability as it is, is scored beside them for comparison."""

FOLDS = 5
_HOTTEST = 1000.0
"""Temperature up to which a record is believed; fitted ones are at most 20. From there on all answers are near 0.5."""

_CLIP = 1e-6
"""Probabilities of 0 and 1 have no logit."""


@dataclass(frozen=True)
class Calibration:
    """A monotonic curve from the network's probability to the calibrated one."""

    kind: Kind
    temperature: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()
    """Isotonic: points of the curve, which is straight between them and constant beyond the ends."""

    def apply(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64, of the same shape; the ranking of images stays as it is."""
        probability = np.asarray(probability, float)
        if self.kind == "temperature":
            return np.asarray(expit(log_odds(probability) / self.temperature))
        if self.kind == "isotonic":
            x, y = np.array(self.knots).T
            return np.interp(probability, x, y)
        return probability

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``detector.json``; :func:`read_calibration` reads them."""
        return {"kind": self.kind, "temperature": self.temperature, "knots": [list(knot) for knot in self.knots]}


@dataclass(frozen=True)
class CalibrationFit:
    """A calibration, and how each kind scores on images it was not fitted on."""

    calibration: Calibration
    scores: dict[str, dict[str, float]]
    """Kind -> ``log_loss`` and ``brier``, cross-validated by patient; ``none`` among them."""

    @property
    def log_loss(self) -> float:
        """Cross-validated log loss of the kind that was chosen."""
        return self.scores[self.calibration.kind]["log_loss"]

    @property
    def sentence(self) -> str:
        """Which kind was chosen and why."""
        if self.calibration.kind == "none":
            return (
                "The probability is not calibrated: validation has fewer than two patients with, or fewer than two "
                "without, a pneumothorax."
            )
        parts = [f"{kind} {score['log_loss']:.3f} (Brier {score['brier']:.3f})" for kind, score in self.scores.items()]
        return f"Calibrated by {self.calibration.kind}; cross-validated log loss: {', '.join(parts)}."


def fit_calibration(truth: np.ndarray, probability: np.ndarray, patients: np.ndarray, seed: int = 0) -> CalibrationFit:
    """Chooses the kind with the lower cross-validated log loss and fits it on all images.

    With fewer than two positive or fewer than two negative patients no curve can be tried on unseen ones. The
    probability then stays as it is, and :attr:`CalibrationFit.sentence` says so.

    Args:
        truth: bool, (n,).
        probability: the network's, (n,).
        patients: patient of each image; no patient is in a fold's fitted and scored images at once.
        seed: seed of the folds.
    """
    truth = np.asarray(truth, bool)
    folds = min(FOLDS, len(set(patients[truth])), len(set(patients[~truth])))
    if folds < 2:
        plain = {"log_loss": log_loss(truth, probability), "brier": brier(truth, probability)}
        return CalibrationFit(Calibration("none"), {"none": plain})
    scores: dict[str, dict[str, float]] = {}
    for kind in ("none", *KINDS):
        calibrated = np.zeros(len(truth))
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(probability, truth, patients)
        for fitted, scored in splits:
            calibrated[scored] = fit_kind(kind, truth[fitted], probability[fitted]).apply(probability[scored])
        scores[kind] = {"log_loss": log_loss(truth, calibrated), "brier": brier(truth, calibrated)}
    best = min(KINDS, key=lambda kind: scores[kind]["log_loss"])
    return CalibrationFit(fit_kind(best, truth, probability), scores)


def fit_kind(kind: Kind, truth: np.ndarray, probability: np.ndarray) -> Calibration:
    """Fits one kind of curve to all of these images."""
    if kind == "temperature":

        def loss(log_temperature: float) -> float:
            z = log_odds(probability) / np.exp(log_temperature)
            return float(np.mean(np.logaddexp(0, z) - truth * z))

        minimum = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
        return Calibration("temperature", temperature=float(np.exp(minimum.x)))
    if kind == "isotonic":
        curve = IsotonicRegression(out_of_bounds="clip").fit(probability, truth)
        return Calibration("isotonic", knots=_centred(np.asarray(probability, float), curve.predict(probability)))
    return Calibration("none")


def _centred(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The knots of a strictly rising curve through the steps of an isotonic one, each step at its images' mean.

    A curve of steps would give many images the same probability although the network ranked them. And n images are too
    few to show a probability of 0 or 1, so the ends stay within Platt's 1 / (n + 2) and (n + 1) / (n + 2).
    """
    end = 1 / (len(x) + 2)
    steps = np.unique(y)
    knots = [(float(x[y == step].mean()), float(np.clip(step, end, 1 - end))) for step in steps]
    low, high = min(end, knots[0][1]) / 2, 1 - min(end, 1 - knots[-1][1]) / 2
    return ((min(0.0, knots[0][0]) - _CLIP, low), *knots, (1.0 + _CLIP, high))


def log_odds(probability: np.ndarray) -> np.ndarray:
    """The logits of probabilities; those of 0 and 1 are kept finite."""
    return np.asarray(logit(np.clip(np.asarray(probability, float), _CLIP, 1 - _CLIP)))


def log_loss(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean negative log likelihood; finite also where a probability is 0 or 1."""
    clipped = np.clip(probability, _CLIP, 1 - _CLIP)
    return float(metrics.log_loss(truth, clipped, labels=[False, True]))


def read_calibration(values: dict[str, Any]) -> Calibration:
    """Reads and checks the calibration of ``detector.json``.

    Raises:
        PneumoError: the kind is unknown, the temperature is not above 0, or far above any that is fitted, or the
            knots do not rise from 0 to 1.
    """
    try:
        knots = tuple((float(x), float(y)) for x, y in values["knots"])
        calibration = Calibration(values["kind"], float(values["temperature"]), knots)
        x, y = np.array(knots).T if knots else (np.zeros(0), np.zeros(0))
        rising = bool(np.all(np.diff(x) >= 0) and np.all(np.diff(y) >= 0) and np.isfinite([*x, *y]).all())
        rising = rising and bool(np.all((y >= 0) & (y <= 1)))
        complete = calibration.kind in ("none", "temperature") or (calibration.kind == "isotonic" and len(knots) > 0)
        if complete and rising and 0 < calibration.temperature <= _HOTTEST:
            return calibration
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise PneumoError(
        "The calibration in detector.json is missing or damaged. Copy the detector again, or join its runs again."
    )
