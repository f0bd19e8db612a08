"""Intervals and tests, against scipy, statsmodels, the papers' definitions written out, and published values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.evaluation.scoring.scores import point_scores, replicate_scores, sum_by_patient
from keras_pneumo.evaluation.scoring.statistics import (
    bca_interval,
    bca_p,
    delong,
    delong_test,
    exact_interval,
    holm,
    leave_one_out,
    mcnemar,
    mean_by_patient,
    mean_with_interval,
    permutation_test,
    resample_patients,
)


def cohort(n=120, patients=40, seed=0, teams=2):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    truth[:2] = [True, False]
    score = np.round(rng.normal(size=(teams, n)) + 1.2 * truth, 1)  # rounded, so that there are ties
    probability = (score - score.min()) / (score.max() - score.min())
    return truth, probability, rng.integers(0, patients, n)


def naive_delong(truth, scores_, clusters):
    """DeLong 1988 and Obuchowski 1997 as printed: every pair looked at, no ranks."""
    first = scores_[:, truth][:, :, None]
    second = scores_[:, ~truth][:, None, :]
    kernel = (first > second) + 0.5 * (first == second)
    areas = kernel.mean(axis=(1, 2))
    x, y = kernel.mean(axis=2), kernel.mean(axis=1)
    m, n = x.shape[1], y.shape[1]
    names = np.unique(clusters)
    sx = np.stack([(x[:, clusters[truth] == c] - areas[:, None]).sum(axis=1) for c in names], axis=1)
    sy = np.stack([(y[:, clusters[~truth] == c] - areas[:, None]).sum(axis=1) for c in names], axis=1)
    i10 = len(set(clusters[truth]))
    i01 = len(set(clusters[~truth]))
    i = len(names)
    s10 = i10 / ((i10 - 1) * m) * sx @ sx.T
    s01 = i01 / ((i01 - 1) * n) * sy @ sy.T
    s11 = i / (i - 1) * sx @ sy.T
    return areas, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clustered", [False, True])
def test_delong_is_its_definition(seed, clustered):
    truth, probability, patients = cohort(seed=seed, teams=3)
    clusters = patients if clustered else np.arange(len(truth))
    areas, covariance = delong(truth, probability, clusters if clustered else None)
    wanted_areas, wanted = naive_delong(truth, probability, clusters)
    np.testing.assert_allclose(areas, wanted_areas)
    np.testing.assert_allclose(covariance, wanted, atol=1e-15)
    assert areas[0] == pytest.approx(metrics.auroc(truth, probability[0]))
    assert areas[0] == pytest.approx(
        stats.mannwhitneyu(probability[0][truth], probability[0][~truth]).statistic / truth.sum() / (~truth).sum()
    )


def test_delong_equals_r():
    """R 4.2.2, pROC 1.18.0: roc.test(method = "delong", paired = TRUE), var and cov, on data given by formula."""
    i = np.arange(80)
    truth = (i * 7 + 3) % 10 < 3
    first = ((i * 37 + 11) % 101) / 101 * 0.6 + truth * 0.25
    second = np.round(((i * 53 + 29) % 97) / 97 * 0.7 + truth * 0.2, 1)
    areas, covariance = delong(truth, np.stack([first, second]))
    np.testing.assert_allclose(areas, [0.829613095238, 0.760044642857], atol=1e-12)
    wanted = [[0.002268666906, 0.000347450229], [0.000347450229, 0.003163265175]]
    np.testing.assert_allclose(covariance, wanted, atol=1e-12)
    test = delong_test(truth, first, second)
    assert test.difference / test.error == pytest.approx(1.010785958570, abs=1e-9)
    assert test.p == pytest.approx(0.312118885023, abs=1e-9)


def test_delong_and_bootstrap_agree_on_the_error():
    truth, probability, patients = cohort(n=600, patients=200, seed=4)
    codes = np.unique(patients, return_inverse=True)[1]
    team_sums = [sum_by_patient(truth, codes, p) for p in probability]
    drawn = replicate_scores(team_sums, resample_patients(codes.max() + 1, 4000, 0))
    gap = drawn[0]["auroc"] - drawn[1]["auroc"]
    test = delong_test(truth, probability[0], probability[1], patients)
    assert gap.std() == pytest.approx(test.error, rel=0.08)
    assert test.difference == pytest.approx(metrics.auroc(truth, probability[0]) - metrics.auroc(truth, probability[1]))


def test_delong_edges():
    truth, probability, _ = cohort()
    assert delong_test(truth, probability[0], probability[0]).p == 1.0
    assert delong_test(truth, probability[0], probability[0] ** 2).p == 1.0  # the same ranking
    areas, covariance = delong(np.ones(3, bool), np.zeros((1, 3)))
    assert np.isnan(areas).all()
    assert np.isnan(covariance).all()
    one_positive = np.array([True, False, False])
    assert np.isnan(delong_test(one_positive, np.array([0.9, 0.1, 0.2]), np.array([0.1, 0.2, 0.3])).p)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_mcnemar_equals_statsmodels(only_first, only_second, both):
    n = only_first + only_second + both
    first = np.array([True] * only_first + [False] * only_second + [True] * both, bool)
    second = np.array([False] * only_first + [True] * only_second + [True] * both, bool)
    test = mcnemar(first, second)
    if n:
        assert test.difference == pytest.approx((only_first - only_second) / n)
    wanted = reference_mcnemar([[both, only_first], [only_second, 0]], exact=True).pvalue if n - both else 1.0
    assert test.p == pytest.approx(min(1.0, wanted))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_holm_equals_statsmodels(p):
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_mcnemar_published_example():
    """Approval ratings of Agresti (1990), 10.1: 150 and 86 changed their mind; p from R's binom.test(86, 236)."""
    before = np.array([True] * 794 + [True] * 150 + [False] * 86 + [False] * 570)
    after = np.array([True] * 794 + [False] * 150 + [True] * 86 + [False] * 570)
    test = mcnemar(before, after)
    assert test.difference == pytest.approx((150 - 86) / 1600)
    assert test.p == pytest.approx(3.71593613957e-05, rel=1e-9)


def test_holm_equals_r_and_leaves_missing_tests_out():
    """R 4.2.2: p.adjust(..., "holm")."""
    np.testing.assert_allclose(holm([0.01, 0.02, 0.03, 0.04, 0.05]), [0.05, 0.08, 0.09, 0.09, 0.09])
    given_p = [0.01, 0.0005, 0.03, 0.2, 0.012, 0.9]
    np.testing.assert_allclose(holm(given_p), [0.05, 0.003, 0.09, 0.4, 0.05, 0.9])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


def test_resampling_draws_whole_patients_and_repeats_by_seed():
    blocks = list(resample_patients(7, 25, seed=3, block=10))
    assert [block.shape for block in blocks] == [(10, 7), (10, 7), (5, 7)]
    together = np.concatenate(blocks)
    assert (together.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(together, np.concatenate(list(resample_patients(7, 25, seed=3, block=4))))
    assert (together != np.concatenate(list(resample_patients(7, 25, seed=4)))).any()
    with pytest.raises(PneumoError, match="no patient"):
        next(resample_patients(0, 1, 0))


def test_bootstrap_interval_equals_scipy_for_single_images():
    """With a patient per image, the BCa interval of a mean is scipy's, up to the draws."""
    truth, probability, _ = cohort(n=300)
    patient_sums = sum_by_patient(truth, np.arange(300), probability[0])
    drawn = replicate_scores([patient_sums], resample_patients(300, 10_000, 1))[0]
    left_out = replicate_scores([patient_sums], leave_one_out(300))[0]
    interval = bca_interval(drawn["brier"], point_scores(patient_sums)["brier"], left_out["brier"])
    errors = (probability[0] - truth) ** 2
    theirs = stats.bootstrap((errors,), np.mean, n_resamples=10_000, method="BCa", rng=2).confidence_interval
    width = theirs.high - theirs.low
    assert abs(interval.low - theirs.low) < 0.05 * width
    assert abs(interval.high - theirs.high) < 0.05 * width
    assert point_scores(patient_sums)["brier"] == pytest.approx(errors.mean())


def test_jackknife_leaves_each_patient_out_once():
    blocks = list(leave_one_out(7, block=3))
    assert [block.shape for block in blocks] == [(3, 7), (3, 7), (1, 7)]
    np.testing.assert_array_equal(np.concatenate(blocks), 1 - np.eye(7))


def test_clustering_widens_the_interval():
    """Every image twice under one patient: the interval is that of half the images, not a narrower one."""
    truth, probability, _ = cohort(n=80)
    single = sum_by_patient(truth, np.arange(80), probability[0])
    doubled = sum_by_patient(np.repeat(truth, 2), np.repeat(np.arange(80), 2), np.repeat(probability[0], 2))
    first, second = replicate_scores([single, doubled], resample_patients(80, 500, 0))
    np.testing.assert_allclose(first["auroc"], second["auroc"])


def test_intervals_at_the_edges():
    even = np.arange(-50.0, 51.0)
    assert bca_interval(even, 0.0, even) == pytest.approx((-47.5, 47.5))  # no bias, no skew: the percentiles
    assert bca_interval(np.ones(99), 1.0, np.ones(9)) == (1, 1)
    for replicates, point in ((np.array([np.nan, np.nan, 1.0]), 1.0), (even, np.nan), (np.empty(0), 1.0)):
        low, high = bca_interval(replicates, point, even)
        assert np.isnan(low)
        assert np.isnan(high)
    low, high = exact_interval(15, 15)
    assert low == pytest.approx(0.025 ** (1 / 15))  # Clopper and Pearson's closed form for all of n
    assert high == 1
    assert exact_interval(7, 33) == pytest.approx((0.0898042445427, 0.389080919674))  # R: binom.test(7, 33)
    assert np.isnan(exact_interval(0, 0).low)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=4), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_permutation_equals_scipy(values, shift):
    first = np.array(values) / 10 + shift / 10
    second = np.array(values[::-1]) / 10 + np.arange(len(values)) / 50
    test = permutation_test(first, second)
    wanted = stats.permutation_test(
        (first, second), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), vectorized=True, n_resamples=np.inf
    )
    assert test.difference == pytest.approx(wanted.statistic)
    assert test.p == pytest.approx(wanted.pvalue)


def test_permutation_of_three_seeds_cannot_fall_under_a_tenth():
    test = permutation_test(np.array([0.9, 0.91, 0.92]), np.array([0.5, 0.51, 0.52]))
    assert test.p == pytest.approx(0.1)


def test_permutation_of_many_seeds_is_drawn_and_repeats():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, 1, 20), rng.normal(0, 1, 20)
    test = permutation_test(first, second)
    assert test.p == permutation_test(first, second).p
    wanted = stats.ttest_ind(first, second).pvalue  # the permutation test's large-sample limit
    assert test.p == pytest.approx(wanted, abs=0.02)


def test_p_agrees_with_the_interval():
    rng = np.random.default_rng(3)
    for shift in np.linspace(-3, 3, 13):
        values = rng.gamma(2, size=40) - 2 + shift / 5
        drawn = np.array([rng.choice(values, 40).mean() for _ in range(2000)])
        left_out = (values.sum() - values) / 39
        interval = bca_interval(drawn, values.mean(), left_out)
        p = bca_p(drawn, values.mean(), left_out)
        assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
        touching = bca_interval(drawn, values.mean(), left_out, level=1 - p)
        assert min(abs(touching.low), abs(touching.high)) < 0.02 or p < 0.002
    even = np.arange(-50.0, 51.0)
    assert bca_p(even, 0.0, even) == pytest.approx(1)
    assert bca_p(np.zeros(99), 0.0, np.zeros(9)) == pytest.approx(1)
    assert 0 < bca_p(np.full(999, 0.3), 0.3, np.zeros(9)) < 0.01
    assert np.isnan(bca_p(np.array([np.nan]), 0.0, even))


# Do 95% intervals hold the true value 95 times in 100? Simulated patients, whose true scores are known.
STUDIES = 400


RESAMPLES = 800


def study(rng, skills, n):
    """``n`` patients of one to four images, ill alike within a patient, scores correlated within a patient."""
    patients = np.repeat(np.arange(n), rng.integers(1, 5, n))
    ill = rng.random(n) < 0.3
    truth = ill[patients] ^ (rng.random(len(patients)) < 0.1)
    shared = rng.normal(size=n)[patients]
    probabilities = []
    for skill in skills:
        noise = 0.6 * shared + 0.8 * rng.normal(size=len(patients))  # variance 1, correlation 0.36 within a patient
        probabilities.append(special.ndtr(skill * truth + noise))
    return truth, patients, probabilities


def intervals(team_sums, score, seed):
    """The interval of each team's score, and of the first less the last."""
    n = len(team_sums[0].sums)
    drawn = [scores[score] for scores in replicate_scores(team_sums, resample_patients(n, RESAMPLES, seed))]
    left = [scores[score] for scores in replicate_scores(team_sums, leave_one_out(n))]
    points = [point_scores(patient_sums)[score] for patient_sums in team_sums]
    single = [bca_interval(*scores) for scores in zip(drawn, points, left, strict=True)]
    return [*single, bca_interval(drawn[0] - drawn[-1], points[0] - points[-1], left[0] - left[-1])]


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
        patient_sums = sum_by_patient(truth, owner, None, score >= special.ndtr(0.7))
        hits.append(holds(intervals([patient_sums], "accuracy", number)[0], right))
    assert likely(hits), np.mean(hits)


def test_an_interval_by_image_would_be_narrower():
    values = np.repeat(np.random.default_rng(1).random(12) < 0.5, 5).astype(float)
    by_patient = mean_with_interval(values, np.repeat(np.arange(12), 5), 2000, 0)[1]
    by_image = mean_with_interval(values, np.arange(60), 2000, 0)[1]
    assert by_patient.high - by_patient.low > 1.5 * (by_image.high - by_image.low)


def test_all_hits_have_an_exact_interval():
    value, interval = mean_with_interval(np.ones(10), np.repeat(np.arange(5), 2), 500, 0)
    assert value == 1
    assert interval.low == pytest.approx(0.025 ** (1 / 5))
    assert interval.high == 1


def test_the_mean_is_over_images_that_have_a_value_and_its_interval_over_patients():
    values = np.array([1.0, 3.0, np.nan, 5.0])
    mean, interval = mean_by_patient(values, np.array([0, 0, 1, 2]), 500)
    assert mean == 3
    assert interval.low <= 3 <= interval.high
    assert np.isnan(mean_by_patient(np.full(3, np.nan), np.arange(3), 10)[0])
