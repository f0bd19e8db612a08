"""Predicting in parts gives the answers of the whole, and a part that does not fit is halved."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import crash_lab
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.inference.predictor import DistributedPredictor, MicroBatchPredictor
from keras_pneumo.inference.run import load_predictors, read_run
from keras_pneumo.inference.submission import predict_subset
from keras_pneumo.training import memory
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.trainer import Trainer, TrainingOptions, train

QUICK = crash_lab.SHORT.replace(
    frozen_epochs=0, epochs=2, swa_epochs=0, ema=0.0, top_k=1, schedule="constant", dropout=0.0, frozen_batchnorm=True
)


def exhausted(images):
    return tf.errors.ResourceExhaustedError(None, None, f"out of memory by {images} images")


class Small:
    """Answers with what it was asked, as a network with two outputs, and holds ``most`` images."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def predict_on_batch(self, x):
        self.asked.append(len(x))
        if len(x) > self.most:
            raise exhausted(len(x))
        return {"mask": np.asarray(x) + 1, "image": -np.asarray(x)[:, 0]}


@pytest.mark.parametrize("kind", [np.asarray, tf.constant])
def test_a_part_that_does_not_fit_is_halved_and_no_image_is_lost(kind):
    network, told = Small(2), []
    batch = np.arange(14.0).reshape(7, 2)
    found = MicroBatchPredictor(network, 6, on_halved=told.append)
    for _ in range(2):
        answer = found.predict_on_batch(kind(batch))
        np.testing.assert_array_equal(answer["mask"], batch + 1)
        np.testing.assert_array_equal(answer["image"], -batch[:, 0])
    assert network.asked == [6, 3, 2, 2, 2, 1, 2, 2, 2, 1]
    assert told == [3, 2]


def test_a_batch_that_fits_is_asked_for_whole():
    network = Small(7)
    batch = np.zeros((7, 2))
    assert MicroBatchPredictor(network).predict_on_batch(batch)["mask"].shape == (7, 2)
    assert MicroBatchPredictor(network, 9).predict_on_batch(batch)["mask"].shape == (7, 2)
    assert network.asked == [7, 7]


def test_a_device_that_holds_not_one_image_is_said_and_each_device_keeps_a_row():
    with pytest.raises(PneumoError, match="too small to predict even one image at once"):
        MicroBatchPredictor(Small(0)).predict_on_batch(np.zeros((7, 2)))
    network = Small(2)
    with pytest.raises(PneumoError, match="too small to predict even 3 images"):
        MicroBatchPredictor(network, smallest=3).predict_on_batch(np.zeros((8, 2)))
    assert network.asked == [8, 4, 3]


@pytest.fixture
def device(monkeypatch, own_cache):
    """A device that learns from 4 images at once and predicts as many as ``limits["predict"]``.

    Gives the limits, the numbers of images that it was to predict, and the class of its networks.
    """
    limits, asked = {"learn": 4, "predict": 4}, []
    predict = keras.Model.predict_on_batch

    class Limited(TrainingNetwork):
        def take_step(self, data):
            if -(-int(data[0].shape[0]) // self.micro_batches) > limits["learn"]:
                raise exhausted(len(data[0]))
            return super().take_step(data)

    def answer(self, x):
        asked.append(len(x))
        if len(x) > limits["predict"]:
            raise exhausted(len(x))
        return predict(self, x)

    monkeypatch.setattr(keras.Model, "predict_on_batch", answer)
    return limits, asked, Limited


def trained(prepared_folder, folder, kind, experiment=QUICK, start_from=None):
    folder.mkdir()
    said = []
    options = TrainingOptions(notify=said.append, build=crash_lab.tiny, network_class=kind)
    train(experiment, load_prepared(prepared_folder), folder, options, start_from=start_from)
    return said


def test_validation_predicts_no_more_at_once_than_a_slice_holds(device, tmp_path, prepared_folder):
    _, asked, kind = device
    said = trained(prepared_folder, tmp_path / "run", kind)
    assert max(asked) == 4
    assert sum("Out of memory" in one for one in said) == 1
    assert (memory.recall(QUICK), memory.recall(QUICK, predicting=True)) == (4, None)


def test_memory_that_validation_lacks_is_not_taken_from_the_slices(device, tmp_path, prepared_folder):
    limits, asked, kind = device
    limits |= {"learn": 100, "predict": 3}
    said = trained(prepared_folder, tmp_path / "origin", kind)
    wanted = "Out of memory in validation: 3 images are predicted at once from now on."
    assert [one for one in said if "Out of memory" in one][-1] == wanted
    assert (memory.recall(QUICK), memory.recall(QUICK, predicting=True)) == (None, 3)
    asked.clear()
    said = trained(prepared_folder, tmp_path / "run", kind, start_from=read_run(tmp_path / "origin"))
    assert max(asked) == 3, "remembered, also before the first step"
    assert not any("Out of memory" in one for one in said)
    limits["predict"] = 0
    with pytest.raises(PneumoError, match="too small to predict even one image at once"):
        trained(prepared_folder, tmp_path / "none", kind)
    assert memory.recall(QUICK) is None


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_a_finished_run_predicts_what_fits(monkeypatch, tmp_path, tiny_runs, prepared_folder, task):
    run, prepared = read_run(tiny_runs / task), load_prepared(prepared_folder)
    whole = predict_subset([run], prepared)
    predict, asked = keras.Model.predict_on_batch, []

    def answer(self, x):
        asked.append(len(x))
        if len(x) > 3:
            raise exhausted(len(x))
        return predict(self, x)

    monkeypatch.setattr(keras.Model, "predict_on_batch", answer)
    parts = predict_subset([run], prepared)
    assert max(asked) > 3 >= min(asked)
    if task == "classifier":
        np.testing.assert_allclose(parts.predictions["probability"], whole.predictions["probability"], atol=1e-5)
        return
    levels = [np.stack([one.unpack() for one in some.predictions.maps.maps]).astype(int) for some in (parts, whole)]
    assert np.abs(levels[0] - levels[1]).max() <= 1


def test_several_workers_stop_and_start_again_with_fewer(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "cache"))
    distribution = SimpleNamespace(workers=2, worker=1, replicas=2)
    training = SimpleNamespace(distribution=distribution, experiment=QUICK, images_at_once=None)
    with pytest.raises(Stopped, match="in validation on worker 1"):
        Trainer.predict_fewer(training, 6)
    assert memory.recall(QUICK, predicting=True) == 3, "of each device"
    distribution.maximum = lambda parts: max(parts, 2)  # the other worker's
    Trainer.recall_images_at_once(training)
    assert training.images_at_once == 4


def test_a_prediction_by_several_workers_that_does_not_fit_says_what_to_do(tiny_runs):
    distributed = DistributedPredictor(contextlib.nullcontext, lambda model: Small(3), devices=2, workers=2)
    (network,) = load_predictors(read_run(tiny_runs / "classifier"), distributed)
    with pytest.raises(PneumoError, match=r"only 4 images or fewer.*--strategy one"):
        network.predict_on_batch(np.zeros((8, 2)))


def test_a_run_that_learnt_in_slices_predicts_as_many_at_once_as_one_held(tiny_runs):
    run = read_run(tiny_runs / "classifier")
    network = Small(100)
    for record, wanted in (({}, [9]), ({"slices": 1}, [9]), ({"slices": 4}, [4, 4, 1])):
        distributed = DistributedPredictor(contextlib.nullcontext, lambda model: network)
        experiment = run.experiment.replace(global_batch_size=13)
        (found,) = load_predictors(replace(run, experiment=experiment, record=run.record | record), distributed)
        found.predict_on_batch(np.zeros((9, 2)))
        assert network.asked == wanted
        network.asked.clear()
