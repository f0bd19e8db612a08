"""Scores of heat maps: exact small cases, chance is exactly the mask's share, intervals by patient."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.scoring.saliency import (
    MAP_SCORES,
    agreement,
    centre_prior,
    coverage_at,
    energy,
    mask_at,
    rank_correlation,
    score_map,
    summarise_maps,
)

HEAT = np.array([[0.0, 0.5, 0.0], [0.25, 1.0, 0.25], [0.0, 0.0, 0.0]])


def mask_of(*pixels):
    mask = np.zeros((3, 3), bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def test_a_hit_and_a_miss():
    hit = score_map(HEAT, mask_of((1, 1)))
    assert hit == {"pointing": 1, "auprc": 1, "energy": 0.5}
    miss = score_map(HEAT, mask_of((0, 1)))
    assert miss == {"pointing": 0, "auprc": 0.5, "energy": 0.25}


def test_auprc_by_hand():
    # Ranked: 1.0 (out), 0.5 (in), two of 0.25 (one in) : 1/2 * 1/2 + 1/2 * 2/4.
    scores = score_map(HEAT, mask_of((0, 1), (1, 0)))
    assert scores["auprc"] == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)
    assert scores["energy"] == pytest.approx(0.75 / 2)


def test_of_several_hottest_pixels_the_share_that_hits():
    heat = np.array([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert score_map(heat, mask_of((0, 0), (2, 2)))["pointing"] == 0.25


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_flat_map_gets_the_masks_share_in_all_three(level):
    mask = mask_of((0, 0), (1, 2))
    assert score_map(np.full((3, 3), level), mask) == dict.fromkeys(MAP_SCORES, 2 / 9)


@given(st.integers(0, 2**32 - 1))
def test_the_expectation_over_shuffled_heat_is_the_masks_share(seed):
    rng = np.random.default_rng(seed)
    heat = rng.random(9)
    mask = np.arange(9) < 3
    shifts = [score_map(np.roll(heat, k).reshape(3, 3), mask.reshape(3, 3)) for k in range(9)]
    # Rolled around, the hottest pixel is in each place once, and each pixel of heat too.
    assert np.mean([shifted["pointing"] for shifted in shifts]) == pytest.approx(1 / 3)
    assert np.mean([shifted["energy"] for shifted in shifts]) == pytest.approx(1 / 3)


def test_energy_counts_parts_of_pixels():
    share = np.zeros((3, 3))
    share[1, 1] = 0.5
    assert energy(HEAT, share) == 0.25
    assert energy(np.zeros((3, 3)), share) == pytest.approx(0.5 / 9)


def test_a_mask_smaller_than_any_pixel_is_every_pixel_that_it_touches():
    full = np.zeros((1024, 1024), np.uint8)
    full[510:514, 100:104] = 1
    runs = rle.runs_of(rle.encode(full))
    small = mask_at(runs, 32)
    assert small.sum() == 2
    assert small[15, 3]
    assert small[16, 3]
    assert coverage_at(runs, 32).sum() * 32 * 32 == pytest.approx(16)
    full[512:544, 128:192] = 1
    assert mask_at(rle.runs_of(rle.encode(full)), 32).sum() == 2  # the two whole ones, and not the rim


def test_centre_prior_is_highest_in_the_middle_and_even():
    prior = centre_prior(8)
    assert prior[3:5, 3:5].min() == prior.max()
    np.testing.assert_allclose(prior, prior[::-1, ::-1], rtol=1e-6)
    np.testing.assert_allclose(prior, prior.T, rtol=1e-6)


def scores_of(values):
    return pd.DataFrame(dict.fromkeys(MAP_SCORES, np.asarray(values, float)))


def test_summary_is_by_patient_beside_chance_and_paired():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 2)
    chance = rng.uniform(0.02, 0.1, 40)
    good, bad = scores_of(rng.random(40) < 0.8), scores_of(chance)
    summary = summarise_maps({"heat map": good, "flat": bad}, chance, patients, resamples=500).set_index(
        ["map", "score"]
    )
    own, flat = summary.loc[("heat map", "pointing")], summary.loc[("flat", "auprc")]
    assert own.value == good["pointing"].mean()
    assert own.low < own.value < own.high
    assert own.above_low > 0
    assert (own.images, own.patients) == (40, 20)
    assert flat.above_chance == 0
    assert own.ahead == 0
    ahead = summary.loc[("flat", "pointing")]
    assert ahead.ahead == pytest.approx((good["pointing"] - chance).mean())
    assert ahead.ahead_low > 0


def test_rank_correlation():
    rng = np.random.default_rng(0)
    first = rng.random((6, 6))
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, np.zeros((6, 6))) == 0
    assert rank_correlation(np.ones((2, 2)), np.zeros((2, 2))) == 1
    assert abs(rank_correlation(rng.random((60, 60)), rng.random((60, 60)))) < 0.1


def test_agreement():
    rng = np.random.default_rng(0)
    first = rng.random((3, 5, 5)).astype(np.float32)
    assert agreement(first, first) == pytest.approx(
        {"rank_correlation": 1, "lowest": 1, "difference": 0, "same_peak": 1}
    )
    other = first.copy()
    other[1] = 1 - other[1]
    result = agreement(first, other)
    assert result["lowest"] == pytest.approx(-1)
    assert result["same_peak"] == pytest.approx(2 / 3)


def test_two_images_without_a_hit_are_not_below_chance_nor_behind_one_with_hits():
    """The bootstrap of nothing but misses has no width; the exact interval of 0 of 2 patients reaches 0.84."""
    misses, hits = scores_of(np.zeros(2, bool)), scores_of(np.ones(2, bool))
    summary = summarise_maps({"heat map": misses, "other": hits}, np.full(2, 0.03), np.arange(2), resamples=200)
    own, other = (summary[summary["score"] == "pointing"].set_index("map").loc[name] for name in ("heat map", "other"))
    assert own.above_low == pytest.approx(-0.03)
    assert own.above_high == pytest.approx(0.025 ** (1 / 2) * -1 + 1 - 0.03)
    assert other.above_low == pytest.approx(0.025 ** (1 / 2) - 0.03)
    assert (other.ahead, own.ahead_low, own.ahead_high) == (-1, 0, 0)
    assert other.ahead_low == -1
    assert other.ahead_high > 0
