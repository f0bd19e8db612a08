"""Heat maps by PyTorch's twin, by its script; and by Keras on PyTorch, with our code."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.files import write_json
from keras_pneumo.data.prepared import load_prepared
from keras_pneumo.evaluation.saliency import agreement
from keras_pneumo.models.classifier import leaf_layers
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.prediction.gradcam import METHODS, STAGES, raw_maps, shown
from keras_pneumo.prediction.map_files import compared_maps, write_maps
from keras_pneumo.prediction.positives import pixels_of
from keras_pneumo.prediction.run import build

ROOT = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).with_name("small_network.py")


def start(python, *arguments, **environment):
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def twin(tmp_path_factory, prepared_folder):
    """A run folder with an untrained network, whose BatchNorm has seen images; the network, ids and pixels."""
    folder = tmp_path_factory.mktemp("run")
    experiment = CLASSIFIER.replace(name="twin", encoder="resnet18", weights="random", image_size=64, seed=3)
    prepared = load_prepared(prepared_folder)
    image_ids = prepared.subset("test")[:5]
    pixels = pixels_of(prepared, image_ids, 64)
    model = build(experiment)
    norms = [layer for layer in leaf_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
        norm.gamma.assign(np.random.default_rng(1).uniform(0.5, 1.5, norm.gamma.shape))
    model(pixels, training=True)
    save_safetensors(model, folder / "best.safetensors")
    write_json(folder / "experiment.json", {"experiment": experiment.model_dump(mode="json")})
    return folder, model, image_ids, pixels


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("gradcam", 5), ("gradcam++", 3), ("hirescam", 1), ("gradcam", 2)])
def test_pytorchs_own_maps_are_ours(tmp_path, torch_python, twin, prepared_folder, method, stage):
    run, model, image_ids, pixels = twin
    ours = raw_maps(model, pixels, method, stage)
    write_maps(tmp_path / "ours.npz", image_ids, ours, method, stage)
    script = ROOT / "experiments" / "torch_team" / "gradcam.py"
    start(torch_python, script, run, prepared_folder, "--maps", tmp_path / "ours.npz", "--out", tmp_path / "twin.npz")
    theirs = compared_maps(tmp_path / "twin.npz", image_ids, method, stage, ours.maps.shape[1:])
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    assert np.abs(ours.maps - theirs.maps).max() < 2e-3 * np.abs(theirs.maps).max()
    found = agreement(shown(ours.maps, 64), shown(theirs.maps, 64))
    assert found["rank_correlation"] > 0.999
    assert found["same_peak"] == 1


@pytest.mark.slow
def test_keras_on_pytorch_gives_the_maps_of_keras_on_tensorflow(tmp_path, torch_python):
    installed = [torch_python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('keras') is None)"]
    if subprocess.run(installed, check=False).returncode:
        pytest.skip("Keras is not installed beside PyTorch")
    images = np.random.default_rng(0).random((3, 32, 32, 1), np.float32)
    np.save(tmp_path / "images.npy", images)
    started = {"PYTHONPATH": str(ROOT)}
    start(sys.executable, SMALL, tmp_path, KERAS_BACKEND="tensorflow", **started)
    start(torch_python, SMALL, tmp_path, KERAS_BACKEND="torch", **started)
    ours, theirs = (np.load(tmp_path / f"{name}.npz") for name in ("tensorflow", "torch"))
    assert set(ours) == set(theirs) == {f"{method}.{stage}" for method in METHODS for stage in STAGES} | {"heat"}
    for name in ours:
        assert ours[name].any()
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5 * np.abs(ours[name]).max(), err_msg=name)
