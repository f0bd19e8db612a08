"""torchxrayvision's ResNet50 for our input: its stem on three channels, its output, and how its file is known.

Whole networks are compared with PyTorch's in tests/parity/pytorch/test_networks.py.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.signal import correlate2d

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.imagenet import images_of_weights
from keras_pneumo.models.preprocessing import normalise
from keras_pneumo.models.xrayvision import IMAGES, PATHOLOGIES, is_xrayvision, read_weights, three_channels


def small_state(seed=0, **changes):
    """The tensors by which torchvision's network of one channel and 18 outputs is known."""
    rng = np.random.default_rng(seed)
    state = {
        "conv1.weight": rng.normal(0, 0.05, (64, 1, 7, 7)).astype(np.float32),
        "fc.weight": rng.normal(0, 1, (18, 2048)).astype(np.float32),
        "fc.bias": rng.normal(0, 1, 18).astype(np.float32),
    }
    return state | changes


def padded_sum(channels, kernels):
    """The convolution of channels (height, width, c) with kernels (c, 7, 7), padded with 3 zeros, in float64."""
    padded = [np.pad(np.asarray(channel, np.float64), 3) for channel in np.moveaxis(channels, -1, 0)]
    return sum(
        correlate2d(image, kernel.astype(np.float64), "valid") for image, kernel in zip(padded, kernels, strict=True)
    )


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0, None]))
def test_the_stem_gives_the_same_numbers_inside_and_at_the_border(seed, height, width, grey):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 1, (height, width, 1)) if grey is None else np.full((height, width, 1), grey)
    stem = small_state(seed)["conv1.weight"]
    ours = three_channels(small_state(seed))["conv1.weight"]
    assert ours.shape == (64, 3, 7, 7)
    assert ours.dtype == np.float32
    for number in (0, 63):
        expected = padded_sum(2048 * image - 1024, stem[number])
        actual = padded_sum(np.asarray(normalise(image, "float64")), ours[number])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4)  # of some hundreds; the kernels are float32


def test_the_output_is_the_one_of_pneumothorax():
    state = small_state()
    head = three_channels(state)
    assert PATHOLOGIES[3] == "Pneumothorax"
    np.testing.assert_array_equal(head["fc.weight"], state["fc.weight"][3:4])
    np.testing.assert_array_equal(head["fc.bias"], state["fc.bias"][3:4])
    assert state["fc.weight"].shape == (18, 2048), "what was given stays as it was"


def test_it_is_known_by_its_shape_also_as_its_class_saves_it(tmp_path):
    state = small_state()
    of_class = {f"model.{name}": array for name, array in state.items()} | {"op_threshs": np.full(18, np.nan)}
    save_file(state, tmp_path / "plain.safetensors")
    save_file(of_class, tmp_path / "class.safetensors")
    plain, same = (read_weights(tmp_path / f"{name}.safetensors") for name in ("plain", "class"))
    assert plain.keys() == same.keys() == state.keys()
    np.testing.assert_array_equal(plain["conv1.weight"], same["conv1.weight"])
    assert images_of_weights(tmp_path / "class.safetensors", "resnet50", "random") == IMAGES
    assert not is_xrayvision(small_state(**{"fc.weight": np.zeros((1, 2048), np.float32)}))
    assert not is_xrayvision({})


def test_another_network_of_one_channel_is_refused(tmp_path):
    save_file(small_state(**{"fc.weight": np.zeros((14, 2048), np.float32)}), tmp_path / "other.safetensors")
    with pytest.raises(PneumoError, match="range of pixels is not known"):
        read_weights(tmp_path / "other.safetensors")
