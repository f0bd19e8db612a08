import numpy as np
import pytest
from pycocotools import mask as coco
from scipy.spatial import cKDTree

from keras_pneumo.evaluation.scoring.masks import average_precision, pixel_auprc
from keras_pneumo.evaluation.scoring.statistics import mean_by_patient
from keras_pneumo.evaluation.scoring.surface import distances, surface_table


def square(row, column, side, size=64):
    mask = np.zeros((size, size), np.uint8)
    mask[row : row + side, column : column + side] = 1
    return mask


def runs(mask):
    return coco.encode(np.asfortranarray(mask))


def test_the_same_mask_is_at_no_distance():
    assert distances(square(5, 5, 9), square(5, 5, 9)) == (0, 0)


def test_two_points_are_as_far_apart_as_they_are():
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
    there, back = (cKDTree(points[1 - one]).query(points[one])[0] for one in (0, 1))
    found = distances(*masks)
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found.surface == pytest.approx(np.concatenate([there, back]).mean())


def test_millimetres_and_what_has_no_distance():
    one, other, none = runs(square(10, 10, 1)), runs(square(13, 14, 1)), runs(square(0, 0, 0))
    table = surface_table(
        [one, one, none, none, one], [other, none, other, none, other], np.array([0.2] * 4 + [np.nan])
    )
    assert table["case"].tolist() == ["measured", "missed", "false alarm", "both empty", "no spacing"]
    assert table["hd95_mm"].iloc[0] == pytest.approx(1.0)
    assert table["hd95_mm"].iloc[1:].isna().all()


def test_the_mean_is_over_images_that_have_a_value_and_its_interval_over_patients():
    values = np.array([1.0, 3.0, np.nan, 5.0])
    mean, interval = mean_by_patient(values, np.array([0, 0, 1, 2]), 500)
    assert mean == 3
    assert interval.low <= 3 <= interval.high
    assert np.isnan(mean_by_patient(np.full(3, np.nan), np.arange(3), 10)[0])


def test_average_precision_of_pixels_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(0)
    truth = generator.random((6, 500)) < 0.1
    levels = np.clip(generator.normal(80 + 60 * truth, 40), 0, 255).astype(int)
    counts = np.stack(
        [
            np.stack([np.bincount(row, minlength=256), np.bincount(row[right], minlength=256)])
            for row, right in zip(levels, truth, strict=True)
        ]
    )
    value, interval = pixel_auprc(counts, np.array([0, 0, 1, 2, 3, 4]), 300)
    assert value == pytest.approx(average_precision_score(truth.ravel(), levels.ravel()))
    assert interval.low < value < interval.high


def test_one_score_for_every_pixel_is_worth_the_share_of_true_ones():
    counts = np.zeros((2, 256))
    counts[0, 7], counts[1, 7] = 200, 20
    assert average_precision(counts) == pytest.approx(0.1)
    assert np.isnan(average_precision(np.zeros((2, 256))))
