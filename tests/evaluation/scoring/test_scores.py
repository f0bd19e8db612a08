"""Scores of resampled patients equal the scores of the repeated images."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.evaluation.scoring.masks import dice_parts, overlap
from keras_pneumo.evaluation.scoring.scores import (
    contributions,
    patient_weights,
    point_scores,
    replicate_scores,
    scores,
    sum_by_patient,
)
from keras_pneumo.evaluation.scoring.statistics import leave_one_out


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_weighted_scores_are_the_scores_of_repeated_images(seed):
    """A resample by counts equals really copying each patient's images, for every score at once."""

    rng = np.random.default_rng(seed)
    n, patients = 24, 9
    truth = rng.random(n) < 0.4
    probability = rng.integers(0, 8, n) / 8
    codes = np.unique(rng.integers(0, patients, n), return_inverse=True)[1]
    texts = np.where(truth, "0 20", "-1")
    answer = rng.choice(["-1", "0 10", "15 9", "0 20"], n)
    masks = overlap([rle.runs_of(t) for t in texts], [rle.runs_of(t) for t in answer])
    patient_sums = sum_by_patient(truth, codes, probability, probability >= 0.5, masks, common_sensitivity=0.7)
    counts = rng.integers(0, 3, codes.max() + 1)
    if counts[codes].sum() == 0:
        return
    weighted = scores(patient_sums, counts[None])
    chosen = np.repeat(np.arange(n), counts[codes])
    t, p = truth[chosen], probability[chosen]
    wanted = metrics.rates(metrics.confusion(t, p >= 0.5)) | {
        "auroc": metrics.auroc(t, p),
        "auprc": metrics.auprc(t, p),
        "brier": metrics.brier(t, p),
        "calibration_error": metrics.calibration_error(t, p),
        **dice_parts(masks.iloc[chosen].reset_index(drop=True)),
    }
    curve = metrics.threshold_curve(t, p)
    reached = curve.sensitivity.to_numpy() >= 0.7 - 1e-12
    common = curve.specificity[np.argmax(reached)] if t.any() else np.nan
    wanted["specificity_at_common"] = common
    for name, value in wanted.items():
        np.testing.assert_allclose(weighted[name][0], value, atol=1e-12, err_msg=name)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_contributions_are_the_patients_own_sums(seed):
    """Of a mean over images: a patient's sum over the number of all images; of every score: they sum to it."""
    rng = np.random.default_rng(seed)
    n = 60
    truth = np.concatenate([[True, False], rng.random(n - 2) < 0.4])
    probability = rng.random(n)
    patients = np.concatenate([[0, 1], rng.integers(0, 15, n - 2)])
    patients = np.unique(patients, return_inverse=True)[1]
    texts = np.where(truth, "0 9000", "-1")
    masks = overlap([rle.runs_of(t) for t in texts], [rle.runs_of(t) for t in rng.choice(["-1", "0 4500"], n)])
    table = sum_by_patient(truth, patients, probability, probability >= 0.5, masks)
    point, (left_out,) = point_scores(table), replicate_scores([table], leave_one_out(patients.max() + 1))
    right, dice = (probability >= 0.5) == truth, masks.dice.to_numpy()
    means = {
        "accuracy": (right, np.ones(n, bool)),
        "brier": ((probability - truth) ** 2, np.ones(n, bool)),
        "dice": (dice, np.ones(n, bool)),
        "sensitivity": (right, truth),
        "specificity": (right, ~truth),
        "dice_positives": (dice, truth),
        "negatives_left_empty": (dice, ~truth),
        "positives_missed": (masks.predicted_pixels == 0, truth),
    }
    for name, (values, members) in means.items():
        weights = patient_weights(table, name)
        np.testing.assert_allclose(weights, np.bincount(patients, weights=members) / members.sum())
        if np.isfinite(left_out[name]).all():
            wanted = np.bincount(patients, weights=values * members) / members.sum()
            np.testing.assert_allclose(contributions(point[name], left_out[name], weights), wanted, atol=1e-12)
    for name, value in point.items():
        if np.isfinite(left_out[name]).all():
            weights = patient_weights(table, name)
            assert np.isclose(weights.sum(), 1)
            assert np.isclose(contributions(value, left_out[name], weights).sum(), value)
