"""Surface distances, by hand and against a search over all surface pixels."""

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy.spatial import cKDTree

from keras_pneumo.evaluation.scoring.surface import distances, surface_table


def square(row, column, side, size=64):
    mask = np.zeros((size, size), np.uint8)
    mask[row : row + side, column : column + side] = 1
    return mask


def runs(mask):
    return coco.encode(np.asfortranarray(mask))


def test_equal_masks_have_distance_zero():
    assert distances(square(5, 5, 9), square(5, 5, 9)) == (0, 0)


def test_the_distance_of_two_points():
    assert distances(square(10, 10, 1), square(13, 14, 1)) == (5, 5)


def test_a_mask_at_the_edge_of_the_image_has_an_outline_there():
    assert distances(square(0, 0, 3), square(0, 0, 1)) == pytest.approx(
        (8**0.5 * 0.65 + 5**0.5 * 0.35, np.mean([0, 1, 2, 1, 2, 5**0.5, 5**0.5, 8**0.5, 0])), abs=0.3
    )


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_a_search_over_all_surface_pixels(seed):
    """Golden values from scipy's k-d tree over the surface points, without any distance transform or cropping."""
    generator = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        mask = np.zeros((64, 64), np.uint8)
        for _ in range(4):
            row, column, side = [*generator.integers(0, 50, 2).tolist(), int(generator.integers(2, 14))]
            mask |= square(row, column, side)
        masks.append(mask)
    points = []
    for mask in masks:
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        points.append(np.argwhere((mask > 0) & (inner == 0)))
    there, back = (cKDTree(points[1 - index]).query(points[index])[0] for index in (0, 1))
    result = distances(*masks)
    assert result.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert result.surface == pytest.approx(np.concatenate([there, back]).mean())


def test_distances_in_millimetres_and_cases_without_a_distance():
    first, second, empty = runs(square(10, 10, 1)), runs(square(13, 14, 1)), runs(square(0, 0, 0))
    table = surface_table(
        [first, first, empty, empty, first], [second, empty, second, empty, second], np.array([0.2] * 4 + [np.nan])
    )
    assert table["case"].tolist() == ["measured", "missed", "false alarm", "both empty", "no spacing"]
    assert table["hd95_mm"].iloc[0] == pytest.approx(1.0)
    assert table["hd95_mm"].iloc[1:].isna().all()
