"""State dicts: names and layouts by hand, strictness, files. (Against PyTorch itself: tests/parity.)"""

import re

import keras
import numpy as np
import pytest
import safetensors

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.weights import from_torch, load_safetensors, save_safetensors, to_torch
from keras_pneumo.storage import files


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    return build_classifier("resnet18")


@pytest.fixture
def state(model):
    return to_torch(model)


def test_names_and_shapes_are_torchvisions(state):
    # resnet18: 20 convolutions, 20 BatchNorms of 5 tensors, and the head's 2.
    assert len(state) == 20 + 100 + 2
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.1.bn2.running_var"].shape == (512,)
    assert state["fc.weight"].shape == (1, 512)
    assert state["fc.bias"].shape == (1,)
    assert state["bn1.num_batches_tracked"].shape == ()
    assert state["bn1.num_batches_tracked"].dtype == np.int64


def test_kernels_are_transposed(model, state):
    kernel = np.array(model.get_layer("encoder").get_layer("conv1").kernel)  # (7, 7, 3, 64)
    assert state["conv1.weight"][5, 2, 1, 6] == kernel[1, 6, 2, 5]
    assert state["conv1.weight"].flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(state["fc.weight"], np.array(model.get_layer("fc").kernel).T)


def test_round_trip_is_bit_equal(state):
    other = build_classifier("resnet18")
    from_torch(other, state)
    again = to_torch(other)
    assert again.keys() == state.keys()
    assert all(again[name].tobytes() == state[name].tobytes() for name in state)


def test_counters_may_be_absent(model, state):
    from_torch(model, {name: a for name, a in state.items() if "num_batches" not in name})


def test_encoder_alone_takes_a_state_with_another_head(model, state):
    state["fc.weight"], state["fc.bias"] = np.ones((1000, 512), np.float32), np.ones(1000, np.float32)
    encoder = build_classifier("resnet18").get_layer("encoder")
    from_torch(encoder, state, head="skip")
    np.testing.assert_array_equal(to_torch(encoder)["conv1.weight"], state["conv1.weight"])


def test_skipped_head_stays_as_it_is(state):
    other = build_classifier("resnet18")
    before = np.array(other.get_layer("fc").kernel)
    from_torch(other, state, head="skip")
    np.testing.assert_array_equal(np.array(other.get_layer("fc").kernel), before)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "1 missing: layer1.0.conv1.weight"),
        (lambda s: s.update(surplus=np.zeros(1, np.float32)), "1 not of this network: surplus"),
        (lambda s: s.update({"layer9.bn1.num_batches_tracked": np.zeros((), np.int64)}), "layer9.bn1"),
        (
            lambda s: s.update({"fc.weight": np.zeros((1000, 512), np.float32)}),
            r"another shape: fc.weight \(1000, 512\) instead of \(1, 512\)",
        ),
        (lambda s: s.update({"fc.bias": np.zeros(1, np.int64)}), "unusable: fc.bias of type int64"),
        (lambda s: s.update({"fc.bias": np.full(1, np.nan, np.float32)}), "fc.bias with values that are not finite"),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("layer3")], "and [0-9]+ more"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_set(model, state, spoil, words):
    before = to_torch(model)
    state["conv1.weight"] = state["conv1.weight"] + 1
    spoil(state)
    with pytest.raises(PneumoError, match=words):
        from_torch(model, state)
    after = to_torch(model)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def test_file_round_trip_with_its_note(model, state, tmp_path):
    path = tmp_path / "best.safetensors"
    save_safetensors(model, path, {"split_sha256": "abc"})
    read = load_safetensors(path)
    assert all(read[name].tobytes() == state[name].tobytes() for name in state)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt", "split_sha256": "abc"}
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


def test_truncated_foreign_and_absent_files_are_refused(model, tmp_path):
    path = tmp_path / "best.safetensors"
    save_safetensors(model, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PneumoError, match="no whole safetensors file"):
        load_safetensors(path)
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(PneumoError, match="pickled files"):
        load_safetensors(tmp_path / "model.pth")
    with pytest.raises(PneumoError, match="cannot be read"):
        load_safetensors(tmp_path / "absent.safetensors")


def test_a_failed_save_leaves_the_old_file_and_no_other(model, tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PneumoError, match=re.escape(str(tmp_path))):
        save_safetensors(model, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_place_that_cannot_be_is_one_sentence(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PneumoError, match="file"):
        save_safetensors(model, tmp_path / "file" / "best.safetensors")


def test_head_option_is_checked(model, state):
    with pytest.raises(ValueError, match="require"):
        from_torch(model, state, head="maybe")
