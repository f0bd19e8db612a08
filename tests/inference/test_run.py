import contextlib
import json
import shutil
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
from memory_lab import SmallMemory, exhausted

from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import write_threshold
from keras_pneumo.inference.predictor import SINGLE_DEVICE, CompiledNetwork, DistributedPredictor
from keras_pneumo.inference.run import (
    HASHES,
    POSTPROCESS_SHA256,
    WEIGHTS,
    build,
    load_model,
    load_models,
    load_predictors,
    read_run,
)
from keras_pneumo.inference.submission import predict_subset
from keras_pneumo.storage.files import read_json, sha256_file, with_content_hash, write_json


def test_networks_are_made_in_the_scope_of_their_devices(tiny_runs):
    run, events = read_run(tiny_runs / "classifier"), []

    class Scope:
        def __enter__(self):
            events.append("made here")

        def __exit__(self, *_):
            events.append("end")

    class Zeros:
        def predict_on_batch(self, x):
            return np.zeros((len(x), 1))

    (predictor,) = load_predictors(run, DistributedPredictor(Scope, lambda model: events.append(model.name) or Zeros()))
    assert events == ["made here", "resnet18_classifier", "end"]
    assert not predictor.predict_on_batch(np.ones((3, 64, 64, 1))).any()
    images = np.random.default_rng(0).random((3, 64, 64, 1)).astype(np.float32)
    (single,), (model,) = load_predictors(run, SINGLE_DEVICE), load_models(run)
    np.testing.assert_allclose(single.predict_on_batch(images), model.predict_on_batch(images), atol=1e-5)


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_a_finished_run_predicts_what_fits(monkeypatch, tmp_path, tiny_runs, prepared_folder, task):
    run, prepared = read_run(tiny_runs / task), load_prepared(prepared_folder)
    whole = predict_subset([run], prepared)
    predict, sizes = CompiledNetwork.predict_on_batch, []

    def limited(self, x):
        sizes.append(len(x))
        if len(x) > 3:
            raise exhausted(len(x))
        return predict(self, x)

    monkeypatch.setattr(CompiledNetwork, "predict_on_batch", limited)
    parts = predict_subset([run], prepared)
    assert max(sizes) > 3 >= min(sizes)
    if task == "classifier":
        np.testing.assert_allclose(parts.predictions["probability"], whole.predictions["probability"], atol=1e-5)
        return
    maps = [np.stack([each.unpack() for each in some.predictions.maps.maps]).astype(int) for some in (parts, whole)]
    assert np.abs(maps[0] - maps[1]).max() <= 1


def test_a_prediction_by_several_workers_that_does_not_fit_says_what_to_do(tiny_runs):
    distributed = DistributedPredictor(contextlib.nullcontext, lambda model: SmallMemory(3), devices=2, workers=2)
    (network,) = load_predictors(read_run(tiny_runs / "classifier"), distributed)
    with pytest.raises(PneumoError, match=r"only 4 images or fewer.*--strategy one"):
        network.predict_on_batch(np.zeros((8, 2)))


def test_a_run_predicts_no_larger_batches_than_it_learnt_from(tiny_runs):
    run = read_run(tiny_runs / "classifier")
    network = SmallMemory(100)
    for record, expected in (({}, [13, 5]), ({"slices": 1}, [13, 5]), ({"slices": 4}, [4, 4, 4, 4, 2])):
        distributed = DistributedPredictor(contextlib.nullcontext, lambda model: network)
        experiment = run.experiment.replace(global_batch_size=13)
        (predictor,) = load_predictors(replace(run, experiment=experiment, record=run.record | record), distributed)
        predictor.predict_on_batch(np.zeros((18, 2)))
        assert network.sizes == expected
        network.sizes.clear()


@pytest.mark.parametrize(("kind", "number"), [("classifier", 21), ("segmenter", 32)])
def test_the_first_weights_of_a_seed_stay_what_they_are(kind, number):
    """So a run can be repeated from its seed; written down with Keras 3.15 on TensorFlow 2.21."""
    base = CLASSIFIER if kind == "classifier" else SEGMENTER
    weights = build(base.replace(name="x", encoder="resnet18", weights="random", seed=3)).get_weights()
    drawn = [value for value in weights if value.size > 1 and value.std() > 0]
    assert len(drawn) == number
    first = [0.00297943479, 0.0296736751, 0.00861231238]
    last = {"classifier": [0.0208830126, -0.005068928, -0.0402923971],
            "segmenter": [-0.021415472, 0.142801359, -0.00597968698]}[kind]  # fmt: skip
    sums = {"classifier": 219724.28573, "segmenter": 283117.97177}
    np.testing.assert_allclose(drawn[0].ravel()[:3], first, rtol=1e-5)
    np.testing.assert_allclose(drawn[-1].ravel()[-3:], last, rtol=1e-5)
    assert sum(np.abs(value.astype(float)).sum() for value in drawn) == pytest.approx(sums[kind], rel=1e-6)


@pytest.fixture
def run_copy(tmp_path, tiny_runs):
    """A run folder to damage, and a function that changes its record."""
    folder = shutil.copytree(tiny_runs / "classifier", tmp_path / "run")

    def change(**values):
        path = folder / "experiment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return folder, change


def flip_a_bit(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_row_37_a_flipped_bit_in_the_weights_is_refused_where_their_hash_is_known(run_copy):
    """Row 37 of the faults: it loads, and the answers change."""
    folder, change = run_copy
    change(**{HASHES: {WEIGHTS: sha256_file(folder / WEIGHTS)}})
    load_model(read_run(folder))
    flip_a_bit(folder / WEIGHTS, -1_000_000)
    with pytest.raises(PneumoError, match=r"best\.weights\.h5 was changed after the training"):
        load_model(read_run(folder))


def test_row_37_a_changed_threshold_in_the_record_is_refused(run_copy):
    folder, change = run_copy
    change(threshold=0.25)
    write_json(folder / "experiment.json", with_content_hash(read_json(folder / "experiment.json")))
    assert read_run(folder).threshold == 0.25
    change(threshold=0.75)
    with pytest.raises(PneumoError, match=r"experiment\.json was changed after it was written"):
        read_run(folder)


def test_row_37_a_postprocessing_that_is_not_the_one_of_the_report_is_refused(run_copy):
    folder, change = run_copy
    write_threshold(folder, 0.5, 10)
    change(**{POSTPROCESS_SHA256: sha256_file(folder / "postprocess.json")})
    read_run(folder).check_postprocessing()
    write_threshold(folder, 0.6, 10)
    with pytest.raises(PneumoError, match=r"postprocess\.json was changed after the run's report"):
        read_run(folder).check_postprocessing()
    (folder / "postprocess.json").unlink()
    with pytest.raises(PneumoError, match=r"postprocess\.json cannot be read"):
        read_run(folder).check_postprocessing()


@pytest.mark.parametrize("hashes", [{}, [], 7, {WEIGHTS: None}])
def test_a_record_that_does_not_know_the_weights_is_refused(run_copy, hashes):
    folder, change = run_copy
    change(**{HASHES: hashes})
    with pytest.raises(PneumoError, match="was changed after the training"):
        load_model(read_run(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_37_weights_that_are_not_finite_are_refused(run_copy, value):
    """Row 37, in a run of an earlier version, whose record has no hash."""
    folder, _ = run_copy
    names = []
    with h5py.File(folder / WEIGHTS, "r+") as file:
        file.visititems(lambda name, item: names.append(name) if getattr(item, "ndim", 0) == 4 else None)
        file[names[3]][0, 0, 0, 0] = value
    with pytest.raises(PneumoError, match=r"best\.weights\.h5 holds weights that are not finite"):
        load_model(read_run(folder))


@pytest.mark.parametrize("error", [RuntimeError("Unable to get link info"), TypeError("x"), OSError("truncated file")])
def test_row_43_whatever_h5py_raises_on_a_damaged_file_is_one_sentence(run_copy, monkeypatch, error):
    """Row 43."""

    def damaged(*_):
        raise error

    monkeypatch.setattr(keras.Model, "load_weights", damaged)
    with pytest.raises(PneumoError, match=rf"does not hold the weights of its experiment: {error}"):
        load_model(read_run(run_copy[0]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"slices": 0}, "slices is 0"),
        ({"slices": "many"}, "slices is 'many'"),
        ({"slices": True}, "slices is True"),
        ({"threshold": -5}, "threshold is -5"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": [0.5]}, "threshold is"),
        ({"experiment": 3}, "experiment"),
        ({"experiment": {"name": "x", "epochs": 1e300}}, "epochs"),
    ],
)
def test_a_record_with_values_that_cannot_be_is_refused(run_copy, values, words):
    folder, change = run_copy
    change(**values)
    with pytest.raises(PneumoError, match=words):
        read_run(folder)


def test_a_record_that_is_nested_too_deeply_is_refused(run_copy):
    folder, _ = run_copy
    (folder / "experiment.json").write_text("[" * 100_000)
    with pytest.raises(PneumoError, match="nested too deeply"):
        read_run(folder)
