"""Names by hand. (Against the libraries themselves: tests/parity.)"""

import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.run import load_weights
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.fastai import build_fastai_classifier
from keras_pneumo.models.resnet import resnet
from keras_pneumo.models.torch_names import fastai_name, module_name, named_variables
from keras_pneumo.models.unet import build_unet
from keras_pneumo.models.weights import from_torch, to_torch


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
    ("ours", "fastais"),
    [
        ("conv1", "0.0"),
        ("bn1", "0.1"),
        ("layer1.0.conv1", "0.4.0.conv1"),
        ("layer2.0.downsample.1", "0.5.0.downsample.1"),
        ("layer4.1.bn2", "0.7.1.bn2"),
        ("1.8", "1.8"),
    ],
)
def test_torchvisions_names_become_fastais_numbers(ours, fastais):
    assert fastai_name(ours) == fastais


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


def test_imagenets_thousand_classes_have_a_place():
    model = build_classifier("resnet18", classes=1000)
    state = to_torch(model)
    assert state["fc.weight"].shape == (1000, 512)
    state["fc.weight"] = np.ones((1000, 512), np.float32)
    from_torch(model, state)
    np.testing.assert_array_equal(np.array(model.get_layer("fc").kernel), 1)
