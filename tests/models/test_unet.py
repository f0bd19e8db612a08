"""The U-Net: sizes, options, what the decoder does by hand, and a mask it can learn. (Against smp: tests/parity.)"""

import h5py
import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.resnet import depth_groups
from keras_pneumo.models.unet import DECODER_CHANNELS, build_unet, check_size
from keras_pneumo.models.weights import UnusedTensors, from_torch, to_torch


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(1)
    return build_unet("resnet18", attention="scse", image_head=True)


@pytest.fixture(scope="module")
def twin():
    """The same network with other weights, for what is loaded or restored."""
    return build_unet("resnet18", attention="scse", image_head=True)


@pytest.fixture(scope="module")
def plain():
    return build_unet("resnet18")


def parameters(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_parameters_with_resnet50_are_smps():
    assert parameters(build_unet("resnet50")) == 32_521_105


def test_one_float32_logit_per_pixel_and_per_image(unet, plain):
    for height, width in ((64, 96), (32, 32)):
        outputs = unet(np.full((2, height, width, 1), 0.5, np.float32))
        assert outputs["mask"].shape == (2, height, width, 1)
        assert outputs["image"].shape == (2, 1)
    assert plain(np.zeros((1, 32, 32, 1), np.float32)).shape == (1, 32, 32, 1)


def test_logits_stay_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_unet("resnet18", attention="scse", image_head=True)
    finally:
        keras.config.set_dtype_policy("float32")
    outputs = model(np.zeros((1, 32, 32, 1), np.float32))
    assert {keras.backend.standardize_dtype(o.dtype) for o in outputs.values()} == {"float32"}


def test_decoder_widths_and_names(unet):
    for index, channels in enumerate(DECODER_CHANNELS):
        assert unet.get_layer(f"decoder-blocks-{index}-conv2-0").filters == channels
    # resnet18's deepest map has 512 channels; the skip at stride 16 has 256.
    assert unet.get_layer("decoder-blocks-0-conv1-0").kernel.shape == (3, 3, 512 + 256, 256)
    assert unet.get_layer("decoder-blocks-4-conv1-0").kernel.shape == (3, 3, 32, 16)


def test_upsampling_is_nearest_and_comes_before_the_skip(unet):
    block = unet.get_layer("decoder-blocks-1-concatenate")
    probe = keras.Model(unet.inputs, [unet.get_layer("decoder-blocks-1-up").input, block.output])
    image = np.random.default_rng(0).random((1, 64, 64, 1)).astype(np.float32)
    small, joined = (np.array(o) for o in probe([image]))
    np.testing.assert_array_equal(joined[..., : small.shape[-1]], small.repeat(2, axis=1).repeat(2, axis=2))


def test_scse_by_hand(unet):
    # x (sigmoid(channel weight) + sigmoid(pixel weight)); with all its kernels and biases 0 both are one half.
    names = [f"decoder-blocks-2-attention2-attention-{part}" for part in ("cSE-1", "cSE-3", "sSE-0")]
    kept = [[np.array(v) for v in unet.get_layer(name).weights] for name in names]
    layers = unet.get_layer("decoder-blocks-2-attention2-attention-add")
    probe = keras.Model(unet.inputs, [unet.get_layer("decoder-blocks-2-conv2-2").output, layers.output])
    image = np.random.default_rng(1).random((1, 32, 32, 1)).astype(np.float32)

    def set_all(name, kernel, bias):
        for variable, value in zip(unet.get_layer(name).weights, (kernel, bias), strict=True):
            variable.assign(np.full(variable.shape, value, np.float32))

    for name in names:
        set_all(name, 0, 0)
    before, after = (np.array(o) for o in probe([image]))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    set_all(names[1], 0, np.log(3))  # each channel weighs 3/4
    set_all(names[2], 0, -np.log(3))  # each pixel 1/4
    set_all(names[0], 1, 0)
    before, after = (np.array(o) for o in probe([image]))
    np.testing.assert_allclose(after, before, rtol=1e-5)
    set_all(names[2], 0, 40)  # each pixel 1
    before, after = (np.array(o) for o in probe([image]))
    np.testing.assert_allclose(after, 1.75 * before, rtol=1e-5)
    for name, values in zip(names, kept, strict=True):
        for variable, value in zip(unet.get_layer(name).weights, values, strict=True):
            variable.assign(value)


def test_decoder_start_is_kaiming_uniform_and_differs_between_layers(unet):
    kernel = np.array(unet.get_layer("decoder-blocks-0-conv2-0").kernel)
    bound = (6 / (256 * 9)) ** 0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    heads = [np.array(unet.get_layer(f"decoder-blocks-{i}-attention2-attention-sSE-0").kernel) for i in (0, 1)]
    assert not np.array_equal(heads[0].ravel()[:64], heads[1].ravel()[:64])
    np.testing.assert_array_equal(np.array(unet.get_layer("segmentation_head-0").bias), 0)


def test_names_are_smps(unet):
    state = to_torch(unet)
    for name, shape in {
        "encoder.layer1.0.conv1.weight": (64, 64, 3, 3),
        "decoder.blocks.0.conv1.0.weight": (256, 768, 3, 3),
        "decoder.blocks.0.conv1.1.running_var": (256,),
        "decoder.blocks.4.attention1.attention.cSE.1.weight": (2, 32, 1, 1),
        "decoder.blocks.3.attention2.attention.sSE.0.bias": (1,),
        "segmentation_head.0.weight": (1, 16, 3, 3),
        "classification_head.3.weight": (1, 512),
    }.items():
        assert state[name].shape == shape


def test_weights_round_trip_bit_equal_and_strict(unet, twin, plain):
    state = to_torch(unet)
    from_torch(twin, state)
    assert all(array.tobytes() == state[name].tobytes() for name, array in to_torch(twin).items())
    with pytest.raises(PneumoError, match="not of this network: decoder"):
        from_torch(plain, state)
    with pytest.raises(PneumoError, match=r"missing: .*attention"):
        from_torch(twin, {name: a for name, a in state.items() if "attention" not in name})


def test_encoder_and_decoder_without_heads(unet, twin):
    twin.get_layer("segmentation_head-0").kernel.assign(np.full((3, 3, 16, 1), 7, np.float32))
    from_torch(twin, to_torch(unet), head="skip")
    np.testing.assert_array_equal(np.array(twin.get_layer("segmentation_head-0").kernel), 7)
    loaded, expected = (m.get_layer("decoder-blocks-4-conv2-0").kernel for m in (twin, unet))
    np.testing.assert_array_equal(np.array(loaded), np.array(expected))


def test_an_imagenet_state_goes_into_the_encoder(unet, plain):
    state = {name.removeprefix("encoder."): a for name, a in to_torch(unet).items() if name.startswith("encoder.")}
    state |= {"fc.weight": np.zeros((1000, 512), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    from_torch(plain.get_layer("encoder"), state, head="skip")
    np.testing.assert_array_equal(to_torch(plain)["encoder.conv1.weight"], state["conv1.weight"])


def test_depth_groups_put_decoder_and_heads_last(unet):
    groups = depth_groups(unet)
    assert groups["conv1/kernel"] == 0
    assert groups["layer3-0-conv1/kernel"] == 3
    assert groups["decoder-blocks-0-conv1-0/kernel"] == groups["classification_head-3/kernel"] == 5


def test_weights_file_round_trip(unet, twin, tmp_path):
    path = tmp_path / "best.weights.h5"
    unet.save_weights(path)
    with h5py.File(path) as file:
        assert "carried" in file["layers"], "the name that weight files of earlier runs have for the unused tensors"
    for variable in twin.weights:
        variable.assign(keras.ops.zeros_like(variable))
    twin.load_weights(path)
    state = to_torch(unet)
    assert all(array.tobytes() == state[name].tobytes() for name, array in to_torch(twin).items())


def test_unused_tensors_change_nothing_and_survive_serialisation():
    layer = UnusedTensors({"cSE.1.weight": (2, 3, 1, 1), "cSE.1.bias": (2,)}, name="attention")
    x = np.random.default_rng(2).random((1, 4, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.array(layer(x)), x)
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    copy(x)
    assert [v.shape for v in copy.weights] == [(2, 3, 1, 1), (2,)]
    assert copy.trainable_variables == []


def test_sizes_and_options_are_checked():
    check_size(512, 1024)
    for height, width in ((100, 128), (128, 100), (0, 32)):
        with pytest.raises(PneumoError, match="divide by 32"):
            check_size(height, width)
    with pytest.raises(PneumoError, match="attention 'cbam'"):
        build_unet("resnet18", attention="cbam")
    with pytest.raises(PneumoError, match="encoder 'vgg'"):
        build_unet("vgg")
