from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from memory_lab import SmallMemory

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import mean_probability
from keras_pneumo.inference.predictor import CompiledNetwork, MicroBatchPredictor, predict_passes, sigmoid
from keras_pneumo.models.unet import build_unet


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
    (single,) = predict_passes(left_minus_right(), images, flip_averaging=False)
    np.testing.assert_allclose(single.image, 1 / (1 + np.exp(-np.arange(7) * 30 / 255)), rtol=1e-6)
    assert single.maps is None


def test_flip_averaging_predicts_the_mirror_image_too():
    images = np.zeros((2, 4, 4, 1), np.float32)
    images[0, :, :2] = 1
    passes = list(predict_passes(left_minus_right(), images, flip_averaging=True))
    left = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose([each.image for each in passes], [[left, 0.5], [1 - left, 0.5]], rtol=1e-6)
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


def test_images_and_mirror_images_are_one_batch():
    network = SmallMemory(6)
    images = np.random.default_rng(0).random((3, 4, 4, 1)).astype(np.float32)
    passes = list(predict_passes(network, images, flip_averaging=True))
    assert (len(passes), network.sizes) == (2, [6])
    parts = MicroBatchPredictor(SmallMemory(2))
    for whole, part in zip(passes, predict_passes(parts, images, flip_averaging=True), strict=True):
        np.testing.assert_array_equal(part.maps, whole.maps)
        np.testing.assert_array_equal(part.image, whole.image)


def test_one_graph_predicts_batches_of_any_number_and_size():
    model = build_unet("resnet18", image_head=True)
    network = CompiledNetwork(model)
    for shape in ((3, 64, 64, 1), (1, 64, 64, 1), (2, 96, 64, 1)):
        images = np.random.default_rng(0).random(shape)
        predicted, expected = network.predict_on_batch(images), model.predict_on_batch(images)
        assert type(predicted["mask"]) is np.ndarray
        for name in ("mask", "image"):
            bound = 1e-5 * np.abs(expected[name]).max()
            np.testing.assert_allclose(predicted[name], expected[name], rtol=0, atol=bound)
    assert network.function.experimental_get_tracing_count() == 1


@given(st.floats(-1e6, 1e6))
def test_probabilities_never_overflow(logit):
    with np.errstate(all="raise", under="ignore"):
        probability = sigmoid(np.array([logit]))[0]
    assert 0 <= probability <= 1
    if abs(logit) < 30:
        assert probability == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, tf.constant])
def test_a_part_that_does_not_fit_is_halved_and_no_image_is_lost(kind):
    network, halved = SmallMemory(2), []
    batch = np.arange(14.0).reshape(7, 2)
    predictor = MicroBatchPredictor(network, 6, on_halved=halved.append)
    for _ in range(2):
        outputs = predictor.predict_on_batch(kind(batch))
        np.testing.assert_array_equal(outputs["mask"], batch + 1)
        np.testing.assert_array_equal(outputs["image"], -batch[:, 0])
    assert network.sizes == [6, 3, 2, 2, 2, 1, 2, 2, 2, 1]
    assert halved == [3, 2]


def test_a_batch_that_fits_is_predicted_whole():
    network = SmallMemory(7)
    batch = np.zeros((7, 2))
    assert MicroBatchPredictor(network).predict_on_batch(batch)["mask"].shape == (7, 2)
    assert MicroBatchPredictor(network, 9).predict_on_batch(batch)["mask"].shape == (7, 2)
    assert network.sizes == [7, 7]


def test_too_little_memory_for_one_image_is_refused_and_each_device_keeps_a_row():
    with pytest.raises(PneumoError, match="too small to predict even one image at once"):
        MicroBatchPredictor(SmallMemory(0)).predict_on_batch(np.zeros((7, 2)))
    network = SmallMemory(2)
    with pytest.raises(PneumoError, match="too small to predict even 3 images"):
        MicroBatchPredictor(network, smallest=3).predict_on_batch(np.zeros((8, 2)))
    assert network.sizes == [8, 4, 3]
