"""The way of pixels to the square that networks see and back: by hand, and as properties of any shape."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.data.radiographs.geometry import (
    Placement,
    map_on_image,
    mask_on_image,
    pad_to_square,
    placement_of,
    proportions_fault,
    resize_image,
    resize_mask,
    shape_fault,
    size_note,
    without_padding,
)

SHAPES = st.tuples(st.integers(40, 2200), st.integers(40, 2200)).filter(lambda shape: max(shape) <= 4 * min(shape))


def test_an_image_is_padded_with_black_about_its_centre():
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    assert pad_to_square(image).tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]]
    assert pad_to_square(image.T).tolist() == [[1, 4, 0], [2, 5, 0], [3, 6, 0]]
    assert pad_to_square(np.ones((1, 4), np.uint8)).sum(axis=1).tolist() == [0, 4, 0, 0]
    square = np.ones((3, 3), np.uint8)
    assert pad_to_square(square) is square


def test_an_image_is_reduced_by_area_and_enlarged_linearly():
    image = np.random.default_rng(0).integers(0, 256, (60, 100)).astype(np.uint8)
    square = np.zeros((100, 100), np.uint8)
    square[20:80] = image
    for size, way in ((50, cv2.INTER_AREA), (130, cv2.INTER_LINEAR)):
        np.testing.assert_array_equal(resize_image(image, size), cv2.resize(square, (size, size), interpolation=way))
    means = resize_image(np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4), 2, 0), 2, 1), 4)
    assert means.tolist() == np.arange(16).reshape(4, 4).tolist()
    assert resize_image(image, 100).tolist() == square.tolist(), "at its own size nothing is resampled"


def test_a_mask_lies_where_its_image_does():
    image = np.zeros((300, 500), np.uint8)
    image[60:120, 200:300] = 255
    mask = (image > 0).astype(np.uint8)
    for size in (64, 250, 1024):
        differing = np.logical_xor(resize_mask(mask, size) > 0, resize_image(image, size) > 127)
        assert differing.sum() <= 4, "its corners"


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_a_mask_goes_to_the_canonical_frame_and_back_within_a_pixel_at_its_edge(shape, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    centre = tuple(int(rng.integers(0, length)) for length in shape[::-1])
    axes = tuple(int(rng.integers(8, max(9, length // 3))) for length in shape[::-1])
    cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    canonical = resize_mask(mask, 1024)
    assert canonical.shape == (1024, 1024)
    back = mask_on_image(canonical, *shape)
    assert (back.shape, back.dtype) == (shape, np.uint8)
    pixel = -(-max(shape) // 1024)  # of the coarser grid, in pixels of the image
    near = np.ones((2 * pixel + 1,) * 2, np.uint8)
    inner = cv2.erode(mask, near, borderType=cv2.BORDER_CONSTANT, borderValue=0)  # the image's border is an edge too
    outer = cv2.dilate(mask, near, borderType=cv2.BORDER_REPLICATE)
    assert (back >= inner).all()
    assert (back <= outer).all()
    np.testing.assert_array_equal(
        without_padding(canonical, *shape), canonical, "a mask of the image is not on padding"
    )


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(33, 1024))
def test_the_box_is_where_the_image_is(shape, size):
    white = resize_image(np.full(shape, 255, np.uint8), size)
    top, bottom, left, right = Placement(*shape).box(size)
    assert 0 <= top < bottom <= size
    assert 0 <= left < right <= size
    inside = np.zeros((size, size), bool)
    inside[top:bottom, left:right] = True
    # Rounded to the nearest pixel: what is all white is inside, what is all black is not.
    assert inside[white == 255].all()
    assert not inside[white == 0].any()


def test_nothing_stays_on_padding():
    kept = without_padding(np.ones((8, 8), np.uint8), 50, 100)
    assert kept.sum(axis=1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]
    assert without_padding(np.ones((8, 8), np.uint8), 100, 50).sum(axis=0).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]
    whole = np.ones((8, 8), np.uint8)
    assert without_padding(whole, 70, 70) is whole


def test_a_map_lies_on_the_image_and_its_padding_is_cut_off():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    on_image = map_on_image(ramp, 100, 50)
    assert (on_image.shape, on_image.dtype) == ((100, 50), np.float32)
    np.testing.assert_array_equal(on_image, cv2.resize(ramp, (100, 100), interpolation=cv2.INTER_LINEAR)[:, 25:75])


@pytest.mark.parametrize("side", [1500, 2000, 2500, 3072])
def test_a_mask_on_a_larger_grid_has_the_value_at_each_pixels_centre(side):
    rng = np.random.default_rng(0)
    mask = (rng.random((1024, 1024)) < 0.5).astype(np.uint8)
    middle = (2 * np.arange(side) + 1) * 1024  # in parts of 1 / (2 * side), whole numbers
    at, free = middle // (2 * side), np.flatnonzero(middle % (2 * side))  # a middle on a border may go either way
    resized = mask_on_image(mask, side, side)
    np.testing.assert_array_equal(resized[free][:, free], mask[at][:, at][free][:, free])
    mirrored = mask_on_image(np.ascontiguousarray(mask[:, ::-1]), side, side)
    np.testing.assert_array_equal(mirrored[free][:, free], resized[:, ::-1][free][:, free])


@pytest.mark.parametrize("side", [512, 1024, 2048])
def test_a_mask_keeps_its_position_on_any_grid(side):
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:200, 300:700] = 1
    rows, columns = np.nonzero(mask_on_image(mask, side, side))
    edges = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
    assert edges == [edge * side / 1024 for edge in (100, 200, 300, 700)]


def test_what_is_no_radiograph_by_its_shape():
    assert shape_fault(np.zeros((32, 128), np.uint8)) == ""
    assert "31 rows and 128 columns; a radiograph has at least 32" in shape_fault(np.zeros((31, 128), np.uint8))
    assert "more than 4 times as long" in shape_fault(np.zeros((32, 129), np.uint8))


def test_an_enlarged_image_gets_a_note():
    assert size_note(500, 256, 500) == ""
    assert "longer side of the image has 499 pixels, fewer than the 512" in size_note(499, 256, 512)


def test_the_placement_of_an_odd_difference():
    place = placement_of(np.zeros((5, 8), np.uint8))
    assert (place.side, place.top, place.left, place.rows + place.top) == (8, 1, 0, 6)


@pytest.mark.parametrize(
    ("mask", "image", "fits"),
    [
        ((1024, 1024), (1024, 1024), True),
        ((512, 482), (1955, 1841), True),  # 482.15 columns, rounded
        ((511, 482), (1955, 1841), True),  # each side rounded its own way
        ((1955, 1841), (512, 482), True),  # a mask larger than its image
        ((3910, 3682), (1955, 1841), True),
        ((2000, 1611), (100, 81), True),  # the image's own sides were rounded: 80.55
        ((512, 512), (1955, 1841), False),  # stretched or padded, nobody knows
        ((512, 479), (1955, 1841), False),
        ((1841, 1955), (1955, 1841), False),  # turned
    ],
)
def test_a_mask_of_another_grid_fits_when_one_factor_scales_both_sides(mask, image, fits):
    reason = proportions_fault(mask, image)
    assert (reason == "") == fits
    if not fits:
        assert f"{mask[0]} rows and {mask[1]} columns" in reason
        assert f"{image[0]} and {image[1]}" in reason


@given(st.integers(32, 4000), st.integers(32, 4000), st.floats(0.05, 3.0))
def test_every_scaled_grid_fits_its_image(rows, columns, factor):
    scaled = max(1, round(rows * factor)), max(1, round(columns * factor))
    assert proportions_fault(scaled, (rows, columns)) == ""
