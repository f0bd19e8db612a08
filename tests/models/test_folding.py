"""BatchNorm folded into convolutions: the same logits, from layers that hold no BatchNorm any more."""

import keras
import numpy as np
import pytest

from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.folding import fold_batch_norm
from keras_pneumo.models.resnet import leaf_layers
from keras_pneumo.models.unet import build_unet


def with_statistics(model):
    """The model with BatchNorm statistics, scales and shifts as far from their start as a training leaves them."""
    random = np.random.default_rng(0)
    for layer in leaf_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            count = layer.gamma.shape[0]
            gamma, beta = random.uniform(0.3, 1.2, count), random.normal(0, 0.2, count)
            layer.set_weights([gamma, beta, random.normal(0, 0.2, count), random.uniform(0.3, 2, count)])
    return model


def norms_of(model):
    return [layer.name for layer in leaf_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


def assert_same(folded, model, bound):
    """The logits differ by at most ``bound`` of the largest, or of 1 where all are smaller."""
    images = np.random.default_rng(1).random((3, 64, 64, 1))
    pairs = [keras.tree.flatten(each(images, training=False)) for each in (folded, model)]
    for first, second in zip(*([np.asarray(value) for value in values] for values in pairs), strict=True):
        assert first.shape == second.shape
        assert np.ptp(second) > 0, "the images have different logits"
        np.testing.assert_allclose(first, second, rtol=0, atol=bound * max(np.abs(second).max(), 1))


@pytest.fixture(params=["float32", "float64"])
def bound(request):
    """Rounding alone separates the networks: 1e-5 in float32, as good as nothing in float64."""
    keras.config.set_dtype_policy(request.param)
    keras.utils.set_random_seed(0)
    yield {"float32": 1e-5, "float64": 1e-13}[request.param]
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "resnet50"])
def test_a_folded_classifier_has_the_same_logits(encoder, bound):
    model = with_statistics(build_classifier(encoder))
    weights = [value.copy() for value in model.get_weights()]
    folded = fold_batch_norm(model)
    assert not norms_of(folded)
    assert_same(folded, model, bound)
    assert all(np.array_equal(now, before) for now, before in zip(model.get_weights(), weights, strict=True))


@pytest.mark.parametrize(
    ("encoder", "attention", "image_head"),
    [
        ("resnet18", None, False),
        ("resnet18", "scse", False),
        ("resnet18", None, True),
        ("resnet18", "scse", True),
        ("resnet34", "scse", True),
        ("resnet50", None, True),
    ],
)
def test_a_folded_unet_has_the_same_logits(encoder, attention, image_head, bound):
    model = with_statistics(build_unet(encoder, attention=attention, image_head=image_head))
    folded = fold_batch_norm(model)
    assert not norms_of(folded)
    assert_same(folded, model, bound)


def test_a_convolution_by_hand():
    """One channel: 2x becomes 3 (2x - 1) / sqrt(4) + 5 = 3x + 3.5."""
    image = keras.Input((None, None, 1))
    convolution = keras.layers.Conv2D(1, 1, use_bias=False, name="conv")
    norm = keras.layers.BatchNormalization(epsilon=0.0, name="norm")
    model = keras.Model(image, norm(convolution(image)))
    convolution.set_weights([np.full((1, 1, 1, 1), 2.0)])
    norm.set_weights([np.array([3.0]), np.array([5.0]), np.array([1.0]), np.array([4.0])])
    kernel, bias = fold_batch_norm(model).get_layer("conv").get_weights()
    assert (kernel.item(), bias.item()) == (3.0, 3.5)


def test_what_cannot_be_folded_stays():
    """BatchNorm of an input, and of a convolution that is activated, read by another layer too, or an output too."""
    image = keras.Input((8, 8, 2))
    x = keras.layers.BatchNormalization(name="of_input")(image)
    x = keras.layers.Conv2D(3, 3, activation="relu", name="activated")(x)
    x = keras.layers.BatchNormalization(name="of_activated")(x)
    read_twice = keras.layers.Conv2D(3, 1, name="read_twice")(x)
    x = keras.layers.BatchNormalization(name="of_read_twice")(read_twice)
    x = keras.layers.Add(name="add")([x, read_twice])
    x = keras.layers.Conv2D(2, 1, name="plain")(x)
    x = keras.layers.BatchNormalization(scale=False, center=False, name="of_plain")(x)
    output = keras.layers.Conv2D(2, 1, name="an_output")(x)
    x = keras.layers.BatchNormalization(name="of_an_output")(output)
    model = keras.Model(image, [x, output])
    random = np.random.default_rng(2)
    model.set_weights([random.uniform(0.3, 1, value.shape) for value in model.get_weights()])
    folded = fold_batch_norm(model)
    assert norms_of(folded) == ["of_input", "of_activated", "of_read_twice", "of_an_output"]
    images = random.random((2, 8, 8, 2)).astype(np.float32)
    for first, second in zip(folded.predict_on_batch(images), model.predict_on_batch(images), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5)
