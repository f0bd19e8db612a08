"""Heat maps and outputs of the real networks: PyTorch's twin by its script, and our code on every Keras backend.

On JAX only where ``KERAS_PNEUMO_JAX_PYTHON`` names a Python that has it: ``python -m venv .venv-jax``, then
``.venv-jax/bin/pip install jax keras==3.15.1 safetensors opencv-python-headless pydicom pandas pydantic filelock``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from real_networks import NETWORKS
from warm_lab import PYTORCH, warm

from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.evaluation.scoring.saliency import agreement
from keras_pneumo.explain.gradcam import METHODS, STAGES, raw_maps, to_heat
from keras_pneumo.explain.map_files import read_twin_maps, write_maps
from keras_pneumo.explain.positives import pixels_of
from keras_pneumo.explain.saliency_check import CheckOptions, explain_prepared
from keras_pneumo.inference.run import FORMAT, WEIGHTS, build, read_run
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.parity.networks import randomise
from keras_pneumo.storage.files import write_json

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "experiments" / "torch_team" / "gradcam.py"
JAX = "KERAS_PNEUMO_JAX_PYTHON"

RUNS = {
    "classifier": CLASSIFIER,
    "segmenter": SEGMENTER.replace(image_head=False),  # the score is its mask's
    "segmenter with head": SEGMENTER.replace(attention="scse"),
}

pytestmark = pytest.mark.slow


def start(python, *arguments, **environment):
    command = [*python, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]


def twin_maps(torch_python, *arguments):
    start(warm(torch_python, PYTORCH), SCRIPT, *arguments)


def check_maps(maps, wanted):
    """Each image's map as it should be, to within a share of its largest value.

    A ReLU whose input rounds to the other side of zero changes an image's gradients by a step. Of these networks'
    hundred thousand ReLUs one may, in some images: steps of 5e-3 were seen, and 5e-6 in images without such a ReLU.
    """
    assert maps.shape == wanted.shape
    apart = np.abs(maps - wanted).max(axis=(1, 2)) / np.abs(wanted).max(axis=(1, 2))
    assert apart.max() < 2e-2
    assert np.median(apart) < 1e-3


@pytest.fixture(scope="module")
def radiographs(prepared_folder):
    """Prepared test radiographs: ids and pixels."""
    prepared = load_prepared(prepared_folder)
    image_ids = prepared.subset("test")[:5]
    return image_ids, pixels_of(prepared, image_ids, 64)


def untrained(model, pixels):
    """Set random weights and statistics; of a segmenter without head, move pixels away from the mask's edge, where
    rounding would decide whether they belong to the score."""
    randomise(model, np.random.default_rng(1), pixels)
    if model.name.endswith("unet") and not isinstance(model.output, dict):
        logits = np.sort(np.array(model(pixels, training=False)).ravel())
        near = logits[np.abs(logits) < 0.3]
        widest = np.diff(near).argmax()
        bias = model.get_layer("segmentation_head-0").bias
        bias.assign(np.array(bias) - near[widest : widest + 2].mean())
        assert np.abs(model(pixels, training=False)).min() > 1e-4
    return model


@pytest.fixture(scope="module", params=RUNS)
def twin(request, tmp_path_factory, prepared_folder, radiographs):
    """A run folder, its network, and the radiographs' ids and pixels."""
    folder = tmp_path_factory.mktemp("run")
    experiment = RUNS[request.param].replace(
        name="twin", encoder="resnet18", weights="random", image_size=64, seed=3, flip_averaging=False
    )
    model = untrained(build(experiment), radiographs[1])
    save_safetensors(model, folder / "best.safetensors")
    model.save_weights(folder / WEIGHTS)
    split = load_prepared(prepared_folder).manifest["split_sha256"]
    record = {"format": FORMAT, "experiment": experiment.model_dump(mode="json"), "split_sha256": split}
    write_json(folder / "experiment.json", record)
    return folder, model, *radiographs


@pytest.mark.parametrize(("method", "stage"), [("gradcam", 5), ("gradcam++", 3), ("hirescam", 1), ("gradcam", 2)])
def test_pytorchs_own_maps_are_equal(tmp_path, torch_python, twin, prepared_folder, method, stage):
    run, model, image_ids, pixels = twin
    keras_maps = raw_maps(model, pixels, method, stage)
    write_maps(tmp_path / "keras.npz", image_ids, keras_maps, method, stage)
    twin_maps(torch_python, run, prepared_folder, "--maps", tmp_path / "keras.npz", "--out", tmp_path / "twin.npz")
    torch_maps = read_twin_maps(tmp_path / "twin.npz", image_ids, method, stage, keras_maps.maps.shape[1:])
    np.testing.assert_allclose(keras_maps.logits, torch_maps.logits, rtol=1e-4, atol=1e-4)
    check_maps(keras_maps.maps, torch_maps.maps)
    scores = agreement(to_heat(keras_maps.maps, 64), to_heat(torch_maps.maps, 64))
    assert scores["rank_correlation"] > 0.999
    assert scores["same_peak"] == 1


def test_explain_compares_with_the_twin(tmp_path, torch_python, twin, prepared_folder):
    folder, *_ = twin
    run, prepared = read_run(folder), load_prepared(prepared_folder)
    explain_prepared(run, prepared, tmp_path / "explain", CheckOptions(method="hirescam", stage=4), resamples=100)
    made = tmp_path / "twin.npz"
    twin_maps(torch_python, folder, prepared_folder, "--maps", tmp_path / "explain" / "maps.npz", "--out", made)
    options = CheckOptions(method="hirescam", stage=4, twin_maps=made)
    explain_prepared(run, prepared, tmp_path / "explain", options, resamples=100)
    scores = json.loads((tmp_path / "explain" / "explain.json").read_text())["twin"]
    assert scores["lowest"] > 0.999
    assert scores["same_peak"] == 1
    assert scores["difference"] < 2e-2
    assert scores["logit_difference"] < 1e-3


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory, radiographs):
    """The folder with images and weights, and TensorFlow's outputs."""
    folder = tmp_path_factory.mktemp("networks")
    np.save(folder / "images.npy", radiographs[1])
    for number, (name, make) in enumerate(NETWORKS.items()):
        keras.utils.set_random_seed(number)
        save_safetensors(untrained(make(), radiographs[1]), folder / f"{name}.safetensors")
    return folder, on_backend([sys.executable], "tensorflow", folder)


def on_backend(python, backend, folder):
    start(python, Path(__file__).with_name("real_networks.py"), folder, KERAS_BACKEND=backend, PYTHONPATH=str(ROOT))
    return dict(np.load(folder / f"{backend}.npz"))


@pytest.fixture
def other_python(request, torch_python):
    """``(backend, Python)`` of another Keras backend than TensorFlow; without such a Python the test is skipped."""
    if request.param == "torch":
        installed = "import importlib.util, sys; sys.exit(importlib.util.find_spec('keras') is None)"
        if subprocess.run([torch_python, "-c", installed], check=False).returncode:
            pytest.skip("Keras is not installed beside PyTorch")
        return "torch", [torch_python]
    if not os.environ.get(JAX):
        pytest.skip(f"${JAX} names no Python that has JAX and Keras")
    return request.param, [os.environ[JAX]]


@pytest.mark.parametrize("other_python", ["torch", "jax"], indirect=True)
def test_every_backend_gives_tensorflows_answers_and_maps(on_tensorflow, other_python):
    folder, expected = on_tensorflow
    backend, python = other_python
    outputs = on_backend(python, backend, folder)
    maps = {f"{method} {stage}" for method in METHODS for stage in STAGES} | {"heat"}
    heads = {"classifier": {"logits"}, "segmenter": {"logits"}, "segmenter with head": {"mask", "image"}}
    assert set(expected) == set(outputs) == {f"{name}: {what}" for name in heads for what in maps | heads[name]}
    for name, values in expected.items():
        assert values.any(), name
        if name.partition(": ")[2] in maps:
            check_maps(outputs[name], values)
        else:
            np.testing.assert_allclose(outputs[name], values, rtol=0, atol=1e-4 * np.abs(values).max(), err_msg=name)
