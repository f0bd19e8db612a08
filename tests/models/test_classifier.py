"""The classifier: one float32 logit, its parts by name, its weight file."""

import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.classifier import build_classifier


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(1)
    return build_classifier("resnet18", dropout=0.5)


def test_one_float32_logit_per_image_of_any_size(classifier):
    for size in ((64, 64), (50, 70)):
        logits = np.array(classifier(np.full((2, *size, 1), 0.5, np.float32)))
        assert logits.shape == (2, 1)
        assert logits.dtype == np.float32


def test_parts_have_their_names(classifier):
    assert isinstance(classifier.get_layer("encoder"), keras.Model)
    assert classifier.layers[-1].name == "fc"
    assert classifier.layers[1].name == "normalise"


def test_parameters_of_resnet50_with_one_class():
    model = build_classifier("resnet50")
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == 25_557_032 - 2049 * 1000 + 2049


def test_dropout_acts_in_training_only(classifier):
    image = np.random.default_rng(0).random((1, 32, 32, 1)).astype(np.float32)
    rest = [np.array(classifier(image, training=False)) for _ in range(2)]
    np.testing.assert_array_equal(*rest)
    encoder = classifier.get_layer("encoder")
    encoder.trainable = False  # then BatchNorm stands still and only dropout is left to vary
    draws = [np.array(classifier(image, training=True)) for _ in range(2)]
    encoder.trainable = True
    assert draws[0] != draws[1]


def test_head_starts_within_one_over_root_fan_in(classifier):
    kernel, bias = (np.array(v) for v in classifier.get_layer("fc").weights)
    bound = 512**-0.5
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    assert np.abs(bias).max() <= bound


def test_logits_stay_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_classifier("resnet18")
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("encoder").get_layer("conv1").compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(model(np.zeros((1, 32, 32, 1), np.float32)).dtype) == "float32"
    assert all(v.dtype == "float32" for v in model.trainable_variables)


def test_unknown_encoder_is_refused():
    with pytest.raises(PneumoError, match="'vgg16'"):
        build_classifier("vgg16")


def test_weights_file_round_trip(classifier, tmp_path):
    path = tmp_path / "best.weights.h5"
    classifier.save_weights(path)
    other = build_classifier("resnet18")
    other.load_weights(path)
    for saved, loaded in zip(classifier.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.array(saved), np.array(loaded))
