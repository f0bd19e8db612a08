from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from keras_pneumo.phantoms.anatomy import LEFT, RIGHT, lung_outline, make_build, make_position
from keras_pneumo.phantoms.cohort import Case, PhantomSettings, list_images, make_case, stream
from keras_pneumo.phantoms.geometry import SIZE, Pose, fill, rounded, smooth_curve, tubes
from keras_pneumo.phantoms.lungs import crescent, edge_curve
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


@pytest.mark.parametrize("area", [0.00006, 0.001, 0.0082, 0.03, 0.154])
@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_crescents_of_every_size(area: float, side: int) -> None:
    build = make_build(stream(1), "M", 50)
    position = make_position(stream(2), "PA")
    pose = Pose(26.0, 511.5, 110.0, 0.02)
    lung = fill(pose.pixels(lung_outline(build, position, side))) > 0.5
    for seed, rows, overlap in ((0, 1, False), (1, 1, False), (2, 2, False), (3, 2, True)):
        shape = crescent(build, position, pose, side, area, rows, overlap, stream(seed))
        wanted = min(area * SIZE * SIZE, 0.72 * lung.sum())
        assert shape.air.sum() == pytest.approx(wanted, rel=0.05, abs=2)
        assert not (shape.air & ~lung).any()
        assert (shape.edge <= shape.wall).all()
        assert len(edge_curve(shape, build, pose)) > 0


def test_lungs_mirror_each_other_and_the_right_dome_stands_higher() -> None:
    build = replace(make_build(stream(1), "F", 40), wobble=np.zeros((2, 40, 2)), curve=(0.0, 0.0), left_dome=0.04)
    position = make_position(stream(2), "PA")
    right, left = (lung_outline(build, position, side) for side in (RIGHT, LEFT))
    assert right[:, 0].min() == pytest.approx(-left[:, 0].max(), rel=0.02)
    inner = [outline[np.abs(np.abs(outline[:, 0]) - 0.5 * build.width) < 1, 1].max() for outline in (right, left)]
    assert inner[0] < inner[1]


def test_grid_undoes_pixels() -> None:
    pose = Pose(26.0, 500.0, 120.0, 0.1)
    x, y = pose.grid(512)
    column, row = pose.pixels(np.array([[x[200, 300], y[200, 300]]]), 512)[0]
    assert (column, row) == (pytest.approx(300, abs=0.01), pytest.approx(200, abs=0.01))


def test_a_slab_with_a_round_rim() -> None:
    mask = np.zeros((64, 64), np.float32)
    mask[:, 32:] = 1
    share = rounded(mask, 10.0)[10]
    assert (share[:32] == 0).all()
    # A chord at depth d of a circle of radius 10 is sqrt(d (20 - d)) / 10 of the radius; pixel 32's middle is 0.5 in.
    np.testing.assert_allclose(share[36], np.sqrt(4.5 * 15.5) / 10, atol=0.08)
    assert (share[43:] == 1).all()


def test_a_smooth_curve_goes_through_its_points() -> None:
    points = np.array([(0.0, 0.0), (4.0, 1.0), (6.0, 5.0), (2.0, 8.0)])
    for closed in (False, True):
        curve = smooth_curve(points, closed, steps=5)
        assert all(np.linalg.norm(curve - point, axis=1).min() < 1e-9 for point in points)


@pytest.mark.parametrize("round_ends", [False, True])
def test_offsets_in_a_straight_tube(round_ends: bool) -> None:
    line = np.stack([np.arange(20.0, 40.0, 0.5), np.full(40, 30.0)], axis=1)
    at, offset, _ = tubes([line], [np.full(40, 5.0)], round_ends, size=64)
    offsets = dict(zip(zip(at % 64, at // 64, strict=True), offset, strict=True))
    assert offsets[(30, 30)] == 0
    assert offsets[(30, 33)] == pytest.approx(0.6)
    assert offsets[(30, 28)] == pytest.approx(-0.4)
    assert (30, 36) not in offsets
    assert ((43, 30) in offsets) == round_ends
    assert not any(column > 45 for column, _ in offsets)
