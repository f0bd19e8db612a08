"""What is drawn for the ladder, where that can be checked without PyTorch."""

import numpy as np
import pytest

from keras_pneumo.parity import drawn
from keras_pneumo.parity.backends import KERAS, Backend, read_arrays


@pytest.fixture
def backend(tmp_path):
    for name, experiment in drawn.DRAWN.items():
        drawn.write_recipe(tmp_path, name, experiment)
    inputs = {"drawn_images": np.arange(400), "drawn_repeats": np.zeros(400, int)}
    return Backend(tmp_path, KERAS, {"sizes": [8, 4]}, inputs)


def test_every_range_has_a_value_of_its_own():
    values = list(drawn.EVERY_RANGE.model_dump().values())
    assert 0 not in values
    assert len(set(values) - {0.1, 0.2}) >= 5


def test_the_order_holds_every_image_once_or_the_share_of_positives(backend):
    drawn.order(backend)
    once = read_arrays(backend.own / "order.every_image_once.npz")
    assert once["images of each batch"].tolist() == [8, 7, 7]
    assert sorted(once["epoch 1: images"]) == list(range(22))
    assert once["epoch 1: images"].tolist() != once["epoch 2: images"].tolist()
    share = read_arrays(backend.own / "order.share_of_positives.npz")
    positives = [int((share[f"epoch {epoch}: images"] < drawn.POSITIVES).sum()) for epoch in (1, 2, 3)]
    assert positives == [round(22 * 0.8)] * 2 + [round(22 * 0.35)]
    assert share["epoch 1: times drawn before"].max() == 1, "18 draws of 9 positives: each comes twice"


def test_parameters_fill_their_ranges_and_crops_stay_inside(backend):
    drawn.parameters(backend)
    ranges = drawn.EVERY_RANGE
    arrays = read_arrays(backend.own / "drawn.share_of_positives.npz")
    for name, low, high in (
        ("rotate", -ranges.rotate, ranges.rotate),
        ("scale", 1 - ranges.scale, 1 + ranges.scale),
        ("brightness", -ranges.brightness, ranges.brightness),
        ("noise", 0, ranges.noise),
        ("gamma", np.exp(-ranges.gamma), np.exp(ranges.gamma)),
    ):
        values, width = arrays[name], high - low
        assert low <= values.min() < low + 0.02 * width, name
        assert high - 0.02 * width < values.max() <= high, name
    assert arrays["flip"].mean() == pytest.approx(ranges.flip, abs=0.05)
    corners = arrays["corners of crops"]
    assert corners.min() == 0
    assert corners.max() == drawn.SIZE - drawn.CROP
    assert "corners of crops" not in read_arrays(backend.own / "drawn.every_image_once.npz")


def test_a_mask_pixel_is_in_where_at_least_half_of_its_area_is(backend):
    mask = np.zeros((16, 16), np.uint8)
    mask[0, :2], mask[2, 0] = 1, 1  # half of the first pixel at 8, a quarter of the one below it
    backend.inputs["large_masks"] = mask[None]
    drawn.reduced_masks(backend)
    arrays = read_arrays(backend.own / "masks.npz")
    assert np.flatnonzero(arrays["mask 0 at 8"]).tolist() == [0]
    assert not arrays["mask 0 at 4"].any()
