"""Tests of averaged weights and of their BatchNorm statistics."""

import keras
import numpy as np
import pytest

from keras_pneumo.training.averaging import WeightAverage, estimate_statistics


def small():
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.9, name="bn")])
    return keras.Model(model.inputs, model.outputs)


def test_statistics_are_plain_means_over_the_batches():
    model = small()
    batches = [np.array([[0.0, 1.0], [2.0, 5.0]], "float32"), np.array([[4.0, 0.0], [8.0, 0.0]], "float32")]
    estimate_statistics(model, batches)
    layer = model.get_layer("bn")
    np.testing.assert_allclose(layer.moving_mean, [3.5, 1.5])
    np.testing.assert_allclose(layer.moving_variance, [2.5, 2.0])
    assert layer.momentum == 0.9


def test_statistics_of_a_layer_that_does_not_learn_stay():
    model = small()
    model.get_layer("bn").trainable = False
    estimate_statistics(model, [np.ones((3, 2), "float32")])
    np.testing.assert_array_equal(model.get_layer("bn").moving_mean, [0, 0])


def test_the_average_is_the_mean_of_the_last_epochs_weights():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    average = WeightAverage(first_epoch=1)
    average.set_model(model)
    for epoch, value in enumerate([100.0, 1.0, 4.0]):
        model.set_weights([np.array([[value]])])
        average.on_epoch_end(epoch)
    average.assign(model)
    assert model.get_weights()[0] == pytest.approx(2.5)
