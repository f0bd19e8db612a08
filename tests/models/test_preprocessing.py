"""Normalisation: hand-worked values, and the layer against the function."""

import keras
import numpy as np
import pytest

from keras_pneumo.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Normalise, normalise


def test_black_and_white_by_hand():
    image = np.array([0.0, 1.0], np.float32).reshape(1, 1, 2, 1)
    black, white = np.array(normalise(image))[0, 0]
    # torchvision: (0 - 0.485) / 0.229 and so on.
    np.testing.assert_allclose(black, [-2.117904, -2.035714, -1.804444], atol=1e-6)
    np.testing.assert_allclose(white, [2.248908, 2.428571, 2.640000], atol=1e-6)


def test_equals_the_same_sum_in_numpy_to_the_last_bit():
    image = np.random.default_rng(0).random((3, 5, 7, 1)).astype(np.float32)
    expected = (image - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    result = np.array(normalise(image))
    assert result.dtype == np.float32
    assert result.shape == (3, 5, 7, 3)
    np.testing.assert_array_equal(result, expected)


def test_layer_has_no_weights_and_keeps_full_precision_under_mixed_precision():
    image = np.random.default_rng(0).random((2, 4, 4, 1)).astype(np.float32)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = Normalise()
        out = np.array(layer(image))
    finally:
        keras.config.set_dtype_policy("float32")
    assert layer.weights == []
    np.testing.assert_array_equal(out, np.array(normalise(image)))
    assert layer.compute_output_shape((None, 8, 8, 1)) == (None, 8, 8, 3)


def test_layer_survives_serialisation():
    copy = keras.layers.deserialize(keras.layers.serialize(Normalise(name="normalise")))
    assert isinstance(copy, Normalise)
    assert copy.name == "normalise"


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_other_types_become_float32(dtype):
    assert np.array(normalise(np.ones((1, 2, 2, 1), dtype))).dtype == np.float32
