import contextlib
from dataclasses import replace

import numpy as np
import pytest
from memory_lab import SmallMemory, exhausted

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.predictor import SINGLE_DEVICE, CompiledNetwork, DistributedPredictor
from keras_pneumo.inference.run import load_models, load_predictors, read_run
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
    np.testing.assert_allclose(single.predict_on_batch(images), model.predict_on_batch(images), rtol=1e-5)


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
