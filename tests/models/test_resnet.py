"""The encoders: sizes, parameter counts, start, and the convolution's padding worked by hand.

Parameter counts are torchvision's documented ones (11,689,512; 21,797,672; 25,557,032), head of 1000 classes included.
"""

import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.resnet import STRIDES, depth_groups, depth_of, leaf_layers, resnet

CHANNELS = {18: [64, 64, 128, 256, 512], 34: [64, 64, 128, 256, 512], 50: [64, 256, 512, 1024, 2048]}


@pytest.fixture(scope="module")
def encoders():
    keras.utils.set_random_seed(0)
    return {depth: resnet(depth) for depth in (18, 34, 50)}


@pytest.mark.parametrize(("depth", "total"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_parameters_are_torchvisions(encoders, depth, total):
    trainable = sum(int(np.prod(v.shape)) for v in encoders[depth].trainable_variables)
    assert trainable + CHANNELS[depth][-1] * 1000 + 1000 == total


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 45)])
def test_features_at_strides_2_to_32_rounded_up(encoders, depth, height, width):
    features = encoders[depth](np.zeros((1, height, width, 3), np.float32))
    assert [f.shape[-1] for f in features] == CHANNELS[depth]
    assert [f.shape[1:3] for f in features] == [(-(-height // s), -(-width // s)) for s in STRIDES]


def test_shapes_without_a_size(encoders):
    assert [f.shape[1:3] for f in encoders[18].outputs] == [(None, None)] * 5


def test_every_batch_norm_has_pytorchs_settings_and_no_convolution_a_bias(encoders):
    for layer in encoders[50].layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
            assert not layer.synchronized
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias


def test_synchronized_reaches_every_batch_norm():
    norms = [n for n in resnet(18, synchronized=True).layers if isinstance(n, keras.layers.BatchNormalization)]
    assert len(norms) == 20
    assert all(norm.synchronized for norm in norms)


def test_the_bottlenecks_stride_is_on_its_3x3(encoders):
    layer = encoders[50].get_layer
    assert layer("layer2-0-conv1").strides == (1, 1)
    assert layer("layer2-0-conv2").strides == (2, 2)
    assert layer("layer2-0-downsample-0").strides == (2, 2)


def test_stem_pads_three_pixels_on_every_side(encoders):
    # Keras's own "same" would pad 2 before and 3 after. With a kernel that reads its centre only, an output pixel is
    # the input pixel at twice its position.
    layer = encoders[18].get_layer("conv1")
    stem = keras.Model(encoders[18].inputs, layer.output)
    kept = np.array(layer.kernel)
    kernel = np.zeros_like(kept)
    kernel[3, 3, 0, 0] = 1
    layer.kernel.assign(kernel)
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1).repeat(3, axis=-1)
    out = np.array(stem([image]))[0, :, :, 0]
    layer.kernel.assign(kept)
    np.testing.assert_array_equal(out, image[0, ::2, ::2, 0])


def test_start_is_kaiming_normal_over_the_outputs(encoders):
    kernel = np.array(encoders[50].get_layer("layer3-1-conv2").kernel)
    std = (2 / (256 * 9)) ** 0.5
    assert kernel.std() == pytest.approx(std, rel=0.01)
    assert np.abs(kernel).max() > 4 * std  # a normal, not one cut at two standard deviations
    for name in ("layer3-1-bn1", "layer3-1-bn3"):  # torchvision starts the last BatchNorm of a block at 1, not at 0
        np.testing.assert_array_equal(np.array(encoders[50].get_layer(name).gamma), 1)


def test_names_of_depths():
    assert depth_of("resnet34") == 34
    with pytest.raises(PneumoError, match="resnet18, resnet34, resnet50"):
        depth_of("resnet101")
    with pytest.raises(PneumoError, match="depth 101"):
        resnet(101)


def test_depth_groups_cover_every_variable_once():
    classifier = build_classifier("resnet18", dropout=0.5)
    groups = depth_groups(classifier)
    assert groups.keys() == {v.path for v in classifier.variables if "seed" not in v.path}
    assert groups["conv1/kernel"] == groups["bn1/gamma"] == 0
    assert groups["layer1-0-conv1/kernel"] == 1
    assert groups["layer4-1-bn2/beta"] == 4
    assert groups["fc/kernel"] == groups["fc/bias"] == 5
    assert {layer.name for layer in leaf_layers(classifier)} >= {"conv1", "layer2-0-downsample-1", "fc"}
