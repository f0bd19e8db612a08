"""Scores of resampled patients equal the scores of the repeated images."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.evaluation.scoring.masks import dice_parts, overlap
from keras_pneumo.evaluation.scoring.scores import scores, sum_by_patient


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
