"""The choice of the engine: measured, remembered, said, and never one with other logits."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference import engine
from keras_pneumo.inference.engine import EnginePredictor, network_hash, open_onnx, predictors_on
from keras_pneumo.inference.predictor import SINGLE_DEVICE, CompiledNetwork
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.folding import fold_batch_norm
from keras_pneumo.models.unet import build_unet

IMAGES = np.random.default_rng(0).random((5, 8, 8, 1)).astype(np.float32)
MANY = 10**9


def small_model(factor=1.0):
    """A classifier whose logit is ``factor`` times the mean of the pixels."""
    image = keras.Input((None, None, 1), name="image")
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(image)
    model = keras.Model(image, keras.layers.Dense(1, use_bias=False, name="fc")(pooled), name="small")
    model.set_weights([np.full((1, 1), factor)])
    return model


@pytest.fixture
def lab(monkeypatch, own_cache):
    """Stands in for ONNX Runtime and for the clock; ``predict(...)`` gives logits, sentences and engine."""
    state = SimpleNamespace(offset=0.0, speeds={"keras": 10.0, "onnx": 20.0}, trials=0, messages=[], used=set())

    def stand_in(model):
        return SimpleNamespace(predict_on_batch=lambda x: np.asarray(model(x)) + state.offset)

    def measure(keras_network, onnx_network, x):
        state.trials += 1
        return state.speeds

    monkeypatch.setattr(engine, "open_onnx", stand_in)
    monkeypatch.setattr(engine, "_measure", measure)

    def predict(name, images=MANY, model=None):
        state.messages.clear()
        state.used.clear()
        predictor = EnginePredictor(model or small_model(), name, lambda: images, state.messages.append, state.used.add)
        logits = [predictor.predict_on_batch(IMAGES) for _ in range(2)]
        np.testing.assert_array_equal(*logits)
        return logits[0]

    state.predict = predict
    return state


def test_auto_takes_the_faster_engine_and_remembers_the_measurement(lab):
    for words in ("measured now", "measured earlier"):
        np.testing.assert_allclose(lab.predict("auto")[:, 0], IMAGES.mean((1, 2, 3)), rtol=1e-6)
        (message,) = lab.messages
        assert "ONNX Runtime. ONNX Runtime predicts 20.0 images/s here, Keras 10.0" in message
        assert words in message
        assert [name.rsplit(" ", 1)[0] for name in lab.used] == ["ONNX Runtime"]
    assert lab.trials == 1
    lab.predict("auto", model=small_model(2.0))
    assert lab.trials == 2, "other weights are measured anew"


def test_auto_stays_with_keras_where_that_is_as_fast(lab):
    lab.speeds = {"keras": 10.0, "onnx": 10.4}
    for words in ("measured now", "measured earlier"):
        lab.predict("auto")
        assert lab.messages[0].startswith("Engine: Keras. ONNX Runtime predicts 10.4")
        assert words in lab.messages[0]
        assert [name.split()[0] for name in lab.used] == ["Keras"]


def test_a_trial_is_not_made_for_a_few_images(lab):
    lab.predict("auto", images=5)
    assert lab.trials == 0
    assert "too little for a trial" in lab.messages[0]


def test_an_engine_with_other_logits_is_never_used(lab):
    lab.offset = 2e-5
    with pytest.raises(PneumoError, match=r"differ from Keras's by 2e-05 .* --engine keras"):
        lab.predict("onnx")
    lab.predict("auto")
    assert lab.trials == 0
    assert lab.messages[0].startswith("Engine: Keras. ONNX Runtime's logits differ")
    lab.offset = 5e-6
    lab.predict("onnx")
    assert lab.messages[0].startswith("Engine: ONNX Runtime; its logits differ")


def test_the_hash_is_that_of_weights_and_layers():
    assert network_hash(small_model()) != network_hash(small_model(2.0))
    assert network_hash(small_model()) == network_hash(small_model())


def test_keras_is_the_single_device_as_ever_and_a_missing_package_is_said(monkeypatch):
    messages = []
    assert predictors_on("keras", lambda: 10, messages.append) is SINGLE_DEVICE
    monkeypatch.setattr(engine, "find_spec", lambda name: None if name == "tf2onnx" else object())
    assert predictors_on("auto", lambda: 10, messages.append) is SINGLE_DEVICE
    assert messages == ["Engine: Keras (ONNX Runtime needs tf2onnx)."]
    with pytest.raises(PneumoError, match=r"needs tf2onnx\. Run: pip install 'keras-pneumo\[export\]'"):
        predictors_on("onnx", lambda: 10, messages.append)


def test_only_the_newest_exports_are_kept(tmp_path):
    import os

    for age in range(engine.KEPT + 2):
        (tmp_path / f"{age}.onnx").touch()
        os.utime(tmp_path / f"{age}.onnx", (1e9 - age, 1e9 - age))
    engine._forget_oldest(tmp_path)
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == list(range(engine.KEPT))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classifier", "unet"])
def test_onnx_runtime_gives_the_same_logits_and_its_export_is_kept(monkeypatch, own_cache, task):
    for name in ("tf2onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} (extra export) is not installed")
    network = build_classifier("resnet18") if task == "classifier" else build_unet("resnet18", image_head=True)
    model = fold_batch_norm(network)
    images = np.random.default_rng(0).random((3, 64, 64, 1)).astype(np.float32)
    expected = keras.tree.flatten(CompiledNetwork(model).predict_on_batch(images))
    first = open_onnx(model).predict_on_batch(images)
    monkeypatch.setattr(engine, "write_onnx", None)  # the second time it is read from the cache
    second = open_onnx(model).predict_on_batch(images)
    for some in (first, second):
        for value, wanted in zip(keras.tree.flatten(some), expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(), 1))
    speeds = engine._measure(CompiledNetwork(model), open_onnx(model), images)
    engine._remember("network", speeds)
    assert json.loads((engine.cache_folder() / engine.FILE).read_text()) == {"network": speeds}
    assert min(speeds.values()) > 0
