"""Shortcut regions in heat maps, and accuracy with and without a tube: exact small cases."""

import numpy as np
import pytest

from keras_pneumo.evaluation.scoring.shortcuts import accuracy_by_tube, border, region_shares, shares_table


def test_the_border_is_the_outer_sixteenth():
    assert border(32).sum() == 32 * 32 - 28 * 28
    assert border(8).sum() == 64 - 36  # one pixel at least


def test_the_true_mask_is_left_out_of_every_region():
    heat = np.zeros((4, 4))
    heat[0, 0], heat[0, 1], heat[2, 2] = 2, 1, 1
    tube = np.zeros((4, 4))
    tube[0, :2] = [1.0, 0.5]
    mask = np.zeros((4, 4), bool)
    assert region_shares(heat, mask, tube) == pytest.approx((2.5 / 4, 1.5 / 16))
    mask[0, 0] = True
    assert region_shares(heat, mask, tube) == pytest.approx((0.5 / 4, 0.5 / 16))


def test_shares_are_means_over_the_images_that_have_the_thing():
    nan = float("nan")
    rows = np.array([[0.5, 0.1], [nan, nan], [0.3, 0.1], [0.4, 0.1]])
    [row] = shares_table({"chest tube": rows}, np.arange(4), resamples=200).to_dict("records")
    assert row["images"] == 3
    assert row["heat"] == pytest.approx(0.4)
    assert row["excess"] == pytest.approx(0.3)
    assert 0.19 < row["low"] < 0.3 < row["high"] < 0.41
    [none] = shares_table({"tube": np.full((2, 2), nan)}, np.arange(2), resamples=200).to_dict("records")
    assert none["images"] == 0
    assert np.isnan(none["heat"])


def test_answers_with_and_without_a_tube():
    positive = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0], bool)
    tube = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0], bool)
    decision = np.array([1, 1, 0, 1, 0, 0, 1, 0, 1], bool)
    table = accuracy_by_tube(positive, decision, tube, np.arange(9), resamples=400).set_index(["images_of", "tube"])
    assert table.loc[("positives", "with"), "right"] == pytest.approx(2 / 3)
    assert table.loc[("positives", "without"), "right"] == pytest.approx(1 / 3)
    assert table.loc[("positives", "difference"), "right"] == pytest.approx(1 / 3)
    assert table.loc[("positives", "difference"), "low"] < 1 / 3 < table.loc[("positives", "difference"), "high"]
    assert table.loc[("negatives", "with"), "right"] == 0
    assert table.loc[("negatives", "with"), "images"] == 1
    # One image with a tube, all wrong: resampling it knows of no doubt, so no interval is claimed.
    assert np.isnan(table.loc[("negatives", "difference"), "low"])


def test_no_tube_at_all():
    nothing = np.zeros(4, bool)
    table = accuracy_by_tube(np.array([1, 1, 0, 0], bool), nothing, nothing, np.arange(4), resamples=100)
    assert table["images"].tolist() == [0, 2, 2, 0, 2, 2]
    assert table[table["tube"] == "difference"]["right"].isna().all()
