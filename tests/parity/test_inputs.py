"""The ladder's inputs: mask logits whose levels no rounding decides."""

import numpy as np

from keras_pneumo.parity.inputs import off_ties


def distance_to_a_tie(logits):
    levels = 255 / (1 + np.exp(-logits.astype(np.float64)))
    return np.abs(levels - np.floor(levels) - 0.5)


def test_logits_are_moved_off_the_middle_between_two_levels():
    ties = np.arange(0.5, 255) / 255
    logits = np.log(ties / (1 - ties)).astype(np.float32)
    assert distance_to_a_tie(logits).max() < 1e-3
    moved = off_ties(logits)
    assert moved.dtype == np.float32
    assert distance_to_a_tie(moved).min() >= 1e-3
    assert np.abs(moved - logits).max() < 0.011


def test_other_logits_stay_as_they_are():
    logits = np.random.default_rng(0).normal(-3, 3, (4, 64, 64)).astype(np.float32)
    moved = off_ties(logits)
    near = distance_to_a_tie(logits) < 1e-3
    assert 0 < near.mean() < 0.01
    np.testing.assert_array_equal(moved[~near], logits[~near])
    assert distance_to_a_tie(moved).min() >= 1e-3
