import numpy as np
import pandas as pd
import pytest

from keras_pneumo.config import CLASSIFIER, NO_AUGMENTATION
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.errors import PneumoError
from keras_pneumo.training import step as training_step
from keras_pneumo.training.tuning.lr_finder import HIGH, LOW, find_rate, suggest


def test_the_rate_lies_two_thirds_down_the_valley():
    rates = np.geomspace(1e-6, 1, 7)
    falling = np.array([1.0, 1.0, 0.9, 0.7, 0.4, 0.3, 5.0])
    # The longest fall runs from index 1 (the later of two equal starts does not matter) to 5.
    assert suggest(rates, falling) in (rates[2], rates[3])


def test_one_steep_step_does_not_decide():
    rates = np.geomspace(1e-6, 1, 10)
    losses = np.array([3.0, 3.0, 1.0, 3.0, 2.9, 2.8, 2.7, 2.6, 9.0, 9.0])
    assert rates[4] <= suggest(rates, losses) <= rates[7]


def test_a_loss_that_only_rises_still_gives_one_of_the_rates():
    rates = np.geomspace(1e-6, 1, 5)
    assert suggest(rates, np.arange(5.0)) in rates


def separable(n=32):
    """Bright images are positive, which any correct training learns."""
    labels = np.arange(n) % 2
    pixels = np.where(labels[:, None, None, None] == 1, 200, 50) * np.ones((1, 32, 32, 1))
    return ImageSet(tuple(map(str, range(n))), labels, 32, ("",) * n, ("",) * n, pixels.astype(np.uint8), None)


def test_it_searches_a_small_network_and_draws_its_plot(tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    pixels = keras.Input((32, 32, 1))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(pixels))
    model = keras.Model(pixels, keras.layers.Dense(1)(features))
    experiment = CLASSIFIER.replace(global_batch_size=8, augmentation=NO_AUGMENTATION, weights="random")
    calls = []
    search = find_rate(model, experiment, separable(), 40, lambda done, total: calls.append((done, total)))
    assert LOW <= search.suggested <= HIGH
    assert search.smoothed.min() < search.smoothed[0] - 0.01, "some rate must have lowered the loss"
    assert len(search.rates) == len(search.losses) == len(search.smoothed) >= 10
    assert calls[0] == (8, 320)
    assert search.fall > 0.01
    assert search.suggested in search.rates[len(search.rates) // 10 : -5], (
        "neither the unsteady start nor the divergence"
    )
    search.save(tmp_path)
    table = pd.read_csv(tmp_path / "learning_rates.csv")
    np.testing.assert_allclose(table["learning_rate"], search.rates)
    assert (tmp_path / "learning_rates.png").read_bytes()[:4] == b"\x89PNG"


def test_each_loss_is_the_steps_own_not_a_running_mean():
    """A high loss of one batch must not change later losses."""
    import keras

    class Scripted(keras.layers.Layer):
        def build(self, shape):
            self.bias = self.add_weight(shape=(1,), initializer="zeros")

        def call(self, images):
            return 5.0 * images[:, :1, 0, 0] + 0.0 * self.bias

    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, Scripted()(inputs))
    labels = np.zeros(24, int)
    pixels = np.zeros((24, 32, 32, 1), np.uint8)
    pixels[5] = 255
    source = ImageSet(tuple(map(str, range(24))), labels, 32, ("",) * 24, ("",) * 24, pixels, None)
    experiment = CLASSIFIER.replace(global_batch_size=2, augmentation=NO_AUGMENTATION, weights="random")
    search = find_rate(model, experiment, source, 12)
    spikes = search.losses > 1
    assert spikes.sum() == 1
    np.testing.assert_allclose(search.losses[~spikes], np.log(2), rtol=1e-4)


def test_it_learns_by_the_training_step(monkeypatch):
    """With the step's loss made smaller by a tenth, the losses of the search are smaller by a tenth."""
    import keras

    experiment = CLASSIFIER.replace(global_batch_size=8, augmentation=NO_AUGMENTATION, weights="random")

    def first_losses():
        keras.utils.set_random_seed(0)
        pixels = keras.Input((32, 32, 1))
        model = keras.Model(pixels, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(pixels)))
        return find_rate(model, experiment, separable(), 20).losses[:3]

    right = first_losses()
    whole = training_step.loss_and_gradients

    def less(*arguments):
        loss, gradients = whole(*arguments)
        return 0.9 * loss, [0.9 * gradient for gradient in gradients]

    monkeypatch.setattr(training_step, "loss_and_gradients", less)
    np.testing.assert_allclose(first_losses(), 0.9 * right, rtol=1e-4)


def test_a_loss_that_is_never_finite_is_refused():
    import keras

    pixels = keras.Input((32, 32, 1))
    model = keras.Model(pixels, keras.layers.Dense(1)(keras.layers.Flatten()(pixels)))
    model.set_weights([np.full((1024, 1), np.nan), np.zeros(1)])
    experiment = CLASSIFIER.replace(global_batch_size=8, augmentation=NO_AUGMENTATION, weights="random")
    with pytest.raises(PneumoError, match="at 0 rates"):
        find_rate(model, experiment, separable(), 20)
