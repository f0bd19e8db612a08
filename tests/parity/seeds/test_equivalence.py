"""The mean difference over seeds, its interval, and the verdict."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from study_lab import seeded_errors

from keras_pneumo.parity.seeds.equivalence import SeededDifference, equivalence_verdict, seeded_difference

FEW = np.arange(20) < 6


def by_hand(differences, shared=0.0, own=0.0, patients=80, freedom=60.0):
    """A difference whose parts are given."""
    differences = np.asarray(differences, float)
    total = float(np.var(differences, ddof=1)) if len(differences) > 1 else math.nan
    return SeededDifference(differences, max(total - own, 0), min(own, total), shared, patients, freedom)


def test_without_patients_it_is_students_interval_over_seeds():
    differences = np.array([0.010, 0.014, 0.006, 0.012, 0.008])
    difference = seeded_difference(differences, np.repeat(differences[:, None], 20, axis=1), FEW)
    low, high = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences))
    assert difference.interval() == pytest.approx((low, high), abs=1e-12)
    verdict = equivalence_verdict(difference, 0.02)
    assert verdict.p_different == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=1e-12)
    upper = stats.ttest_1samp(differences, 0.02, alternative="less").pvalue
    assert verdict.p_equivalence == pytest.approx(upper, abs=1e-12)


def test_seeds_that_agree_leave_the_patients_variance():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=20)  # a mean over patients: its jackknife variance is that of the mean
    left_out = (scores.sum() - scores) / 19
    difference = seeded_difference(np.full(3, scores.mean()), np.stack([left_out] * 3), FEW)
    assert difference.error()[0] == pytest.approx(stats.sem(scores), rel=1e-9)
    assert difference.seed_variance == 0
    # Twice the patients: half the variance. A hundred times the seeds: none of it goes away.
    assert difference.error(patients=40)[0] == pytest.approx(stats.sem(scores) / math.sqrt(2), rel=1e-9)
    assert difference.error(seeds=300)[0] == pytest.approx(stats.sem(scores), rel=1e-9)


def test_what_a_seed_does_not_share_is_counted_once():
    # Each seed's difference is a mean over patients that are independent of another seed's: nothing is shared, and the
    # variance over seeds holds the patients' part already.
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(400, 50))
    values = scores.mean(axis=1)
    left_out = (scores.sum(axis=1, keepdims=True) - scores) / 49
    difference = seeded_difference(values, left_out, np.arange(50) < 15)
    assert difference.shared_patients < 0.02 * difference.own_patients
    assert difference.error()[0] == pytest.approx(stats.sem(values), rel=0.2)


@pytest.mark.parametrize(
    ("differences", "shared", "outcome", "words"),
    [
        ([0.001, 0.002, 0.0, -0.001], 0.0, "equivalent", "differs by less than 0.02"),
        ([0.010, 0.011, 0.0105, 0.0102], 0.0, "equivalent", "It is not zero, but smaller than the margin."),
        ([0.050, 0.052, 0.049, 0.051], 0.0, "different", "Keras has the higher AUROC"),
        ([-0.050, -0.052, -0.049, -0.051], 0.0, "different", "PyTorch has the higher AUROC"),
        ([0.03, -0.03, 0.02, -0.01], 0.0, "undecided", "more seeds with these patients"),
        ([0.001, 0.002, 0.0, -0.001], 0.02**2, "undecided", "no number of seeds alone would"),
    ],
)
def test_the_verdict_and_its_words(differences, shared, outcome, words):
    difference = by_hand(differences, shared)
    verdict = equivalence_verdict(difference, 0.02)
    assert verdict.outcome == outcome
    assert words in " ".join(verdict.sentences("AUROC", difference, "Keras", "PyTorch"))


def test_one_seed_decides_nothing():
    difference = seeded_difference(np.array([0.0]), np.zeros((1, 20)), FEW)
    verdict = equivalence_verdict(difference)
    assert verdict.outcome == "undecided"
    assert (verdict.more_seeds, verdict.more_patients) == (None, None)
    assert "at least two" in verdict.sentences("Dice", difference, "Keras", "PyTorch")[-1]


def test_a_difference_at_the_margin_is_never_promised_a_decision_for_equivalence():
    difference = by_hand([0.05, -0.01, 0.03, 0.01])  # mean 0.02, the margin
    verdict = equivalence_verdict(difference, 0.02)
    assert verdict.outcome == "undecided"
    more = difference.half_width(0.95, seeds=difference.seeds + verdict.more_seeds)
    assert more < 0.02 <= difference.half_width(0.95, seeds=difference.seeds + verdict.more_seeds - 1), (
        "different, then"
    )


@given(
    st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=12),
    st.floats(0, 0.05),
    st.floats(0, 0.05),
    st.floats(0.005, 0.1),
)
def test_verdict_intervals_and_p_values_never_contradict_each_other(differences, shared, own, margin):
    difference = by_hand(differences, shared**2, own**2)
    verdict = equivalence_verdict(difference, margin)
    low, high = verdict.interval
    inner = verdict.equivalence_interval
    assert low <= inner.low <= difference.value <= inner.high <= high
    within = -margin < inner.low and inner.high < margin
    assert (verdict.outcome == "equivalent") == within
    if abs(verdict.p_equivalence - 0.05) > 1e-9:
        assert within == (verdict.p_equivalence < 0.05)
    if verdict.outcome == "different":
        assert verdict.p_different < 0.05 + 1e-9
    if verdict.more_seeds is not None:
        assert verdict.more_seeds >= 1
        seeds = difference.seeds + verdict.more_seeds
        equivalent = abs(difference.value) + difference.half_width(0.9, seeds=seeds) < margin
        assert equivalent or difference.half_width(0.95, seeds=seeds) < abs(difference.value)
    if verdict.more_patients is not None:
        assert verdict.more_patients > difference.patients


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "seed_spread"), [(60, 0.0), (60, 0.15), (300, 0.15)])
def test_what_interval_and_verdict_promise_holds_in_simulated_studies(patients, seed_spread):
    """Five seeds; teams that are equal, and teams that differ by exactly the margin; 500 studies each."""
    at_margin = seeded_errors(np.random.default_rng(3), patients, 5, seed_spread, difference=0.02, studies=500)
    equal = seeded_errors(np.random.default_rng(4), patients, 5, seed_spread, difference=0.0, studies=500)
    # The bound of 1,000 studies (a true rate of 0.05 is counted as up to 0.064 in 97.5%); these 500 are within it too.
    assert at_margin["equivalent"] <= 0.064
    assert equal["different"] <= 0.064
    for counted in (at_margin, equal):
        assert counted["holds"] >= 0.93
