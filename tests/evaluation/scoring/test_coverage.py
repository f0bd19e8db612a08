"""Do 95% intervals hold the true value 95 times in 100? Simulated patients, whose true scores are known."""

import numpy as np
import pytest
from scipy import special, stats

from keras_pneumo.evaluation.scoring.scores import point_scores, replicate_scores, sum_by_patient
from keras_pneumo.evaluation.scoring.statistics import bca_interval, delong, leave_one_out, resample_patients

STUDIES = 400
RESAMPLES = 800


def study(rng, skills, n):
    """``n`` patients of one to four images, ill alike within a patient, scores correlated within a patient."""
    patients = np.repeat(np.arange(n), rng.integers(1, 5, n))
    ill = rng.random(n) < 0.3
    truth = ill[patients] ^ (rng.random(len(patients)) < 0.1)
    shared = rng.normal(size=n)[patients]
    found = []
    for skill in skills:
        noise = 0.6 * shared + 0.8 * rng.normal(size=len(patients))  # variance 1, correlation 0.36 within a patient
        found.append(special.ndtr(skill * truth + noise))
    return truth, patients, found


def intervals(sheets, score, seed):
    """The interval of each sheet's score, and of the first less the last."""
    n = len(sheets[0].sums)
    drawn = [one[score] for one in replicate_scores(sheets, resample_patients(n, RESAMPLES, seed))]
    left = [one[score] for one in replicate_scores(sheets, leave_one_out(n))]
    points = [point_scores(sheet)[score] for sheet in sheets]
    found = [bca_interval(*one) for one in zip(drawn, points, left, strict=True)]
    return [*found, bca_interval(drawn[0] - drawn[-1], points[0] - points[-1], left[0] - left[-1])]


def holds(interval, value):
    return interval.low <= value <= interval.high


def likely(hits):
    """Whether so many hits are likely (999 in 1,000) if the interval holds the truth 93 to 96 times in 100."""
    least, most = stats.binom.ppf(0.0005, len(hits), 0.93), stats.binom.ppf(0.9995, len(hits), 0.96)
    return least <= np.sum(hits) <= most


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "skills"), [(150, (1.5, 1.2)), (40, (2.5, 1.5))])
def test_interval_of_auroc_and_of_a_difference(patients, skills):
    true = [stats.norm.cdf(skill / np.sqrt(2)) for skill in skills]
    rng = np.random.default_rng(7)
    hits, gaps = [], []
    for number in range(STUDIES):
        truth, owner, scores = study(rng, skills, patients)
        first, _, gap = intervals([sum_by_patient(truth, owner, score) for score in scores], "auroc", number)
        hits.append(holds(first, true[0]))
        gaps.append(holds(gap, true[0] - true[1]))
    assert likely(hits), np.mean(hits)
    assert likely(gaps), np.mean(gaps)


@pytest.mark.slow
def test_clustered_delong_and_what_taking_images_for_independent_does():
    true = [stats.norm.cdf(skill / np.sqrt(2)) for skill in (1.5, 1.2)]
    rng = np.random.default_rng(9)
    by_patient, by_image = [], []
    for _ in range(1000):
        truth, owner, scores = study(rng, (1.5, 1.2), 150)
        for hits, clusters in ((by_patient, owner), (by_image, None)):
            areas, covariance = delong(truth, np.stack(scores), clusters)
            hits.append(abs(areas[0] - true[0]) <= 1.96 * np.sqrt(covariance[0, 0]))
    assert likely(by_patient), np.mean(by_patient)
    assert np.mean(by_image) < np.mean(by_patient) - 0.02


@pytest.mark.slow
def test_interval_of_a_mean_over_clustered_images():
    """Accuracy, and with it any mean over images such as Dice: the truth is the chance of being right."""
    prevalence = 0.3 * 0.9 + 0.7 * 0.1
    right = prevalence * stats.norm.cdf(1.5 - 0.7) + (1 - prevalence) * stats.norm.cdf(0.7)
    rng = np.random.default_rng(8)
    hits = []
    for number in range(STUDIES):
        truth, owner, (score,) = study(rng, (1.5,), 150)
        sheet = sum_by_patient(truth, owner, None, score >= special.ndtr(0.7))
        hits.append(holds(intervals([sheet], "accuracy", number)[0], right))
    assert likely(hits), np.mean(hits)
