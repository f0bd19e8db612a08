import contextlib
from dataclasses import replace

import numpy as np
import pytest
from memory_lab import SmallMemory, exhausted

from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.predictor import SINGLE_DEVICE, CompiledNetwork, DistributedPredictor
from keras_pneumo.inference.run import build, load_models, load_predictors, read_run
from keras_pneumo.inference.submission import predict_subset


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
