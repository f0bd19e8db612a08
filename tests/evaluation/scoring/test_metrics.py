"""Scores of probabilities and yes/no answers, against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as reference

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring import metrics

TRUTH = np.array([0, 0, 1, 1], bool)
PROBABILITY = np.array([0.1, 0.4, 0.35, 0.8])  # scikit-learn's documented example: AUROC 0.75, average precision 0.83


@st.composite
def answers(draw, both=True):
    n = draw(st.integers(2, 60))
    truth = draw(hnp.arrays(bool, n))
    if both:
        truth[0], truth[-1] = True, False
    probability = draw(hnp.arrays(float, n, elements=st.integers(0, 12).map(lambda k: k / 12)))
    return truth, probability


def test_documented_example():
    assert metrics.auroc(TRUTH, PROBABILITY) == 0.75
    assert metrics.auprc(TRUTH, PROBABILITY) == pytest.approx(0.8333333)


@given(answers())
@settings(max_examples=200, deadline=None)
def test_ranking_scores_equal_scikit_learn(case):
    truth, probability = case
    assert metrics.auroc(truth, probability) == pytest.approx(reference.roc_auc_score(truth, probability))
    precision, recall, _ = reference.precision_recall_curve(truth, probability)
    assert metrics.auprc(truth, probability) == pytest.approx(-np.sum(np.diff(recall) * precision[:-1]))
    assert metrics.brier(truth, probability) == pytest.approx(reference.brier_score_loss(truth, probability))
    curve = metrics.threshold_curve(truth, probability)
    fpr, tpr, thresholds = reference.roc_curve(truth, probability, drop_intermediate=False)
    np.testing.assert_allclose(curve.sensitivity, tpr)
    np.testing.assert_allclose(1 - curve.specificity, fpr)
    np.testing.assert_array_equal(curve.threshold, thresholds)


@given(answers())
@settings(max_examples=200, deadline=None)
def test_decision_scores_equal_scikit_learn(case):
    truth, probability = case
    decision = probability >= 0.5
    counts = metrics.confusion(truth, decision)
    tn, fp, fn, tp = reference.confusion_matrix(truth, decision, labels=[False, True]).ravel()
    assert counts == (tp, fp, fn, tn)
    rates = metrics.rates(counts)
    assert rates["accuracy"] == pytest.approx(reference.accuracy_score(truth, decision))
    assert rates["sensitivity"] == pytest.approx(reference.recall_score(truth, decision))
    assert rates["specificity"] == pytest.approx(reference.recall_score(~truth, ~decision))
    if decision.any():
        assert rates["ppv"] == pytest.approx(reference.precision_score(truth, decision))
    if not decision.all():
        assert rates["npv"] == pytest.approx(reference.precision_score(~truth, ~decision))
    assert rates["f1"] == pytest.approx(reference.f1_score(truth, decision))


@pytest.mark.parametrize("truth", [np.zeros(3, bool), np.ones(3, bool)])
def test_one_class_is_nan_with_a_reason(truth):
    probability = np.array([0.1, 0.5, 0.9])
    assert np.isnan(metrics.auroc(truth, probability))
    assert "All 3 images are" in metrics.why_undefined(truth)
    assert metrics.why_undefined(TRUTH) is None
    rates = metrics.rates(metrics.confusion(truth, probability > 0.2))
    assert np.isnan(rates["specificity" if truth.all() else "sensitivity"])
    with pytest.raises(PneumoError, match=r"No operating threshold can be fitted\. All 3 images are"):
        metrics.fit_threshold(truth, probability)


def test_kappa_by_hand():
    """20 and 15 of 50 agree (0.7), chance agrees on 0.5 of them, so kappa is 0.4."""
    first = np.array([True] * 25 + [False] * 25)
    second = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert metrics.cohen_kappa(first, second) == pytest.approx(0.4)
    assert metrics.cohen_kappa(first, first) == 1
    for alike in (np.ones(3, bool), np.zeros(3, bool)):
        assert np.isnan(metrics.cohen_kappa(alike, alike))


def test_nothing_at_all():
    none = np.empty(0)
    assert metrics.why_undefined(none.astype(bool)) == "There is no image."
    assert np.isnan(metrics.brier(none, none))
    assert np.isnan(metrics.calibration_error(none.astype(bool), none))
    assert np.isnan(metrics.auroc(none.astype(bool), none))


def test_calibration_by_hand():
    truth = np.array([0, 1, 1, 1], bool)
    probability = np.array([0.12, 0.18, 0.95, 1.0])
    curve = metrics.calibration_curve(truth, probability)
    assert curve[["low", "high", "n", "promised", "observed"]].to_numpy().tolist() == [
        [0.1, 0.2, 2, pytest.approx(0.15), 0.5],
        [0.9, 1.0, 2, pytest.approx(0.975), 1.0],
    ]
    assert metrics.calibration_error(truth, probability) == pytest.approx((0.35 + 0.025) / 2)
    # Wilson interval of 1 of 2, by its formula with z = 1.959964
    z2 = 1.959964**2
    half = 1.959964 / (2 + z2) * np.sqrt(2 * 0.25 + z2 / 4)
    assert curve.observed_low[0] == pytest.approx(0.5 - half, abs=1e-6)
    assert curve.observed_high[0] == pytest.approx(0.5 + half, abs=1e-6)


def test_threshold_by_hand():
    truth = np.array([0, 0, 0, 1, 1], bool)
    probability = np.array([0.1, 0.2, 0.6, 0.5, 0.9])
    # From 0.5 on: both positives and one of three negatives, 1 - 1/3; from 0.9 on: 1/2. Halfway down to 0.2 is 0.35.
    assert metrics.fit_threshold(truth, probability) == pytest.approx(0.35)
    # Accuracy is 4/5 both from 0.5 and from 0.9 on: of two, the lower.
    assert metrics.fit_threshold(truth, probability, "accuracy") == pytest.approx(0.35)
    assert metrics.fit_threshold(np.array([0, 1], bool), np.array([0.0, 1.0])) == 0.5
    ties = metrics.fit_threshold(np.array([1, 0, 1, 0, 1, 0], bool), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    assert ties == pytest.approx(0.25)  # 0.05, 0.25 and 0.45 are equally good; the middle one


@given(answers(), st.sampled_from(["youden", "accuracy", "f1"]))
@settings(max_examples=200, deadline=None)
def test_no_other_threshold_does_better(case, criterion):
    truth, probability = case
    value = {
        "youden": lambda c: metrics.rates(c)["sensitivity"] + metrics.rates(c)["specificity"],
        "accuracy": lambda c: metrics.rates(c)["accuracy"],
        "f1": lambda c: metrics.rates(c)["f1"],
    }[criterion]
    chosen = metrics.fit_threshold(truth, probability, criterion)
    assert 0 <= chosen <= 1
    reachable = np.unique(probability)  # and "never yes", unless a score of 1 leaves no room above it
    reachable = np.append(reachable, 1.0) if reachable[-1] < 1 else reachable
    best = max(value(metrics.confusion(truth, probability >= t)) for t in reachable)
    got = value(metrics.confusion(truth, probability >= chosen))
    assert got == pytest.approx(best)


def test_threshold_between_neighbouring_floats():
    low = 0.5
    high = np.nextafter(low, 1)
    chosen = metrics.fit_threshold(np.array([0, 1], bool), np.array([low, high]))
    assert (np.array([low, high]) >= chosen).tolist() == [False, True]
