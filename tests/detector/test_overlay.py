"""Tests of the overlay: a mask keeps its position on any grid."""

import numpy as np
import pytest

from keras_pneumo.detector.overlay import mask_at_size, overlay_mask


@pytest.mark.parametrize("side", [1500, 2000, 2500, 3072])
def test_a_mask_on_a_larger_grid_has_the_value_at_each_pixels_centre(side):
    rng = np.random.default_rng(0)
    mask = (rng.random((1024, 1024)) < 0.5).astype(np.uint8)
    middle = (2 * np.arange(side) + 1) * 1024  # in parts of 1 / (2 * side), whole numbers
    at, free = middle // (2 * side), np.flatnonzero(middle % (2 * side))  # a middle on a border may go either way
    resized = mask_at_size(mask, side)
    np.testing.assert_array_equal(resized[free][:, free], mask[at][:, at][free][:, free])
    np.testing.assert_array_equal(mask_at_size(mask[:, ::-1], side)[free][:, free], resized[:, ::-1][free][:, free])


@pytest.mark.parametrize("side", [512, 1024, 2048])
def test_a_mask_keeps_its_position_on_any_grid(side):
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:200, 300:700] = 1
    resized = mask_at_size(mask, side)
    rows, columns = np.nonzero(resized)
    factor = side / 1024
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (
        100 * factor,
        200 * factor,
        300 * factor,
        700 * factor,
    )
    assert overlay_mask(np.zeros((side, side), np.uint8), resized).shape == (side, side, 3)
