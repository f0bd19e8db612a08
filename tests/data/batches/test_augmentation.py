import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.config import NO_AUGMENTATION, Augmentation
from keras_pneumo.data.batches.augmentation import IDENTITY, PARAMETERS, augment, augment_masks, draw_parameters, warp

EVERYTHING = Augmentation(noise=0.05, clahe=0.5)
SEEDS = np.zeros((1, 2), np.int32)


def row(**changes):
    parameters = IDENTITY.copy()
    for name, value in changes.items():
        parameters[PARAMETERS.index(name)] = value
    return parameters[None]


def moved(pixels, **changes):
    return warp(np.asarray(pixels, np.float32), row(**changes)[0])


def test_identity_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
    result = augment(EVERYTHING, pixels, np.repeat(IDENTITY[None], 2, 0), np.zeros((2, 2), np.int32))
    np.testing.assert_allclose(result, pixels / np.float32(255), atol=1e-6)


def test_a_flip_mirrors_left_and_right_exactly():
    pixels = np.random.default_rng(1).random((5, 7))
    np.testing.assert_allclose(moved(pixels, flip=1), pixels[:, ::-1].astype(np.float32), atol=1e-6)


def test_a_shift_moves_right_and_down_and_leaves_black():
    pixels = np.zeros((4, 4))
    pixels[1, 1] = 1
    expected = np.zeros((4, 4))
    expected[2, 3] = 1
    np.testing.assert_allclose(moved(pixels, shift_x=0.5, shift_y=0.25), expected, atol=1e-6)


def test_a_quarter_turn_is_counter_clockwise():
    pixels = np.random.default_rng(2).random((6, 6))
    np.testing.assert_allclose(moved(pixels, rotate=90), np.rot90(pixels).astype(np.float32), atol=1e-5)


def test_the_flip_comes_before_the_turn():
    pixels = np.random.default_rng(3).random((6, 6))
    expected = np.rot90(pixels[:, ::-1]).astype(np.float32)
    np.testing.assert_allclose(moved(pixels, flip=1, rotate=90), expected, atol=1e-5)


def test_a_scale_above_one_enlarges():
    pixels = np.zeros((80, 80))
    pixels[24:56, 24:56] = 1
    assert moved(pixels, scale=2).sum() == pytest.approx(4 * 32**2, rel=0.05)
    assert moved(pixels, scale=0.5).sum() == pytest.approx(32**2 / 4, rel=0.05)


@given(
    angle=st.floats(-30, 30),
    scale=st.floats(0.8, 1.25),
    shift=st.floats(-0.1, 0.1),
    flip=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_geometry_agrees_with_opencv(angle, scale, shift, flip):
    size = 32
    smooth = cv2.GaussianBlur(np.random.default_rng(4).random((size, size)).astype(np.float32), (0, 0), 3)
    centre = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), angle, scale)  # cv2: positive angles are counter-clockwise
    matrix[:, 2] += shift * size
    source = smooth[:, ::-1].copy() if flip else smooth
    expected = cv2.warpAffine(source, matrix, (size, size), flags=cv2.INTER_LINEAR)
    result = moved(smooth, flip=flip, rotate=angle, scale=scale, shift_x=shift, shift_y=shift)
    inside = (slice(8, 24), slice(8, 24))  # at the border the two blend with black differently
    np.testing.assert_allclose(result[inside], expected[inside], atol=0.01)  # cv2 rounds positions to 1/32 pixel


@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_image_and_mask_move_together(seed, epoch):
    mask = np.zeros((1, 64, 64, 1), np.uint8)
    cv2.ellipse(mask[0, :, :, 0], (24, 28), (9, 14), 30, 0, 360, 255, -1)
    geometry = Augmentation(brightness=0, contrast=0, gamma=0)
    parameters, seeds = draw_parameters(geometry, seed, epoch, np.array([3]), np.array([0]))
    as_image = augment(geometry, mask, parameters, seeds) >= 0.5
    as_mask = augment_masks(geometry, mask, parameters)
    assert set(np.unique(as_mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(as_image, as_mask > 0)


def test_each_photometric_change_does_what_it_says():
    pixels = np.array([[51, 102], [153, 204]], np.uint8)[None, :, :, None]
    plain = pixels[0, :, :, 0] / 255.0

    def changed(**changes):
        return augment(EVERYTHING, pixels, row(**changes), SEEDS)[0, :, :, 0]

    np.testing.assert_allclose(changed(brightness=0.1), plain + 0.1, atol=1e-6)
    np.testing.assert_allclose(changed(contrast=0.5), (plain - 0.5) * 0.5 + 0.5, atol=1e-6)
    np.testing.assert_allclose(changed(gamma=2.0), plain**2, atol=1e-6)
    np.testing.assert_allclose(changed(brightness=0.5), np.minimum(plain + 0.5, 1), atol=1e-6)
    noisy = changed(noise=0.05) - plain
    assert 0.005 < noisy.std() < 0.2


def test_noise_is_numpys_normal_numbers_keyed_by_the_images_two_seeds():
    pixels = np.full((2, 16, 8, 1), 128, np.uint8)
    seeds = np.array([[3, 2**31 - 2], [7, 0]], np.int32)
    noisy = augment(EVERYTHING, pixels, np.repeat(row(noise=0.05), 2, 0), seeds)
    for image, seed in zip(noisy, seeds, strict=True):
        generator = np.random.Generator(np.random.Philox(key=seed.astype(np.uint64)))
        expected = 128 / 255 + np.float32(0.05) * generator.standard_normal((16, 8, 1), np.float32)
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_clahe_is_opencvs():
    pixels = np.random.default_rng(5).integers(0, 90, (1, 64, 64, 1), np.uint8)
    expected = cv2.createCLAHE(2.0, (8, 8)).apply(pixels[0, :, :, 0]) / 255.0
    np.testing.assert_allclose(augment(EVERYTHING, pixels, row(clahe=1), SEEDS)[0, :, :, 0], expected, atol=1e-6)


def test_parameters_depend_on_seed_epoch_image_and_repeat_and_on_nothing_else():
    images, repeats = np.array([5, 2, 5, 9]), np.array([0, 0, 1, 0])
    first, seeds = draw_parameters(EVERYTHING, 1, 2, images, repeats)
    again, _ = draw_parameters(EVERYTHING, 1, 2, images[::-1], repeats[::-1])
    np.testing.assert_array_equal(first, again[::-1])
    assert not np.array_equal(first[0], first[2]), "the same image drawn twice is changed differently"
    for other in ((2, 2), (1, 3)):
        assert not np.array_equal(first, draw_parameters(EVERYTHING, *other, images, repeats)[0])
    assert len(np.unique(seeds, axis=0)) == 4


def test_parameters_stay_in_their_ranges_and_fill_them():
    drawn, _ = draw_parameters(EVERYTHING, 0, 0, np.arange(2000), np.zeros(2000, int))
    table = dict(zip(PARAMETERS, drawn.T, strict=True))
    for name, low, high in (
        ("shift_x", -0.05, 0.05),
        ("shift_y", -0.05, 0.05),
        ("scale", 0.9, 1.1),
        ("rotate", -10, 10),
        ("brightness", -0.1, 0.1),
        ("contrast", 0.8, 1.2),
        ("gamma", np.exp(-0.2), np.exp(0.2)),
        ("noise", 0, 0.05),
    ):
        assert low <= table[name].min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < table[name].max() <= high * (1 + 1e-6), name
    assert table["flip"].mean() == pytest.approx(0.5, abs=0.05)
    assert table["clahe"].mean() == pytest.approx(0.5, abs=0.05)


def test_no_augmentation_draws_the_identity():
    drawn, _ = draw_parameters(NO_AUGMENTATION, 3, 4, np.arange(20), np.zeros(20, int))
    np.testing.assert_array_equal(drawn, np.repeat(IDENTITY[None], 20, 0))


def by_float64(pixels, parameters):
    """The definition, written out in float64: bilinear with black around, then contrast, brightness and gamma."""
    flip, shift_x, shift_y, scale, rotate, brightness, contrast, gamma = (float(value) for value in parameters[:8])
    height, width = pixels.shape
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    x, y = x - shift_x * width, y - shift_y * height
    angle = np.deg2rad(rotate)
    x, y = (x * np.cos(angle) - y * np.sin(angle)) / scale, (x * np.sin(angle) + y * np.cos(angle)) / scale
    x, y = (-x if flip else x) + (width - 1) / 2 + 2, y + (height - 1) / 2 + 2
    padded = np.pad(pixels / 255.0, 2)
    x, y = x.clip(0, width + 2.999), y.clip(0, height + 2.999)
    left, top = x.astype(int), y.astype(int)
    right, down = x - left, y - top
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    moved = upper * (1 - down) + lower * down
    changed = (moved - moved.mean()) * contrast + moved.mean() + brightness
    return changed.clip(0, 1) ** gamma, moved


@given(seed=st.integers(0, 2**31 - 1), side=st.integers(17, 60))
@settings(max_examples=40, deadline=None)
def test_images_and_masks_are_what_float64_gives(seed, side):
    strong = Augmentation(shift=0.2, scale=0.3, rotate=40, brightness=0.2, contrast=0.4, gamma=0.4)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (1, side, side + 3, 1), np.uint8)
    masks = cv2.GaussianBlur(pixels[0], (0, 0), 2)[None, :, :, None] > 127
    parameters, seeds = draw_parameters(strong, seed, 1, np.array([4]), np.array([0]))
    expected, _ = by_float64(pixels[0, :, :, 0], parameters[0])
    np.testing.assert_allclose(augment(strong, pixels, parameters, seeds)[0, :, :, 0], expected, atol=3e-4)
    _, moved = by_float64(masks[0, :, :, 0] * 255, parameters[0])
    differing = augment_masks(strong, masks, parameters)[0, :, :, 0] != (moved >= 0.5)
    assert not differing[np.abs(moved - 0.5) > 1e-3].any(), "but for pixels that are half in, to rounding"


def test_a_mask_keeps_a_pixel_of_which_just_half_is_in_it():
    mask = np.zeros((1, 8, 8, 1), np.uint8)
    mask[0, :, 4] = 1
    moved = augment_masks(EVERYTHING, mask, row(shift_x=0.5 / 8))[0, :, :, 0]
    assert moved.sum(axis=0).tolist() == [0, 0, 0, 0, 8, 8, 0, 0], "half of two columns each"


def test_an_image_is_changed_alike_alone_and_in_any_batch():
    pixels = np.random.default_rng(6).integers(0, 256, (5, 40, 40, 1), np.uint8)
    parameters, seeds = draw_parameters(EVERYTHING, 1, 1, np.arange(5), np.zeros(5, int))
    together = augment(EVERYTHING, pixels, parameters, seeds)
    for order in (np.arange(5)[::-1], np.array([3]), np.array([2, 4])):
        np.testing.assert_array_equal(
            augment(EVERYTHING, pixels[order], parameters[order], seeds[order]), together[order]
        )


def test_pixels_that_may_not_be_written_to_are_changed_all_the_same():
    """As those of a mapped array are."""
    pixels = np.random.default_rng(7).integers(0, 256, (1, 40, 40, 1), np.uint8)
    pixels.flags.writeable = False
    for changes in ({}, {"flip": 0, "shift": 0, "scale": 0, "rotate": 0}, {"clahe": 1}):
        settings = Augmentation(**changes)
        parameters, seeds = draw_parameters(settings, 1, 1, np.array([0]), np.array([0]))
        np.testing.assert_array_equal(
            augment(settings, pixels, parameters, seeds), augment(settings, pixels.copy(), parameters, seeds)
        )
