"""fastai's head by hand. (Against fastai's learner: tests/parity.)"""

import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.fastai import build_fastai_classifier
from keras_pneumo.models.preprocessing import normalise


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).uniform(0, 1, (2, 64, 64, 1)).astype(np.float32)


def test_the_head_is_the_formula(image):
    keras.utils.set_random_seed(4)
    model = build_fastai_classifier("resnet18")
    features = np.array(model.get_layer("encoder")(normalise(image), training=False)[-1])
    x = np.concatenate([features.max((1, 2)), features.mean((1, 2))], axis=1)  # the largest first
    for norm, dense, last in (("1-2", "1-4", False), ("1-6", "1-8", True)):
        x = x / np.sqrt(1 + 1e-5) + 1e-3  # fresh statistics, gamma 1, fastai's beta
        x = x @ np.array(model.get_layer(dense).kernel)
        x = x if last else np.maximum(x, 0)
        assert model.get_layer(norm).epsilon == 1e-5
    np.testing.assert_allclose(np.array(model(image, training=False)), x, rtol=1e-4, atol=1e-4)


def test_an_untrained_learner_is_not_normalised(image):
    keras.utils.set_random_seed(4)
    model = build_fastai_classifier("resnet18", normalised=False)
    keras.utils.set_random_seed(4)
    usual = build_fastai_classifier("resnet18")
    assert not np.allclose(np.array(model(image, training=False)), np.array(usual(image, training=False)))
    plain = np.array(model.get_layer("encoder")(np.repeat(image, 3, axis=-1), training=False)[-1])
    pooled = keras.Model(model.input, model.get_layer("pool").output)(image, training=False)
    np.testing.assert_allclose(np.array(pooled)[:, :512], plain.max((1, 2)), rtol=1e-4, atol=1e-5)


def test_dropout_works_in_training_only(image):
    keras.utils.set_random_seed(4)
    model = build_fastai_classifier("resnet18", classes=3)
    assert model(image, training=False).shape == (2, 3)
    again = np.array(model(image, training=False))
    np.testing.assert_array_equal(again, np.array(model(image, training=False)))
    assert model.get_layer("dropout-3").rate == 0.25
    assert model.get_layer("dropout-7").rate == 0.5


def test_other_encoders_are_refused():
    with pytest.raises(PneumoError, match="resnet101"):
        build_fastai_classifier("resnet101")
