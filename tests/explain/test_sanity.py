"""Random weights, block by block: the maps change, an edge detector's do not, and the network gets its weights back."""

import cv2
import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.explain.sanity import cascade, draw_anew, uninformative, weight_blocks
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.unet import build_unet


def edges(_model, images):
    """Looks like a finding and knows nothing of the network."""
    heat = np.stack([np.abs(cv2.Laplacian(image[..., 0], cv2.CV_32F)) for image in images])
    return heat / heat.max(axis=(1, 2), keepdims=True)


@pytest.fixture(scope="module")
def images():
    rows, columns = np.mgrid[:64, :64] / 10
    return np.stack([0.5 + 0.5 * np.sin(rows * k) * np.cos(columns + k) for k in (1, 2, 3)])[..., None].astype(
        np.float32
    )


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    return build_classifier("resnet18")


def test_blocks_go_from_the_answer_to_the_image(classifier):
    names = [name for name, _ in weight_blocks(classifier)]
    assert names == ["fc", *(f"layer{stage}.{block}" for stage in (4, 3, 2, 1) for block in (1, 0)), "stem"]
    drawn = {id(weight) for _, layers in weight_blocks(classifier) for layer in layers for weight in layer.weights}
    assert drawn == {id(weight) for weight in classifier.weights if "seed" not in weight.path}


def test_blocks_of_a_segmenter_end_with_its_encoder():
    names = [name for name, _ in weight_blocks(build_unet("resnet18", attention="scse", image_head=True))]
    assert set(names[:2]) == {"classification_head.3", "segmentation_head.0"}
    assert names[2:7] == [f"decoder.blocks.{number}" for number in (4, 3, 2, 1, 0)]
    assert names[-1] == "stem"


def test_a_real_map_changes_and_the_weights_come_back(classifier, images):
    kept = [np.array(weight) for weight in classifier.weights]
    table = cascade(classifier, images, lambda model, some: heat_maps(model, some, "hirescam", 2))
    assert table["step"].tolist() == list(range(1, 11))
    assert not uninformative(table)
    assert (table["lowest"] <= table["likeness"]).all()
    assert (table["likeness"] <= table["highest"]).all()
    for before, weight in zip(kept, classifier.weights, strict=True):
        np.testing.assert_array_equal(before, np.array(weight))


def test_a_map_that_ignores_the_weights_is_marked(classifier, images):
    table = cascade(classifier, images, edges)
    np.testing.assert_allclose(table["likeness"], 1)
    assert uninformative(table)


def test_each_step_randomises_on_top_of_the_ones_before(classifier, images):
    seen = []

    def watch(model, some):
        seen.append([np.array(weight) for weight in model.weights])
        return edges(model, some)

    cascade(classifier, images, watch)
    changed = [sum((value != other).any() for value, other in zip(state, seen[0], strict=True)) for state in seen[1:]]
    assert changed == sorted(changed)
    assert changed[0] == 2  # kernel and bias of fc


def test_fresh_weights_are_not_those_that_training_started_from():
    layer = keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomUniform(-1, 1, seed=7))
    layer.build((None, 3))
    start = np.array(layer.kernel)
    draw_anew(layer, np.random.default_rng(0))
    assert np.abs(np.array(layer.kernel)).max() <= 1
    assert not np.isclose(np.array(layer.kernel), start).any()


def test_batchnorm_forgets_its_statistics():
    norm = keras.layers.BatchNormalization()
    norm.build((None, 3))
    norm.moving_mean.assign([1.0, 2, 3])
    norm.moving_variance.assign([4.0, 5, 6])
    norm.gamma.assign([7.0, 8, 9])
    draw_anew(norm, np.random.default_rng(0))
    np.testing.assert_array_equal(np.array(norm.moving_mean), 0)
    np.testing.assert_array_equal(np.array(norm.moving_variance), 1)
    np.testing.assert_array_equal(np.array(norm.gamma), 1)


def test_the_weights_come_back_after_a_fault(classifier, images):
    kept = np.array(classifier.get_layer("fc").kernel)
    calls = []

    def fails(_model, some):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError
        return edges(_model, some)

    with pytest.raises(RuntimeError):
        cascade(classifier, images, fails)
    np.testing.assert_array_equal(np.array(classifier.get_layer("fc").kernel), kept)


def test_no_heat_at_all_is_refused(classifier, images):
    with pytest.raises(PneumoError, match="None of these images has any heat"):
        cascade(classifier, images, lambda model, some: np.zeros((len(some), 64, 64), np.float32))
