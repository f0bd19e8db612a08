import numpy as np
import pandas as pd
import pytest

from keras_pneumo.config import CLASSIFIER, NO_AUGMENTATION
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.training import step as training_step
from keras_pneumo.training.tuning import lr_finder
from keras_pneumo.training.tuning.lr_finder import find_rate, raise_rate, search, smooth, suggest


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
    rates, calls = np.geomspace(1e-4, 10, 40), []
    losses = raise_rate(model, experiment, separable(), rates, calls.append)
    found = find_rate(rates, [losses])
    assert rates[0] <= found.suggested <= rates[-1]
    assert found.smoothed.min() < found.smoothed[0] - 0.01, "some rate must have lowered the loss"
    assert len(found.rates) == found.losses.shape[1] == len(found.smoothed) >= 10
    assert calls == list(range(1, len(losses) + 1))
    assert found.clear
    found.save(tmp_path)
    table = pd.read_csv(tmp_path / "learning_rates.csv")
    np.testing.assert_allclose(table["learning_rate"], found.rates)
    np.testing.assert_allclose(table["loss"], losses[: len(table)])
    assert (tmp_path / "learning_rates.png").read_bytes()[:4] == b"\x89PNG"


def valley(rates, noise, seed):
    """Losses that fall from 1 by a half at 1e-3, and rise from 1e-2 on."""
    falls = 0.5 / (1 + (1e-3 / rates) ** 2)
    rises = np.where(rates > 1e-2, (rates / 1e-2) ** 0.5 - 1, 0)
    return 1 - falls + rises + np.random.default_rng(seed).normal(0, noise, len(rates))


def test_a_clear_fall_is_told_from_noise_and_more_starts_see_smaller_ones():
    rates = np.geomspace(1e-6, 1, 100)
    clear = find_rate(rates, [valley(rates, 0.1, seed) for seed in range(3)])
    assert clear.clear
    assert clear.rule == "two thirds down the fall"
    assert 1e-4 < clear.suggested < 5e-3
    assert 5e-3 < clear.edge < 5e-2
    assert clear.fall == pytest.approx(0.5, abs=0.06)
    one, nine = (find_rate(rates, [valley(rates, 0.6, seed) for seed in range(n)]) for n in (1, 9))
    assert nine.error == pytest.approx(one.error / 3, rel=0.3)
    assert nine.clear


def test_without_a_clear_fall_the_suggestion_is_the_rate_at_which_the_loss_begins_to_rise():
    rates = np.geomspace(1e-6, 1, 100)
    flat = np.where(rates > 1e-2, 3.0, 1.0)
    found = find_rate(rates, [flat + np.random.default_rng(seed).normal(0, 0.1, 100) for seed in range(3)])
    assert not found.clear
    assert found.edge == pytest.approx(1e-2, rel=0.6)
    assert found.suggested == found.edge
    assert found.rule == "where the loss begins to rise"
    trained = find_rate(rates, list(found.losses), trained=True)
    assert trained.suggested == pytest.approx(found.edge / 3), "a trained network loses what it knows"
    assert trained.rule == "a third of where the loss begins to rise"
    flat = find_rate(rates, [np.random.default_rng(seed).normal(1, 0.01, 100) for seed in range(3)])
    assert (flat.edge, flat.clear, flat.rule) == (None, False, "noise")


def test_only_noise_is_hardly_ever_called_a_fall():
    rates = np.geomspace(1e-6, 1, 100)
    noise = np.random.default_rng(0).normal(0.7, 0.1, (200, 3, 100))
    assert sum(find_rate(rates, list(losses)).clear for losses in noise) <= 20


def test_what_diverged_in_one_start_counts_in_none():
    rates = np.geomspace(1e-6, 1, 100)
    found = find_rate(rates, [valley(rates, 0.01, 0)[:60], valley(rates, 0.01, 1)])
    assert found.losses.shape == (2, 60)
    assert found.rates[-1] == rates[59]


def test_smoothing_does_not_lag():
    values = np.r_[np.zeros(20), np.ones(20)]
    smoothed = smooth(values, 3)
    np.testing.assert_allclose(smoothed + smoothed[::-1], 1)
    np.testing.assert_allclose(smooth(np.full(7, 2.0), 3), 2)


def test_each_start_has_its_own_weights_and_order(prepared_folder, monkeypatch):
    seeds, calls = [], []

    def pretend(model, experiment, source, rates, progress):
        seeds.append(experiment.seed)
        calls.append(model)
        progress(len(rates))
        return valley(rates, 0.01, experiment.seed)

    monkeypatch.setattr("keras_pneumo.training.tuning.lr_finder.raise_rate", pretend)
    experiment = CLASSIFIER.replace(encoder="resnet18", weights="random", image_size=64, global_batch_size=8, seed=5)
    shown = []
    given = []
    whole = lr_finder.find_rate
    monkeypatch.setattr(lr_finder, "find_rate", lambda *a, trained: given.append(trained) or whole(*a))
    found = search(experiment, load_prepared(prepared_folder), None, 30, lambda *now: shown.append(now), starts=2)
    assert given == [False]
    assert seeds == [5, 6]
    assert shown == [(240, 480), (480, 480)]
    assert found.losses.shape == (2, 30)
    kernels = [np.array(model.get_layer("encoder").get_layer("conv1").kernel) for model in calls]
    assert not np.array_equal(*kernels)


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
    losses = raise_rate(model, experiment, source, np.geomspace(1e-7, 1e-5, 12))
    spikes = losses > 1
    assert spikes.sum() == 1
    np.testing.assert_allclose(losses[~spikes], np.log(2), rtol=1e-4)


def test_it_learns_by_the_training_step(monkeypatch):
    """With the step's loss made smaller by a tenth, the losses of the search are smaller by a tenth."""
    import keras

    experiment = CLASSIFIER.replace(global_batch_size=8, augmentation=NO_AUGMENTATION, weights="random")

    def first_losses():
        keras.utils.set_random_seed(0)
        pixels = keras.Input((32, 32, 1))
        model = keras.Model(pixels, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(pixels)))
        return raise_rate(model, experiment, separable(), np.geomspace(1e-7, 10, 20))[:3]

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
    rates = np.geomspace(1e-7, 10, 20)
    with pytest.raises(PneumoError, match="at 0 rates"):
        find_rate(rates, [raise_rate(model, experiment, separable(), rates)])
