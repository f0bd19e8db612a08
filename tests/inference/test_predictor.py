from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.inference.ensemble import mean_probability
from keras_pneumo.inference.predictor import predict_passes, sigmoid


def left_minus_right():
    """A network whose answer is known: mean of the left half minus mean of the right half."""
    pixels = keras.Input((None, None, 1))
    kernel = np.concatenate([np.ones((4, 2)), -np.ones((4, 2))], axis=1)[:, :, None, None] / 8
    features = keras.layers.Conv2D(1, 4, use_bias=False)(pixels)
    model = keras.Model(pixels, keras.layers.Reshape((1,))(features))
    model.set_weights([kernel])
    return model


def test_every_image_is_predicted_in_order():
    images = np.zeros((7, 4, 4, 1), np.float32)
    images[:, :, :2] = (np.arange(7) * 30)[:, None, None, None] / np.float32(255)
    (once,) = predict_passes(left_minus_right(), images, flip_averaging=False)
    np.testing.assert_allclose(once.image, 1 / (1 + np.exp(-np.arange(7) * 30 / 255)), rtol=1e-6)
    assert once.maps is None


def test_flip_averaging_predicts_the_mirror_image_too():
    images = np.zeros((2, 4, 4, 1), np.float32)
    images[0, :, :2] = 1
    passes = list(predict_passes(left_minus_right(), images, flip_averaging=True))
    left = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose([one.image for one in passes], [[left, 0.5], [1 - left, 0.5]], rtol=1e-6)
    run = SimpleNamespace(experiment=SimpleNamespace(image_size=4, flip_averaging=True))
    mean = mean_probability([(run, [left_minus_right()])], lambda size: images)
    np.testing.assert_allclose(mean, [0.5, 0.5], rtol=1e-6)


def test_maps_of_mirror_images_are_turned_back():
    images = np.random.default_rng(0).random((2, 4, 6, 1)).astype(np.float32)
    pixels = keras.Input((None, None, 1))
    same = keras.Model(pixels, keras.layers.Activation("linear")(pixels))
    first, second = predict_passes(same, images, flip_averaging=True)
    np.testing.assert_array_equal(first.maps, second.maps)
    np.testing.assert_allclose(first.maps, 1 / (1 + np.exp(-images[..., 0])), rtol=1e-6)
    assert first.image is None


@given(st.floats(-1e6, 1e6))
def test_probabilities_never_overflow(logit):
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(np.array([logit]))[0]
    assert 0 <= found <= 1
    if abs(logit) < 30:
        assert found == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-9)
