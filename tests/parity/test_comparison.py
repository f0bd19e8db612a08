"""How differences of arrays are measured, each measure by hand."""

import numpy as np
import pytest

from keras_pneumo.parity import comparison as comparing
from keras_pneumo.parity.comparison import compare


def test_the_first_layer_beyond_the_bound_is_found_in_pytorchs_order():
    expected = {"conv1": np.arange(5.0), "bn1": np.arange(5.0), "relu": np.arange(5.0)}
    actual = {"relu": expected["relu"] + 4, "bn1": expected["bn1"] + 0.4, "conv1": expected["conv1"] + 4e-6}
    difference = compare(expected, actual, comparing.of_range, 1e-4)
    assert (difference.first, difference.worst, difference.within) == ("bn1", "relu", False)
    assert difference.absolute == 4
    assert difference.relative == 1
    assert compare(expected, actual, comparing.of_range, 2).within
    tighter = compare(expected, actual, comparing.of_range, 2, {"conv1": 1e-7})
    assert tighter.first == "conv1", "an array may have a bound of its own"


@pytest.mark.parametrize(
    "actual",
    [
        {},
        {"a": np.ones(3)},
        {"a": np.ones(2), "b": np.ones(2)},
        {"a": np.array([1.0, np.nan])},
        {"a": np.array([1.0, np.inf])},
    ],
    ids=["missing", "another shape", "left over", "nan", "inf"],
)
def test_what_is_not_there_is_infinitely_far_off(actual):
    difference = compare({"a": np.ones(2)}, actual, comparing.of_range, 1e9)
    assert not difference.within
    assert difference.measured == np.inf


def test_equal_to_the_last_bit():
    pixels = np.array([[1, 2], [3, 4]], np.uint8)
    assert comparing.exact(pixels, pixels.copy()).measured == 0
    gap = comparing.exact(pixels, pixels + np.array([[0, 0], [0, 1]], np.uint8))
    assert (gap.absolute, gap.measured) == (1, 1)
    assert comparing.exact(pixels, pixels.astype(np.float32)).measured == np.inf
    texts = np.array(["1 2", "-1"])
    assert comparing.exact(texts, texts.copy()).measured == 0
    assert comparing.exact(texts, np.array(["1 2", "3 4"])).measured == 1
    just_over = np.nextafter(np.float32(1), np.float32(2))
    assert comparing.exact(np.float32([1]), np.array([just_over])).measured == 1


def test_measures_relate_to_range_norm_and_value():
    expected, actual = np.array([0.0, 3.0, 4.0]), np.array([0.0, 3.0, 4.5])
    assert comparing.of_range(expected, actual).relative == pytest.approx(0.125)
    assert comparing.of_norm(expected, actual).relative == pytest.approx(0.1)
    assert comparing.of_value(expected, actual).relative == pytest.approx(0.125)
    assert comparing.of_value(np.zeros(1), np.zeros(1)).relative == 0
    assert comparing.of_value(np.zeros(1), np.ones(1)).relative > 1e30
    assert comparing.of_norm(np.zeros(2), np.array([0, 1e-30])).measured == np.inf
    assert comparing.of_range(np.full(2, 7.0), np.full(2, 7.0)).measured == 0


def test_draws_of_one_distribution_pass_and_of_others_do_not():
    rng = np.random.default_rng(0)
    summary = comparing.summary_of
    normal = summary(rng.normal(0, 0.05, 5000))
    assert comparing.of_spread(normal, summary(rng.normal(0, 0.05, 5000))).measured < 5
    assert comparing.of_spread(normal, summary(rng.normal(0, 0.06, 5000))).measured > 5
    assert comparing.of_spread(normal, summary(rng.normal(0.02, 0.05, 5000))).measured > 5
    uniform = summary(rng.uniform(-(3**0.5) * 0.05, 3**0.5 * 0.05, 5000))
    assert comparing.of_spread(normal, uniform).measured > 5, "the same spread in another shape"
    ones, zeros = summary(np.ones(64)), summary(np.zeros(64))
    assert comparing.of_spread(ones, ones).measured == 0
    assert comparing.of_spread(ones, zeros).measured == np.inf
    assert comparing.of_spread(summary(rng.normal(size=1)), summary(rng.normal(size=1))).measured == 0


def test_a_mean_forgives_a_pixel_and_a_multiple_compares_distances():
    expected, actual = np.zeros((10, 10)), np.zeros((10, 10))
    expected[0], actual[0] = 2, 2
    actual[5, 5] = 2
    gap = comparing.of_mean(expected, actual)
    assert (gap.absolute, gap.measured) == (2, pytest.approx(0.01))
    assert comparing.of_mean(np.ones(4), np.array([1, 1, 1, 0])).measured == pytest.approx(0.25)
    assert comparing.of_mean(expected, expected).measured == 0
    assert comparing.of_multiple(np.array([0.2]), np.array([0.3])).measured == pytest.approx(1.5)
    assert comparing.of_multiple(np.array([0.0]), np.array([0.1])).measured == np.inf
    assert comparing.of_multiple(np.array([0.0]), np.array([0.0])).measured == 0
