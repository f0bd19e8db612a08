from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from keras_pneumo.phantoms.cohort import Case, PhantomSettings, list_images, make_case
from keras_pneumo.phantoms.geometry import SIZE, rounded
from keras_pneumo.phantoms.render import PhantomImage, render, render_case

SETTINGS = PhantomSettings(positive_rate=0.6, several_rows_rate=0.5, tube_rate=0.5)


def some(count: int, **wanted: object) -> list[Case]:
    """The first cases whose fields have the wanted values."""
    pairs = list_images(7, 400, SETTINGS.positive_rate)
    every = (make_case(7, patient, image, SETTINGS) for patient, image in pairs)
    return [case for case in every if all(getattr(case, name) == value for name, value in wanted.items())][:count]


@pytest.fixture(scope="module")
def positives() -> list[PhantomImage]:
    return [render_case(case) for case in some(12, positive=True)]


def test_an_image_is_a_pure_function_of_its_numbers() -> None:
    first, again = render(7, 2, 0, SETTINGS), render(7, 2, 0, SETTINGS)
    assert np.array_equal(first.image, again.image)
    assert first.case == again.case
    assert not np.array_equal(first.image, render(8, 2, 0, SETTINGS).image)
    assert not np.array_equal(first.image, render(7, 3, 0, SETTINGS).image)


def test_an_image_is_a_full_eight_bit_image(positives: list[PhantomImage]) -> None:
    for phantom in positives:
        assert phantom.image.shape == (SIZE, SIZE)
        assert phantom.image.dtype == np.uint8
        assert phantom.image.min() < 15
        assert phantom.image.max() > 150


def test_lungs_are_dark_and_what_lies_between_them_is_bright(positives: list[PhantomImage]) -> None:
    for phantom in positives:
        columns = np.flatnonzero(phantom.lungs.any(axis=0))
        rows = np.flatnonzero(phantom.lungs.any(axis=1))
        middle = phantom.image[
            rows[0] : rows[-1], (columns[0] + columns[-1]) // 2 - 20 : (columns[0] + columns[-1]) // 2 + 20
        ]
        assert np.median(phantom.image[phantom.lungs]) + 25 < np.median(middle)


def test_the_air_lies_in_one_lung_and_has_the_drawn_size(positives: list[PhantomImage]) -> None:
    for phantom in positives:
        assert not (phantom.air & ~phantom.lungs).any()
        half = SIZE // 2
        on_the_left = phantom.air[:, half:].sum() > phantom.air[:, :half].sum()
        assert on_the_left == (phantom.case.side == "left")
        room = 0.3 * phantom.lungs.sum()
        if phantom.case.area * SIZE * SIZE < room:
            assert phantom.air.sum() == pytest.approx(max(phantom.case.area * SIZE * SIZE, 30), rel=0.02, abs=2)


def test_negatives_have_no_mask() -> None:
    phantom = render_case(some(1, positive=False)[0])
    assert phantom.masks == ()
    assert not phantom.air.any()


def test_rows_overlap_where_they_are_meant_to() -> None:
    overlapping = render_case(some(1, positive=True, overlap=True)[0])
    assert len(overlapping.masks) == 2
    assert (overlapping.masks[0] & overlapping.masks[1]).any()
    small = next(case for case in some(60, positive=True, rows=2, overlap=False) if 0.002 < case.area < 0.006)
    apart = render_case(small)
    assert len(apart.masks) == 2
    assert not (apart.masks[0] & apart.masks[1]).any()


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_the_label_changes_nothing_but_its_own_lung(view: str) -> None:
    case = replace(some(1, positive=True, view=view)[0], tube=False, side="right", area=0.02)
    ill, well = render_case(case), render_case(replace(case, positive=False))
    difference = np.abs(ill.image.astype(int) - well.image)
    half = SIZE // 2
    far = np.zeros((SIZE, SIZE), bool)
    far[:, half + 100 :] = True  # the other lung, arm and background
    assert difference[far].max() <= 1
    assert difference[ill.air].mean() > 2
    # Noise, markers and borders are drawn from streams that do not know the label.
    assert ill.marker_box == well.marker_box
    assert np.array_equal(ill.lungs, well.lungs)


def test_air_is_darker_than_the_lung_it_replaces() -> None:
    for case in some(4, positive=True):
        case = replace(case, tube=False, area=0.02)
        ill, well = render_case(case), render_case(replace(case, positive=False))
        assert ill.image[ill.air].mean() < well.image[ill.air].mean() - 2


def test_a_tube_lies_where_its_mask_says() -> None:
    case = replace(some(1, positive=False)[0], tube=True)
    with_tube, without = render_case(case), render_case(replace(case, tube=False))
    brighter = with_tube.image.astype(int) - without.image > 8
    assert 500 < with_tube.tube.sum() < 60_000
    near = rounded((~with_tube.tube).astype(np.float32), 30.0) < 1  # within 30 pixels of the tube
    assert brighter.sum() > 200
    assert not (brighter & ~near).any()
    assert not without.tube.any()


def test_the_marker_is_in_its_box() -> None:
    case = some(1, positive=False)[0]
    x, y, width, height = render_case(case).marker_box
    assert 0 <= x < x + width <= SIZE
    assert 0 <= y < y + height <= SIZE
    assert 8 < width < 100
    assert 8 < height < 100


def test_images_of_one_patient_show_one_body() -> None:
    standing = some(400, view="PA", tube=False)
    pairs = [(first, second) for first, second in pairwise(standing) if first.patient == second.patient]
    shapes = []
    for first, second in pairs[:12:2]:
        fields = [render_case(case).lungs for case in (first, second)]
        shapes.append([np.ptp(np.nonzero(field)[1]) / np.ptp(np.nonzero(field)[0]) for field in fields])
    within = np.abs(np.diff(shapes)).mean()
    between = np.abs(np.subtract.outer(np.mean(shapes, axis=1), np.mean(shapes, axis=1)))[np.triu_indices(6, 1)].mean()
    assert within < 0.6 * between
