"""Tests of calibration: exact values of both curves, and the better kind is chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from keras_pneumo.detector.calibration import (
    Calibration,
    fit_calibration,
    fit_kind,
    log_loss,
    log_odds,
    read_calibration,
)
from keras_pneumo.errors import PneumoError


def drawn(n, curve, seed=0):
    """Probabilities as a network gives them, and truth that follows ``curve`` of them."""
    rng = np.random.default_rng(seed)
    probability = rng.uniform(0.01, 0.99, n)
    return rng.random(n) < curve(probability), probability, np.arange(n) // 2


def test_a_known_temperature_is_recovered():
    truth, probability, _ = drawn(20_000, lambda p: expit(log_odds(p) / 3))
    assert fit_kind("temperature", truth, probability).temperature == pytest.approx(3, rel=0.05)


def test_the_isotonic_curve_of_four_images_is_exact():
    calibration = fit_kind("isotonic", np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.5, 0.6]))
    # 1, 0 must not fall, so 0.4 and 0.5 share a half, at their mean; the ends keep within 1 / (4 + 2) and 5 / 6.
    calibrated = calibration.apply(np.array([0.1, 0.45, 0.525, 0.6]))
    np.testing.assert_allclose(calibrated, [1 / 6, 1 / 2, 2 / 3, 5 / 6])
    np.testing.assert_allclose(calibration.apply(np.array([0.0, 1.0])), [1 / 12, 11 / 12], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "curve"),
    [("temperature", lambda p: expit(log_odds(p) / 4)), ("isotonic", lambda p: np.where(p > 0.8, 0.7, 0.05))],
)
def test_the_better_kind_is_chosen_and_beats_none(kind, curve):
    truth, probability, patients = drawn(600, curve)
    fitted = fit_calibration(truth, probability, patients)
    assert fitted.calibration.kind == kind
    assert fitted.scores[kind]["log_loss"] < fitted.scores["none"]["log_loss"]
    assert fitted.scores[kind]["brier"] < fitted.scores["none"]["brier"]
    assert kind in fitted.sentence


def test_log_loss_is_exact_and_finite():
    truth, probability = np.array([True, False]), np.array([0.8, 0.4])
    assert log_loss(truth, probability) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert np.isfinite(log_loss(truth, np.array([0.0, 1.0])))


@given(st.integers(0, 1000), st.sampled_from(["temperature", "isotonic"]))
def test_the_ranking_stays_and_a_record_is_read_back(seed, kind):
    truth, probability, _ = drawn(40, lambda p: p, seed)
    calibration = fit_kind(kind, truth, probability)
    calibrated = calibration.apply(np.sort(np.append(probability, [0, 1])))
    assert (np.diff(calibrated) > 0).all(), "no two images become equal"
    assert (calibrated >= 0).all()
    assert (calibrated <= 1).all()
    assert read_calibration(calibration.as_json()) == calibration


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "magic", "temperature": 1, "knots": []},
        {"kind": "temperature", "temperature": 10**400, "knots": []},
        {"kind": "temperature", "temperature": 0, "knots": []},
        {"kind": "isotonic", "temperature": 1, "knots": []},
        {"kind": "isotonic", "temperature": 1, "knots": [[0.2, 0.5], [0.1, 0.6]]},
    ],
)
def test_a_damaged_calibration_is_refused(values):
    with pytest.raises(PneumoError, match="calibration"):
        read_calibration(values)


def test_one_patient_is_not_enough_to_calibrate():
    fitted = fit_calibration(np.array([True, False, True]), np.array([0.1, 0.2, 0.3]), np.array(["a", "b", "a"]))
    assert fitted.calibration.kind == "none"
    assert "not calibrated" in fitted.sentence


def test_kind_none_changes_nothing():
    np.testing.assert_array_equal(Calibration("none").apply(np.array([0.2, 0.7])), [0.2, 0.7])
