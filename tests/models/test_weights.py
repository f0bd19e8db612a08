"""State dicts: names and layouts by hand, strictness, files. (Against the PyTorch libraries: tests/parity.)"""

import re

import keras
import numpy as np
import pytest
import safetensors

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.run import load_weights
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.fastai import build_fastai_classifier
from keras_pneumo.models.resnet import resnet
from keras_pneumo.models.unet import build_unet
from keras_pneumo.models.weights import (
    fastai_name,
    from_torch,
    from_torch_by_parts,
    load_safetensors,
    module_name,
    named_variables,
    safetensors_notes,
    save_safetensors,
    to_torch,
)
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
    with pytest.raises(PneumoError, match="not a whole safetensors file"):
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


def test_a_path_that_cannot_be_written_is_one_sentence(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PneumoError, match="file"):
        save_safetensors(model, tmp_path / "file" / "best.safetensors")


def test_head_option_is_checked(model, state):
    with pytest.raises(ValueError, match="require"):
        from_torch(model, state, head="maybe")


@pytest.fixture(scope="module")
def learner():
    keras.utils.set_random_seed(3)
    return build_fastai_classifier("resnet18")


def every_layer(model):
    """All layers, nested ones and those without weights too."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from every_layer(layer)


NETWORKS = {
    "classifier of 18": lambda: build_classifier("resnet18"),
    "classifier of 50": lambda: build_classifier("resnet50", dropout=0.5),
    "encoder of 34": lambda: resnet(34),
    "U-Net": lambda: build_unet("resnet18"),
    "U-Net with all": lambda: build_unet("resnet18", attention="scse", image_head=True),
    "fastai's": lambda: build_fastai_classifier("resnet18"),
    "fastai's, not normalised": lambda: build_fastai_classifier("resnet18", normalised=False),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_names_follow_the_rule_and_the_way_back_is_exact(network):
    model = NETWORKS[network]()
    layers = list(every_layer(model))
    names = [layer.name for layer in layers]
    assert not [name for name in names if "." in name], "Keras's torch backend allows no dot"
    assert not [variable.path for variable in model.variables if "." in variable.path]
    assert not [name for name in to_torch(model) if "-" in name], "PyTorch has no such name, so the rule can be undone"
    modules = [module_name(name) for name in names]
    assert len(set(modules)) == len(set(names))
    assert [module.replace(".", "-") for module in modules] == names


def test_names_by_the_rule():
    assert module_name("conv1") == "conv1"
    assert module_name("layer1-0-conv1") == "layer1.0.conv1"
    assert module_name("decoder-blocks-4-attention1-attention") == "decoder.blocks.4.attention1.attention"
    assert module_name("segmentation_head-0") == "segmentation_head.0"
    assert module_name("1-8") == "1.8"


@pytest.mark.parametrize("network", ["classifier of 18", "U-Net with all"])
def test_weights_written_under_the_earlier_names_load(tmp_path, network):
    """Layers once had dots in their names. In a file Keras finds them by their kinds, counted, and only notes names."""
    before, now = NETWORKS[network](), NETWORKS[network]()
    for layer in every_layer(before):
        layer.name = module_name(layer.name)
    assert any(layer.name == "layer1.0.conv1" for layer in every_layer(before))
    before.save_weights(tmp_path / "best.weights.h5")
    load_weights(now, tmp_path / "best.weights.h5")
    wanted = to_torch(before)
    assert all(array.tobytes() == wanted[name].tobytes() for name, array in to_torch(now).items())


@pytest.mark.parametrize(
    ("torchvision_name", "expected"),
    [
        ("conv1", "0.0"),
        ("bn1", "0.1"),
        ("layer1.0.conv1", "0.4.0.conv1"),
        ("layer2.0.downsample.1", "0.5.0.downsample.1"),
        ("layer4.1.bn2", "0.7.1.bn2"),
        ("1.8", "1.8"),
    ],
)
def test_torchvisions_names_become_fastais_numbers(torchvision_name, expected):
    assert fastai_name(torchvision_name) == expected


def test_a_learner_has_body_and_head(learner):
    state = to_torch(learner)
    # resnet18's body: 20 convolutions, 20 BatchNorms of 5; the head: 2 BatchNorms of 5 and 2 weights without bias.
    assert len(state) == 20 + 100 + 12
    assert all(name.startswith(("0.", "1.")) for name in state)
    assert {name for name in state if name.startswith("1.") and name.endswith("weight")} == {
        "1.2.weight",
        "1.4.weight",
        "1.6.weight",
        "1.8.weight",
    }
    assert state["1.2.weight"].shape == (1024,)
    assert state["1.4.weight"].shape == (512, 1024)
    assert state["1.8.weight"].shape == (2, 512)
    assert "1.8.bias" not in state


def test_no_two_weights_have_one_name(learner):
    for model in (learner, build_classifier("resnet18", classes=1000)):
        names = [named.name for named in named_variables(model)]
        assert len(names) == len(set(names)) == len(model.weights)


def test_fastais_head_can_be_left_alone(learner):
    other = build_fastai_classifier("resnet18", classes=5)
    before = to_torch(other)
    from_torch(other, to_torch(learner), head="skip")
    after = to_torch(other)
    assert after["0.0.weight"].tobytes() == to_torch(learner)["0.0.weight"].tobytes()
    assert after["1.8.weight"].tobytes() == before["1.8.weight"].tobytes()


def test_a_learners_weights_are_refused_by_a_plain_classifier(learner):
    with pytest.raises(PneumoError, match=r"missing: conv1\.weight"):
        from_torch(build_classifier("resnet18"), to_torch(learner))


def test_a_head_of_a_thousand_classes_takes_weights():
    model = build_classifier("resnet18", classes=1000)
    state = to_torch(model)
    assert state["fc.weight"].shape == (1000, 512)
    state["fc.weight"] = np.ones((1000, 512), np.float32)
    from_torch(model, state)
    np.testing.assert_array_equal(np.array(model.get_layer("fc").kernel), 1)


# ---------------------------------------------------------------- one network's file for another network


@pytest.fixture(scope="module")
def unet_state():
    keras.utils.set_random_seed(5)
    return to_torch(build_unet("resnet18", image_head=True))


def parts_that_changed(model, before):
    """The first words of the names of the tensors that are no longer as they were."""
    after = to_torch(model)
    changed = {name.split(".")[0] for name in after if not np.array_equal(after[name], before[name])}
    return {"encoder" if word.startswith(("conv1", "bn1", "layer")) else word for word in changed}


def test_a_whole_network_is_loaded_whole(unet_state):
    model = build_unet("resnet18", image_head=True)
    loaded = from_torch_by_parts(model, unet_state)
    assert (set(loaded.loaded), loaded.random, loaded.unused) == (
        {"encoder", "decoder", "segmentation_head", "classification_head"}, {}, [],
    )  # fmt: skip
    state = to_torch(model)
    assert all(state[name].tobytes() == unet_state[name].tobytes() for name in unet_state)


def test_a_unets_encoder_starts_a_classifier_and_the_other_way_round(state, unet_state):
    model = build_classifier("resnet18")
    before = to_torch(model)
    loaded = from_torch_by_parts(model, unet_state)
    assert loaded.loaded == ["encoder"]
    assert loaded.random == {"fc": "it is not in the file"}
    assert set(loaded.unused) == {"decoder", "segmentation_head", "classification_head"}
    assert parts_that_changed(model, before) == {"encoder"}
    assert to_torch(model)["conv1.weight"].tobytes() == unet_state["encoder.conv1.weight"].tobytes()

    unet = build_unet("resnet18", image_head=False)
    before = to_torch(unet)
    loaded = from_torch_by_parts(unet, state)
    assert (loaded.loaded, set(loaded.random), loaded.unused) == (["encoder"], {"decoder", "segmentation_head"}, ["fc"])
    assert parts_that_changed(unet, before) == {"encoder"}
    assert loaded.sentence("a.safetensors") == (
        "a.safetensors: encoder loaded; decoder starts at random, since it is not in the file; segmentation_head "
        "starts at random, since it is not in the file; not used: fc."
    )


def test_a_part_that_does_not_fit_stays_at_random_and_says_why(state, unet_state):
    model = build_classifier("resnet18", classes=3)
    before = to_torch(model)
    loaded = from_torch_by_parts(model, state)
    assert "fc.weight (1, 512) instead of (3, 512)" in loaded.random["fc"]
    assert parts_that_changed(model, before) == {"encoder"}

    attentive = build_unet("resnet18", attention="scse", image_head=True)
    loaded = from_torch_by_parts(attentive, unet_state)
    assert set(loaded.random) == {"decoder"}
    assert "missing: decoder.blocks.0.attention1" in loaded.random["decoder"]
    assert set(loaded.loaded) == {"encoder", "segmentation_head", "classification_head"}


def test_an_encoder_that_does_not_fit_is_refused_and_nothing_is_set(state):
    model = build_classifier("resnet18")
    before = to_torch(model)
    for spoilt in (
        {name: value for name, value in state.items() if name != "layer1.0.conv1.weight"},
        state | {"layer1.0.conv1.weight": state["layer1.0.conv1.weight"][:3]},
        state | {"layer5.0.conv1.weight": state["layer1.0.conv1.weight"]},
        state | {"bn1.weight": state["bn1.weight"] * np.nan},
        {},
    ):
        with pytest.raises(PneumoError, match="do not fit the network"):
            from_torch_by_parts(model, spoilt)
    assert parts_that_changed(model, before) == set()


def test_notes_of_a_file_are_read(model, tmp_path):
    save_safetensors(model, tmp_path / "a.safetensors", {"pretraining": "some"})
    assert safetensors_notes(tmp_path / "a.safetensors") == {"format": "pt", "pretraining": "some"}
    (tmp_path / "b.safetensors").write_bytes(b"none")
    with pytest.raises(PneumoError, match="not a whole safetensors file"):
        safetensors_notes(tmp_path / "b.safetensors")
    with pytest.raises(PneumoError, match="cannot be read"):
        safetensors_notes(tmp_path / "c.safetensors")
