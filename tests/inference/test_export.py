"""Exports: checked against the run, removed when they differ, never written over anything."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from command_lab import run as run_command
from safetensors import safe_open

from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference import export
from keras_pneumo.inference.export import (
    BOUND,
    export_network,
    export_run,
    keras_runner,
    largest_difference,
    make_test_images,
)
from keras_pneumo.inference.run import build, read_run
from keras_pneumo.models.weights import load_safetensors, to_torch

REPOSITORY = Path(__file__).parents[2]
SMALL = {"name": "small", "encoder": "resnet18", "weights": "random", "image_size": 64}
CLASSIFICATION = CLASSIFIER.replace(**SMALL)
SEGMENTATION = SEGMENTER.replace(**SMALL, attention="scse")


def write_run(folder, experiment, threshold=0.4):
    """A run folder with random weights and random BatchNorm statistics, as a training would leave it."""
    folder.mkdir()
    model = build(experiment)
    random = np.random.default_rng(1)
    for variable in model.weights:
        if variable.name in ("moving_mean", "beta"):
            variable.assign(random.normal(0, 0.1, variable.shape))
    model.save_weights(folder / "best.weights.h5")
    record = {"format": 1, "experiment": experiment.model_dump(mode="json"), "split_sha256": "abc"}
    (folder / "experiment.json").write_text(json.dumps(record | {"threshold": threshold}))
    return read_run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "classifier", CLASSIFICATION)


@pytest.mark.parametrize(
    ("logits", "share"),
    [
        ({"image_logit": [[1.0], [-4.0]]}, 0.0),
        ({"image_logit": [[1.0], [-4.4]]}, 0.1),  # of the largest logit, 4
        ({"image_logit": [[1.0]]}, np.inf),
        ({"other": [[1.0], [-4.0]]}, np.inf),
        ({"image_logit": [[np.nan], [-4.0]]}, np.inf),
    ],
)
def test_difference_is_a_share_of_the_largest_logit(logits, share):
    logits = {name: np.array(value) for name, value in logits.items()}
    assert largest_difference(logits, {"image_logit": np.array([[1.0], [-4.0]])}) == pytest.approx(share)
    small = {"image_logit": np.array([[0.01]])}
    assert largest_difference({"image_logit": np.array([[0.02]])}, small) == pytest.approx(0.01), "at least of 1"


def test_the_test_images_fill_the_range_and_differ():
    images = make_test_images(64)
    assert images.shape == (3, 64, 64, 1)
    assert images.dtype == np.float32
    assert images.min() >= 0 <= images.max() <= 1
    assert images.std() > 0.1
    assert not np.array_equal(images[0], images[1])
    np.testing.assert_array_equal(images, make_test_images(64))


def test_torch_export_holds_the_runs_weights_and_what_they_are(run, tmp_path):
    exported = export_run(run, "torch", tmp_path / "new folder" / "best.safetensors")
    assert exported.difference == 0
    model = build(CLASSIFICATION)
    model.load_weights(run.weights)
    state, expected = load_safetensors(exported.path), to_torch(model)
    assert state.keys() == expected.keys()
    assert all(state[name].tobytes() == expected[name].tobytes() for name in expected)
    with safe_open(exported.path, "np") as file:
        notes = file.metadata()
    assert notes["format"] == "pt"
    assert notes["threshold"] == "0.4"
    assert notes["split_sha256"] == "abc"
    assert "three equal channels" in notes["input"]
    assert json.loads(notes["experiment"])["image_size"] == 64
    assert [path.name for path in exported.path.parent.iterdir()] == ["best.safetensors"]


def test_an_export_that_differs_is_removed(run, tmp_path, monkeypatch):
    def wrong(model, experiment, path, record):
        path.write_bytes(b"something")
        return lambda images: {"image_logit": keras_runner(model)(images)["image_logit"] + 10 * BOUND}

    monkeypatch.setitem(export._WRITERS, "onnx", wrong)
    with pytest.raises(PneumoError, match="other logits"):
        export_run(run, "onnx", tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PneumoError, match="exists already"):
        export_run(run, "torch", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(PneumoError, match="could not be written"):
        export_run(run, "torch", tmp_path / "file" / "below")


def test_a_note_that_stands_beside_stays_too(run, tmp_path, monkeypatch):
    (tmp_path / "note.json").write_text("mine")
    with pytest.raises(PneumoError, match=r"note\.json exists already"):
        export_run(run, "litert", tmp_path / "note")

    def with_a_second_file(model, experiment, path, record):
        path.write_bytes(b"")
        path.with_name("more.data").write_bytes(b"")
        return keras_runner(model)

    monkeypatch.setitem(export._WRITERS, "onnx", with_a_second_file)
    monkeypatch.setattr(export, "ONNX_PACKAGES", ())
    (tmp_path / "more.data").write_text("mine")
    with pytest.raises(PneumoError, match=r"more\.data exists already"):
        export_run(run, "onnx", tmp_path / "network.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"note.json", "more.data"}
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_missing_packages_are_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(PneumoError, match=r"no_such_package.*keras-pneumo\[export\]"):
        export_run(run, "onnx", tmp_path / "a.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["savedmodel", "onnx", "litert"])
def test_a_segmenter_runs_elsewhere(tmp_path, form):
    """With both heads and attention: the run's logits, on images that the export was not tried on."""
    keras.utils.set_random_seed(2)
    model = build(SEGMENTATION)
    exported = export_network(model, SEGMENTATION, form, tmp_path / "model")
    assert exported.difference <= BOUND
    images = np.random.default_rng(3).uniform(0, 1, (2, 64, 64, 1)).astype(np.float32)
    logits = run_elsewhere(exported.path, form, images)
    assert largest_difference(logits, keras_runner(model)(images)) <= BOUND
    if form != "litert":
        larger = np.random.default_rng(4).uniform(0, 1, (1, 96, 128, 1)).astype(np.float32)
        assert largest_difference(run_elsewhere(exported.path, form, larger), keras_runner(model)(larger)) <= BOUND
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"model", "model.json"} if form == "litert" else {"model"})


def run_elsewhere(path, form, images):
    """The export in a process without Keras and without this package."""
    np.save(path.parent / "in.npy", images)
    script = {
        "savedmodel": "import tensorflow as tf; m = tf.saved_model.load(path)\n"
        "out = {k: v.numpy() for k, v in m.serve(images).items()}",
        "onnx": "import onnxruntime as ort; s = ort.InferenceSession(path)\n"
        "names = [o.name for o in s.get_outputs()]\n"
        "out = dict(zip(names, s.run(names, {'radiograph': images})))\n"
        "assert 'research use only' in s.get_modelmeta().custom_metadata_map['use']",
        "litert": "import tensorflow as tf; run = tf.lite.Interpreter(path).get_signature_runner()\n"
        "each = [run(radiograph=image[None]) for image in images]\n"
        "out = {k: np.concatenate([part[k] for part in each]) for k in each[0]}",
    }[form]
    code = f"import numpy as np\npath = {str(path)!r}\nimages = np.load({str(path.parent / 'in.npy')!r})\n{script}\n"
    code += f"np.savez({str(path.parent / 'out.npz')!r}, **out)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    logits = dict(np.load(path.parent / "out.npz"))
    (path.parent / "in.npy").unlink()
    (path.parent / "out.npz").unlink()
    return logits


@pytest.mark.slow
def test_the_command_exports_starts_and_refuses_in_sentences(tmp_path, run):
    def command(*arguments, python=None):
        return run_command("export", *arguments, cwd=tmp_path, python=python)

    experiment = REPOSITORY / "experiments" / "smallest_classifier.py"
    started = command(experiment, "--out", "start.safetensors", python=[sys.executable])
    assert started.returncode == 0, started.stderr
    assert started.stderr == "", "no notices of TensorFlow's"
    assert started.stdout.splitlines()[-1] == "start.safetensors"
    state = load_safetensors(tmp_path / "start.safetensors")
    expected = to_torch(build(CLASSIFIER.replace(**SMALL)))  # the same seed, the same start
    assert all(state[name].tobytes() == expected[name].tobytes() for name in expected)

    for arguments, words in [
        ((experiment, "--out", "start.safetensors"), "exists already"),
        ((experiment, "--out", "x", "--format", "onnx"), "only its starting weights"),
        ((run.folder, "--out", "x", "--format", "tflite"), "Choose one of torch, savedmodel, onnx, litert"),
        (("nowhere", "--out", "x"), "nowhere"),
    ]:
        refused = command(*arguments)
        assert refused.returncode == 2, refused.stdout
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["start.safetensors"]
