"""Heat maps: hand-worked on a tiny network, finite differences on ours, the same layers and no copy."""

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.explain.gradcam import (
    METHODS,
    FeatureGradients,
    feature_gradients,
    heat_maps,
    raw_maps,
    signed_map,
    stage_gradients,
    to_heat,
)
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.unet import build_unet


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 32, 32, 1), np.float32)


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(3)
    return build_classifier("resnet18")


def two_channels(head):
    """A network whose encoder gives the image and one less the image at each of its five 'stages', all of full size."""
    inside = keras.Input((None, None, 1))
    feature = keras.layers.Concatenate(name="both")([inside, 1 - inside])
    features = [feature]
    for _ in range(4):
        features.append(keras.layers.Activation("linear")(features[-1]))
    encoder = keras.Model(inside, features, name="encoder")
    image = keras.Input((2, 2, 1))
    return keras.Model(image, head(encoder(image)[-1]))


class Score(keras.layers.Layer):
    """3 x the first channel's top left and - 1 x its bottom right + 2 x the second channel's mean."""

    def call(self, x):
        score = 3 * x[:, 0, 0, 0] - x[:, 1, 1, 0] + 2 * keras.ops.mean(x[..., 1], axis=(1, 2))
        return score[:, None]


IMAGE = np.array([[0.5, 0.25], [0.0, 1.0]], np.float32)[None, :, :, None]


@pytest.mark.parametrize("stage", [1, 3, 5])
def test_hand_worked(stage):
    # FeatureGradients: first channel [[3, 0], [0, -1]], mean 1/2; second channel 1/2 everywhere.
    model = two_channels(Score())
    first, second = IMAGE[0, ..., 0], 1 - IMAGE[0, ..., 0]
    raw = raw_maps(model, IMAGE, "gradcam", stage)
    np.testing.assert_allclose(raw.maps[0], 0.5 * first + 0.5 * second, rtol=1e-6)
    assert raw.logits[0] == pytest.approx(3 * 0.5 - 1 + 2 * (2.25 / 4))
    expected = np.array([[3 * 0.5, 0], [0, -1]]) + 0.5 * second
    np.testing.assert_allclose(raw_maps(model, IMAGE, "hirescam", stage).maps[0], expected, rtol=1e-6)
    # Grad-CAM++: the alphas g^2 / (2 g^2 + sum(A) g^3) of the rising gradients, times the gradients, summed.
    above = 9 / (2 * 9 + 1.75 * 27) * 3
    flat = 4 * (0.25 / (2 * 0.25 + 2.25 * 0.125)) * 0.5
    plus = raw_maps(model, IMAGE, "gradcam++", stage).maps[0]
    np.testing.assert_allclose(plus, above * first + flat * second, rtol=1e-6)


def test_the_shown_map_is_the_raw_one_scaled():
    heat = heat_maps(two_channels(Score()), IMAGE, "hirescam")
    np.testing.assert_allclose(heat[0], np.array([[1.75, 0.375], [0.5, 0]]) / 1.75, rtol=1e-6)
    assert heat.dtype == np.float32


def test_enlarging_is_linear_between_pixel_centres():
    heat = to_heat(np.array([[[0.0, 1.0]]], np.float32), 4)
    np.testing.assert_allclose(heat[0], np.tile([0, 0.25, 0.75, 1], (4, 1)), atol=1e-6)


def test_nothing_that_speaks_for_it_is_all_nought():
    against = two_channels(lambda x: -keras.layers.GlobalAveragePooling2D()(x)[:, :1])
    for method in METHODS:
        assert not heat_maps(against, IMAGE, method).any()


def differences(model, images, stage, positions, step=1e-2):
    """Central differences of the logit by the stage's features, by way of a network that adds to them."""
    of_stage = feature_gradients(model, images, stage)
    from keras_pneumo.explain import gradcam

    parts = gradcam._parts(model, stage)
    features = keras.tree.flatten(parts.front(images))
    estimates = []
    for position in positions:
        scores = []
        for sign in (1, -1):
            moved = np.array(features[-1])
            moved[position] += sign * step
            moved = keras.ops.convert_to_tensor(moved)
            deeper = keras.tree.flatten(parts.tail(moved)) if parts.tail is not None else []
            scores.append(np.array(gradcam._score(parts.head([*features[:-1], moved, *deeper])))[position[0]])
        estimates.append((scores[0] - scores[1]) / (2 * step))
    return of_stage, np.array(estimates)


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5])
def test_gradients_are_finite_differences(classifier, images, stage):
    rng = np.random.default_rng(stage)
    shape = feature_gradients(classifier, images, stage).features.shape
    assert shape[1] == 32 // 2**stage
    positions = [tuple(rng.integers(0, n) for n in shape) for _ in range(12)]
    of_stage, expected = differences(classifier, images, stage, positions)
    gradients = np.array([of_stage.gradients[position] for position in positions])
    # A ReLU on its edge spoils single differences of a shallow stage; most must agree closely.
    close = np.abs(gradients - expected) < 0.02 * np.abs(of_stage.gradients).max()
    assert close.mean() > 0.9
    np.testing.assert_allclose(of_stage.logits, np.array(classifier(images))[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [build_classifier, build_unet])
def test_one_pass_for_several_stages_gives_what_each_gives_alone(images, build):
    keras.utils.set_random_seed(5)
    model = build("resnet18")
    together = stage_gradients(model, images, (5, 2, 3))
    assert list(together) == [5, 2, 3]
    for stage, values in together.items():
        for several, alone in zip(values, feature_gradients(model, images, stage), strict=True):
            np.testing.assert_allclose(several, alone, rtol=1e-5, atol=1e-6 * np.abs(alone).max())


@pytest.mark.parametrize("image_head", [True, False])
@pytest.mark.parametrize("stage", [2, 5])
def test_segmenters_encoder(images, image_head, stage):
    keras.utils.set_random_seed(4)
    model = build_unet("resnet18", image_head=image_head)
    of_stage = feature_gradients(model, images, stage)
    assert of_stage.gradients.any()
    outputs = model(images)
    if image_head:
        expected = np.array(outputs["image"])[:, 0]
    else:
        mask = np.array(outputs)[..., 0]
        expected = [each[each > 0].mean() if (each > 0).any() else each.mean() for each in mask]
    np.testing.assert_allclose(of_stage.logits, expected, rtol=1e-4, atol=1e-5)
    assert heat_maps(model, images, "gradcam", stage).shape == (3, 32, 32)


def test_each_image_is_explained_as_if_alone_and_in_any_batch(classifier, images):
    many = np.concatenate([images] * 7)
    for method in METHODS:
        together = heat_maps(classifier, many, method, 3)
        np.testing.assert_allclose(together[18:21], together[:3], atol=1e-5)
        np.testing.assert_allclose(heat_maps(classifier, images[1:2], method, 3)[0], together[1], atol=1e-4)
        assert together.min() >= 0
        assert set(together.max(axis=(1, 2))) <= {0.0, 1.0}


def test_at_the_last_stage_before_pooling_gradcam_and_hirescam_are_one(classifier, images):
    maps = [raw_maps(classifier, images, method, 5).maps for method in ("gradcam", "hirescam")]
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-7)


def test_new_weights_are_seen_though_the_network_is_cut_once(images):
    model = build_classifier("resnet18")
    before = raw_maps(model, images)
    fc = model.get_layer("fc")
    fc.set_weights([-weight for weight in fc.get_weights()])
    after = raw_maps(model, images)
    np.testing.assert_allclose(after.maps, -before.maps, rtol=1e-5)
    np.testing.assert_allclose(after.logits, -before.logits, rtol=1e-5)


def test_a_network_in_training_can_be_explained(images):
    @keras.saving.register_keras_serializable(package="nowhere")
    class Odd(keras.optimizers.SGD):
        def get_config(self):
            raise NotImplementedError

    model = build_classifier("resnet18")
    model.compile(Odd(), loss=lambda truth, logits: keras.ops.mean(logits))
    assert heat_maps(model, images).shape == (3, 32, 32)
    assert model.compiled


def test_the_weights_stay_and_the_network_can_be_forgotten(images):
    model = build_classifier("resnet18")
    kept = [np.array(weight) for weight in model.weights]
    heat_maps(model, images, stage=2)
    for before, weight in zip(kept, model.weights, strict=True):
        np.testing.assert_array_equal(before, np.array(weight))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_no_image_is_no_fault(classifier):
    assert heat_maps(classifier, np.zeros((0, 32, 32, 1), np.float32)).shape == (0, 32, 32)


def test_half_precision_gives_full_maps(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_classifier("resnet18")
    finally:
        keras.config.set_dtype_policy("float32")
    heat = heat_maps(model, images, "hirescam", 2)
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()


def test_steep_gradients_do_not_overflow():
    huge = FeatureGradients(
        np.full((1, 2, 2, 3), 1e10, np.float32), np.full((1, 2, 2, 3), 1e15, np.float32), np.zeros(1)
    )
    assert np.isfinite(signed_map(huge, "gradcam++")).all()


def test_refusals(classifier, images):
    with pytest.raises(PneumoError, match="no heat map method 'lime'"):
        heat_maps(classifier, images, "lime")
    with pytest.raises(PneumoError, match="no encoder stage 6"):
        heat_maps(classifier, images, stage=6)
    pixels = keras.Input((4, 4, 1))
    plain = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels))
    with pytest.raises(PneumoError, match="no encoder"):
        heat_maps(plain, images)
