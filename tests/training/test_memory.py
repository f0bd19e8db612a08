"""Tests of the number of micro-batches that fit into memory, and of the images that validation predicts at once."""

from types import SimpleNamespace

import crash_lab
import keras
import pytest
from memory_lab import exhausted

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.inference.run import read_run
from keras_pneumo.training import memory
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.trainer import Trainer, TrainingOptions, train

QUICK = crash_lab.SHORT.replace(
    frozen_epochs=0, epochs=2, swa_epochs=0, ema=0.0, top_k=1, schedule="constant", dropout=0.0, frozen_batchnorm=True
)


@pytest.fixture
def device(monkeypatch, own_cache):
    """A device that learns from 4 images at once and predicts as many as ``limits["predict"]``.

    Gives the limits, the numbers of images that it was to predict, and the class of its networks.
    """
    limits, sizes = {"learn": 4, "predict": 4}, []
    predict = keras.Model.predict_on_batch

    class Limited(TrainingNetwork):
        def take_step(self, data):
            if -(-int(data[0].shape[0]) // self.micro_batches) > limits["learn"]:
                raise exhausted(len(data[0]))
            return super().take_step(data)

    def limited(self, x):
        sizes.append(len(x))
        if len(x) > limits["predict"]:
            raise exhausted(len(x))
        return predict(self, x)

    monkeypatch.setattr(keras.Model, "predict_on_batch", limited)
    return limits, sizes, Limited


def trained(prepared_folder, folder, kind, experiment=QUICK, start_from=None):
    folder.mkdir()
    messages = []
    options = TrainingOptions(notify=messages.append, build=crash_lab.tiny, network_class=kind)
    train(experiment, load_prepared(prepared_folder), folder, options, start_from=start_from)
    return messages


def test_validation_predicts_no_more_at_once_than_a_micro_batch_holds(device, tmp_path, prepared_folder):
    _, sizes, kind = device
    messages = trained(prepared_folder, tmp_path / "run", kind)
    assert max(sizes) == 4
    assert sum("Out of memory" in message for message in messages) == 1
    assert (memory.recall(QUICK), memory.recall(QUICK, predicting=True)) == (4, None)


def test_memory_that_validation_lacks_is_not_taken_from_the_micro_batches(device, tmp_path, prepared_folder):
    limits, sizes, kind = device
    limits |= {"learn": 100, "predict": 3}
    messages = trained(prepared_folder, tmp_path / "origin", kind)
    expected = "Out of memory in validation: 3 images are predicted at once from now on."
    assert [message for message in messages if "Out of memory" in message][-1] == expected
    assert (memory.recall(QUICK), memory.recall(QUICK, predicting=True)) == (None, 3)
    sizes.clear()
    messages = trained(prepared_folder, tmp_path / "run", kind, start_from=read_run(tmp_path / "origin"))
    assert max(sizes) == 3, "remembered, also before the first step"
    assert not any("Out of memory" in message for message in messages)
    limits["predict"] = 0
    with pytest.raises(PneumoError, match="too small to predict even one image at once"):
        trained(prepared_folder, tmp_path / "none", kind)
    assert memory.recall(QUICK) is None


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


@pytest.mark.parametrize(("need", "most"), [(1, 8), (2, 8), (3, 8), (5, 6), (8, 8)])
def test_the_fewest_micro_batches_that_fit(need, most):
    assert memory.fewest_micro_batches(lambda count: count >= need, most) == need
