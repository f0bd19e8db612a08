"""Tests of the overlay: the outline lies on the mask's edge, and the text fits, on an image of any shape."""

import cv2
import numpy as np
import pytest

from keras_pneumo.detector.overlay import OUTLINE, overlay_mask


@pytest.mark.parametrize("shape", [(512, 512), (700, 400), (400, 700)])
def test_the_outline_lies_on_the_edge_of_the_mask(shape):
    mask = np.zeros(shape, np.uint8)
    mask[100:200, 150:300] = 1
    picture = overlay_mask(np.full(shape, 90, np.uint8), mask)
    assert picture.shape == (*shape, 3)
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    coloured = np.ptp(picture, axis=2) > 60
    assert coloured[100, 150:300].all()
    assert coloured[100:200, 299].all()
    assert not coloured[~edge].any()
    assert np.abs(picture[100, 200].astype(int) - OUTLINE).max() < 40, "a line whose rim is mixed with the image"
    assert (picture[~edge] == 90).all()


@pytest.mark.parametrize("shape", [(512, 512), (700, 400), (400, 700), (300, 1200), (1200, 300)])
def test_the_lines_lie_in_the_lower_left_corner(shape):
    lines = ["Answer and outline disagree: answered no, yet an area is outlined", "no", "Research use only"]
    picture = overlay_mask(np.full(shape, 90, np.uint8), np.zeros(shape, np.uint8), lines)
    rows, columns = np.nonzero((picture != 90).any(axis=2))
    assert len(rows) > 200
    assert rows.min() > shape[0] * 0.75, "the lowest quarter"
    assert rows.max() < shape[0] - 1
    assert columns.max() < shape[1] - 1, "no line is cut off"
