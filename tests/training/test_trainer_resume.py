"""Tests that a resumed training keeps its average, provenance and micro-batches, and of signals at its end."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import crash_lab
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.inference.run import read_run
from keras_pneumo.storage.interruption import Interruption
from keras_pneumo.training import memory, trainer
from keras_pneumo.training.checkpoints import Checkpoint
from keras_pneumo.training.run_folder import is_free, is_trained
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.trainer import Trainer, TrainingOptions, train

pytestmark = pytest.mark.usefixtures("own_cache")

BRIEF = crash_lab.SHORT.replace(frozen_epochs=1, epochs=2, swa_epochs=0, top_k=1)


@pytest.fixture
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


def begin(
    prepared, folder, experiment=BRIEF, signal_after=0, number=signal.SIGTERM, start_from=None, kind=TrainingNetwork
):
    """Trains, or goes on; with ``signal_after`` the process gets a signal during the validation of that epoch."""
    folder.mkdir(exist_ok=True)
    messages = []

    def on_epoch(row):
        if row.epoch == signal_after:
            os.kill(os.getpid(), number)

    options = TrainingOptions(
        resume=True, notify=messages.append, on_epoch=on_epoch, build=crash_lab.tiny, network_class=kind
    )
    train(experiment, prepared, folder, options, start_from=start_from)
    return messages


def same_weights(first_run, second_run):
    first, second = (load_file(folder / "best.safetensors") for folder in (first_run, second_run))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def record_of(folder):
    return json.loads((folder / "experiment.json").read_text())


@pytest.mark.parametrize("frozen_batchnorm", [True, False])
def test_after_a_stop_in_the_last_phase_the_average_is_that_of_an_uninterrupted_run(
    tmp_path, prepared, frozen_batchnorm
):
    experiment = BRIEF.replace(swa_epochs=2, frozen_batchnorm=frozen_batchnorm)
    begin(prepared, tmp_path / "whole", experiment)
    with pytest.raises(Stopped):
        begin(prepared, tmp_path / "broken", experiment, signal_after=3)
    begin(prepared, tmp_path / "broken", experiment)
    same_weights(tmp_path / "whole", tmp_path / "broken")
    columns = ["epoch", "phase", "loss", "validation_loss", "validation_auroc"]
    logs = [pd.read_csv(tmp_path / name / "log.csv")[columns] for name in ("whole", "broken")]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert logs[0]["phase"].tolist()[-1] == "average"
    whole, broken = (pd.read_csv(tmp_path / name / "predictions_by_epoch.csv") for name in ("whole", "broken"))
    pd.testing.assert_frame_equal(whole, broken, check_exact=True)
    assert whole.columns.tolist() == ["image_id", "pneumothorax", *(f"epoch_{epoch}" for epoch in logs[0]["epoch"])]


@pytest.fixture
def origins(tmp_path, prepared):
    """Two runs of the same network; by its record the first one itself began from other weights."""
    for name, seed in (("first", 1), ("second", 2)):
        begin(prepared, tmp_path / name, BRIEF.replace(name=name, seed=seed, frozen_epochs=0, epochs=1))
    path = tmp_path / "first/experiment.json"
    record = record_of(path.parent) | {"start_from": {"pretraining": "ImageNet-1k, CheXpert"}}
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "sha256"}))
    return read_run(tmp_path / "first"), read_run(tmp_path / "second")


def test_the_provenance_of_the_weights_is_kept_when_the_option_is_left_out(tmp_path, prepared, origins):
    first, second = origins
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        begin(prepared, out, signal_after=2, start_from=first)
    before = record_of(out)["start_from"]
    assert (before["name"], read_run(out).pretraining) == ("first", "ImageNet-1k, CheXpert")
    with pytest.raises(PneumoError, match="began from other weights, those of first, not from second's"):
        begin(prepared, out, start_from=second)
    with pytest.raises(Stopped):
        begin(prepared, out, signal_after=3, start_from=first)
    begin(prepared, out)
    assert record_of(out)["start_from"] == before
    assert "best_epoch" in record_of(out)
    assert read_run(out).pretraining == "ImageNet-1k, CheXpert"


def test_another_run_to_start_from_is_refused_and_a_missing_one_is_required(tmp_path, prepared, origins):
    first, _ = origins
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        begin(prepared, out, signal_after=1)
    with pytest.raises(PneumoError, match="began from its own first weights, not from first's"):
        begin(prepared, out, start_from=first)
    with pytest.raises(Stopped):
        begin(prepared, tmp_path / "other", signal_after=1, start_from=first)
    for folder in (tmp_path / "other/checkpoints").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(PneumoError, match="start from the weights of first and has no checkpoint yet"):
        begin(prepared, tmp_path / "other")


def test_a_record_without_start_from_gets_it_again(tmp_path, prepared, origins):
    first, _ = origins
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        begin(prepared, out, signal_after=2, start_from=first)
    record = record_of(out)
    first_start = record.pop("start_from")
    (out / "experiment.json").write_text(json.dumps(record))
    begin(prepared, out, start_from=first)
    assert record_of(out)["start_from"] == first_start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
@pytest.mark.parametrize("moment", ["estimate_statistics", "draw_curves"])
def test_a_signal_after_the_last_step_ends_a_training_that_is_done(
    monkeypatch, tmp_path, prepared, moment, number, code
):
    out, original = tmp_path / "run", getattr(trainer, moment)

    def signalled(*arguments):
        os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(trainer, moment, signalled)
    with pytest.raises(Stopped, match="the training is done") as caught:
        begin(prepared, out, BRIEF.replace(swa_epochs=1))
    assert caught.value.exit_code == code
    assert is_trained(out)
    assert is_free(out)
    assert pd.read_csv(out / "log.csv")["phase"].tolist()[-1] == "average"


def test_a_signal_to_another_worker_after_the_last_step_ends_this_one_too():
    values = []
    distribution = SimpleNamespace(maximum=lambda value: values.append(value) or 1, workers=2, worker=0)
    with pytest.raises(Stopped, match="A signal to another worker came after the last step") as caught:
        trainer.stop_if_requested(Interruption(), distribution)
    assert (values, caught.value.exit_code) == ([0], 75)


def counting(fits=100):
    """A class of networks that records the micro-batches of each step, and its list; ``fits`` images fit in memory."""
    taken = []

    class Counting(TrainingNetwork):
        def take_step(self, data):
            if -(-len(data[0]) // self.micro_batches) > fits:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            taken.append(self.micro_batches)
            return super().take_step(data)

    return Counting, taken


BATCHNORM = "BatchNorm learns from each micro-batch, so the weights differ from those of whole batches."


def test_a_resumed_training_ignores_changes_of_the_memory_file(tmp_path, prepared):
    """Both after an interruption with whole batches and after one with micro-batches."""
    kind, taken = counting()
    messages = begin(prepared, tmp_path / "whole", kind=kind)
    assert not any("micro-batches" in message for message in messages)
    assert record_of(tmp_path / "whole")["slices"] == 1
    with pytest.raises(Stopped):
        begin(prepared, tmp_path / "broken", signal_after=2, kind=kind)
    memory.remember(BRIEF, 2)
    begin(prepared, tmp_path / "broken", kind=kind)
    assert set(taken) == {1}
    same_weights(tmp_path / "whole", tmp_path / "broken")

    taken.clear()
    (message,) = begin(prepared, tmp_path / "sliced", kind=kind)
    assert message == f"2 images are taken at once, in 4 micro-batches, as was found to fit on this device. {BATCHNORM}"
    assert record_of(tmp_path / "sliced")["slices"] == 4
    with pytest.raises(Stopped):
        begin(prepared, tmp_path / "other", signal_after=2, kind=kind)
    memory.remember(BRIEF, 8)
    messages = begin(prepared, tmp_path / "other", kind=kind)
    assert f"2 images are taken at once, in 4 micro-batches, as this training began. {BATCHNORM}" in messages
    assert set(taken) == {4}
    same_weights(tmp_path / "sliced", tmp_path / "other")
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "sliced"))
    assert any(np.abs(value - second[name]).max() > 1e-4 for name, value in first.items()), "which is why"


def test_memory_that_runs_out_after_resuming_divides_the_batch(tmp_path, prepared):
    with pytest.raises(Stopped):
        begin(prepared, tmp_path / "run", signal_after=2)
    kind, taken = counting(fits=4)
    messages = begin(prepared, tmp_path / "run", kind=kind)
    wanted = (
        "Out of memory: 4 images are taken at once from now on, in 2 micro-batches, with the same effective batch. "
    )
    assert wanted + BATCHNORM in messages
    assert set(taken) == {2}
    assert record_of(tmp_path / "run")["slices"] == 2


@pytest.mark.parametrize(
    ("state", "note", "wanted"),
    [
        ({}, None, 0),  # of an earlier version
        ({"slices": 2, "replicas": 1}, None, 2),
        ({"slices": 2, "replicas": 4}, None, 0),  # the parts of a batch are others
        ({"slices": 2, "replicas": 1}, (4, 1), 4),  # a worker ran out of memory since
        ({"slices": 2, "replicas": 1}, (4, 2), 2),
    ],
)
def test_the_micro_batches_of_a_checkpoint(tmp_path, state, note, wanted):
    if note:
        memory.write_needed(tmp_path, *note)
    distribution = SimpleNamespace(replicas=1, maximum=lambda value: value)
    training = SimpleNamespace(distribution=distribution, folder=tmp_path)
    assert Trainer.kept_micro_batches(training, Checkpoint(tmp_path, {}, state)) == wanted
    assert Trainer.kept_micro_batches(training, None) == 0
