"""Pictures of heat: cold places stay as they are, the outline lies on the mask, the notice is there."""

import cv2
import numpy as np
import pytest

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.explain.pictures import OUTLINE, SIDE, caption, colour_heat, overlay_heat_map, write_overlay


def test_captions():
    assert caption(0.5, "gradcam++", 4, "found") == "found: probability 0.500, Grad-CAM++ of stage 4"
    assert caption(float("nan"), "hirescam", 1) == "HiResCAM of stage 1"


def test_where_there_is_no_heat_the_radiograph_is_unchanged():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    heat = np.zeros((8, 8), np.float32)
    heat[2, 3] = 1
    coloured = colour_heat(image, heat)
    cold = heat == 0
    for channel in range(3):
        np.testing.assert_array_equal(coloured[..., channel][cold], image[cold])
    red, green, blue = coloured[2, 3].astype(int)
    assert red > 150
    assert red > blue
    assert green > blue


def test_more_heat_covers_more():
    image = np.zeros((1, 4), np.uint8)
    coloured = colour_heat(image, np.array([[0.0, 0.3, 0.6, 1.0]])).astype(int).sum(axis=-1)[0]
    assert (np.diff(coloured) > 0).all()


@pytest.mark.parametrize("side", [96, 512, 1024])
def test_grey_on_the_left_heat_on_the_right(side):
    image = np.full((side, side), 90, np.uint8)
    heat = np.zeros((3, 3), np.float32)
    heat[0, 2] = 1
    picture = overlay_heat_map(image, heat, "caption")
    left, right = picture[:SIDE, :SIDE], picture[:SIDE, -SIDE:]
    assert (left == 90).all()
    assert (right[:100, -100:, 0] > 120).all()
    assert (right[-100:, :100] == 90).all()
    assert picture.dtype == np.uint8


def test_another_map_is_laid_over_a_third_picture():
    image = np.full((96, 96), 90, np.uint8)
    heat, other = np.zeros((3, 3), np.float32), np.zeros((6, 6), np.float32)
    heat[0, 2] = other[5, 0] = 1
    picture = overlay_heat_map(image, heat, "caption", beside=other)
    two = overlay_heat_map(image, heat, "caption")
    assert picture.shape[1] - two.shape[1] == two.shape[1] - SIDE
    np.testing.assert_array_equal(picture[:SIDE, : two.shape[1]], two[:SIDE])
    third = picture[:SIDE, -SIDE:]
    assert (third[-40:, :40, 0] > 120).all()
    assert (third[:100, -100:] == 90).all()


def test_the_outline_lies_on_the_edge_of_the_mask_in_both():
    mask = np.zeros((1024, 1024), np.uint8)
    mask[200:600, 300:500] = 1
    image = np.zeros((128, 128), np.uint8)
    picture = overlay_heat_map(image, np.zeros((4, 4)), "", rle.runs_of(rle.encode(mask)))
    for left in (0, picture.shape[1] - SIDE):
        part = picture[:SIDE, left : left + SIDE]
        rows, columns = np.nonzero((part.astype(int) - OUTLINE).__abs__().sum(axis=-1) < 150)
        assert abs(rows.min() - 100) <= 1
        assert abs(rows.max() - 300) <= 1
        assert abs(columns.min() - 150) <= 1
        assert abs(columns.max() - 250) <= 1


def test_every_picture_says_research_use_only_however_long_the_caption():
    image = np.zeros((64, 64), np.uint8)
    feet = [overlay_heat_map(image, np.zeros((2, 2)), words)[SIDE:] for words in ("", "short", "very long " * 60)]
    notice = [foot[:, -170:] for foot in feet]
    assert notice[0].max() > 200
    np.testing.assert_array_equal(notice[0], notice[1])
    np.testing.assert_array_equal(notice[0], notice[2])
    assert (feet[1] != feet[0]).any()


def test_a_picture_of_a_network_that_learnt_from_phantoms_says_so():
    image = np.zeros((64, 64), np.uint8)
    plain, marked = (overlay_heat_map(image, np.zeros((2, 2)), "", synthetic=mark)[SIDE:] for mark in (False, True))
    np.testing.assert_array_equal(plain[:, -160:], marked[:, -160:])
    assert plain[:, -330:-170].max() < 60
    assert marked[:, -330:-170].max() > 200


def test_written_as_png_in_its_colours(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 0] = 200
    write_overlay(tmp_path / "new" / "a.png", picture)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "new" / "a.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, picture)
    (tmp_path / "file").write_text("")
    with pytest.raises(PneumoError):
        write_overlay(tmp_path / "file" / "a.png", picture)
