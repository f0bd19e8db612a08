"""Tests of failures: NaN, too little memory, another training's checkpoint, a second run in the folder."""

import os
import signal

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from crash_lab import QUICK, SHORT, exhausted, poisoned, save_checkpoint, train_tiny
from safetensors.numpy import load_file

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.storage.files import folder_lock
from keras_pneumo.training import callbacks, checkpoints, memory, trainer
from keras_pneumo.training.callbacks import CheckpointInterval
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.trainer import plan_of

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


def test_row_20_nan_stops_names_the_images_and_leaves_a_good_checkpoint(tmp_path, prepared):
    bad = poisoned(lambda step: step == 7)
    with pytest.raises(PneumoError, match=r"loss is nan at epoch 2, step \d.*nan_batches.csv") as caught:
        train_tiny(prepared, tmp_path / "run", checkpoint_every=CheckpointInterval(None, 1), network_class=bad)
    table = pd.read_csv(tmp_path / "run/nan_batches.csv")
    assert set(table["action"]) == {"stopped"}
    assert len(table) in (6, 7, 8)
    assert all(image_id in str(caught.value) for image_id in table["image_id"])
    checkpoint = checkpoints.latest(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in checkpoint.arrays.values())
    train_tiny(prepared, tmp_path / "run", resume=True)
    train_tiny(prepared, tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_a_nan_some_steps_before_it_is_read_is_that_steps_and_no_weights_after_it_are_kept(
    tmp_path, prepared, monkeypatch
):
    """The second epoch's third step of 5; its loss is read at the epoch's end, before the epoch is validated."""
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_READS", float("inf"))
    steps = len(plan_of(QUICK, 0, 1).rows(len(prepared.subset("train"))))
    assert steps >= 4
    with pytest.raises(PneumoError, match="loss is nan at epoch 2, step 3, on"):
        train_tiny(
            prepared, tmp_path / "run", checkpoint_every=CheckpointInterval(None, 10**6),
            network_class=poisoned(lambda step: step == steps + 3),
        )  # fmt: skip
    assert pd.read_csv(tmp_path / "run/log.csv")["epoch"].tolist() == [1]
    kept = load_file(tmp_path / "run/best.safetensors")
    assert all(np.isfinite(value).all() for value in kept.values())


def test_the_host_waits_for_few_steps(tmp_path, prepared, monkeypatch):
    """Readings of the values of an epoch of 13 steps; to read loss, norm and stop request each time would be 39."""
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_READS", float("inf"))
    tensor = type(tf.constant(0.0)).__mro__[1]
    reads, at_step, original = [], [], tensor._numpy

    def counted(self):
        reads.append(self.shape)
        return original(self)

    monkeypatch.setattr(tensor, "_numpy", counted)

    class Watched(TrainingNetwork):
        def take_step(self, data):
            at_step.append(len(reads))
            return super().take_step(data)

    small = QUICK.replace(frozen_epochs=0, epochs=1, global_batch_size=2)
    train_tiny(prepared, tmp_path / "run", small, network_class=Watched)
    assert len(at_step) >= 12
    assert 1 <= at_step[-1] - at_step[0] <= 6


@pytest.mark.slow
def test_skipping_nan_goes_on_without_these_images(tmp_path, prepared):
    bad = poisoned(lambda step: step == 7)
    every_step = CheckpointInterval(None, 1)
    _, messages = train_tiny(prepared, tmp_path / "run", checkpoint_every=every_step, skip_nan=True, network_class=bad)
    assert any("left out" in message for message in messages)
    table = pd.read_csv(tmp_path / "run/nan_batches.csv")
    assert set(table["action"]) == {"skipped"}
    assert len(pd.read_csv(tmp_path / "run/log.csv")) == 3
    plan = plan_of(QUICK, 0, 3, skip=tuple(range(4)))
    labels = np.array([0, 1] * 10)
    drawn = np.concatenate([plan.draws(labels, epoch)[0] for epoch in range(3)])
    assert set(range(4)) & set(drawn.tolist()) == set()
    assert len(drawn) == 60


def test_when_it_is_not_the_images_skipping_ends(tmp_path, prepared):
    with pytest.raises(PneumoError, match="not the images"):
        train_tiny(prepared, tmp_path / "run", skip_nan=True, network_class=poisoned(lambda step: step >= 3))


@pytest.mark.slow
def test_row_21_too_little_memory_halves_the_batch_keeps_its_effect_and_is_remembered(tmp_path, prepared):
    experiment = QUICK.replace(frozen_batchnorm=True)
    train_tiny(prepared, tmp_path / "whole", experiment)
    _, messages = train_tiny(prepared, tmp_path / "run", experiment, network_class=exhausted(3))
    assert [message for message in messages if "Out of memory" in message] == [
        "Out of memory: 4 images are taken at once from now on, in 2 micro-batches, with the same effective batch.",
        "Out of memory: 2 images are taken at once from now on, in 4 micro-batches, with the same effective batch.",
    ]
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-4, err_msg=name)
    assert memory.recall(experiment) == 2
    assert memory.recall(experiment.replace(image_size=128)) is None
    _, messages = train_tiny(prepared, tmp_path / "again", experiment, network_class=exhausted(3))
    assert not any("Out of memory" in message for message in messages), "the next run starts with fewer"


def test_row_21_no_memory_at_all_is_refused(tmp_path, prepared):
    with pytest.raises(PneumoError, match="too small even for"):
        train_tiny(prepared, tmp_path / "run", network_class=exhausted(100))


@pytest.mark.slow
def test_auto_batch_finds_the_largest_without_a_trace_in_the_weights(tmp_path, prepared):
    train_tiny(prepared, tmp_path / "whole")
    _, messages = train_tiny(prepared, tmp_path / "run", auto_batch=True)
    assert any("fit into memory at once" in message for message in messages)
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    attempts = []

    class Small(TrainingNetwork):
        def try_micro_batch(self, data):
            attempts.append(len(data[0]))
            if len(data[0]) > 3:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    train_tiny(prepared, tmp_path / "small", auto_batch=True, network_class=Small)
    assert memory.recall(QUICK) == 3
    assert attempts[0] == max(attempts)


@pytest.mark.parametrize(("changes", "word"), [({"seed": 9}, "experiment"), ({"global_batch_size": 4}, "experiment")])
def test_row_19_another_trainings_checkpoint_is_refused(tmp_path, prepared, changes, word):
    train_tiny(prepared, tmp_path / "run")
    with pytest.raises(PneumoError, match=f"of another {word}.*cannot go on"):
        train_tiny(prepared, tmp_path / "run", QUICK.replace(**changes), resume=True)


def test_row_19_a_checkpoint_of_other_images_split_or_network_is_refused(tmp_path, prepared):
    train_tiny(prepared, tmp_path / "run")
    manifest = {**prepared.manifest, "split_sha256": "0", "prepared_sha256": "1"}
    other = type(prepared)(**{**prepared.__dict__, "manifest": manifest})
    with pytest.raises(PneumoError, match="another split and another prepared images"):
        train_tiny(other, tmp_path / "run", resume=True)
    checkpoint = checkpoints.latest(tmp_path / "run")
    state = checkpoint.state
    state["identity"]["network"] = "0"
    save_checkpoint(tmp_path / "run", 99, 0, checkpoint.arrays, state, [])
    with pytest.raises(PneumoError, match="another network"):
        train_tiny(prepared, tmp_path / "run", resume=True)


def test_row_25_two_runs_in_one_folder_are_refused(tmp_path, prepared):
    (tmp_path / "run").mkdir()
    with folder_lock(tmp_path / "run"), pytest.raises(PneumoError, match="Another run is working in"):
        train_tiny(prepared, tmp_path / "run")


def test_stopping_between_the_last_step_and_the_validation_of_an_epoch(tmp_path, prepared):
    """Every fifth step ends an epoch; a checkpoint there has still to be validated."""
    experiment = SHORT.replace(frozen_epochs=1, epochs=2)
    train_tiny(prepared, tmp_path / "whole", experiment)
    steps = len(plan_of(experiment, 0, 1).rows(len(prepared.subset("train"))))
    count = [0]

    class Stopping(TrainingNetwork):
        def take_step(self, data):
            values = super().take_step(data)
            count[0] += 1
            if count[0] == 2 * steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return values

    with pytest.raises(Stopped):
        train_tiny(prepared, tmp_path / "run", experiment, network_class=Stopping)
    assert checkpoints.latest(tmp_path / "run").state["position"]["step"] == steps
    assert len(pd.read_csv(tmp_path / "run/log.csv")) == 1
    train_tiny(prepared, tmp_path / "run", experiment, resume=True)
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert len(pd.read_csv(tmp_path / "run/log.csv")) == 4


def test_row_17_when_the_record_says_that_the_training_is_done_only_the_last_checkpoint_is_there(
    tmp_path, prepared, monkeypatch
):
    """A start after a kill at that moment reports, and removes no checkpoint."""
    left = []
    write = trainer.write_record

    def recorded(folder, record):
        if "training_seconds" in record:
            left.append([path.name for path in checkpoints.folders(folder)])
        return write(folder, record)

    monkeypatch.setattr(trainer, "write_record", recorded)
    train_tiny(prepared, tmp_path / "run", checkpoint_every=CheckpointInterval(None, 1))
    assert len(left) == 1
    assert left[0] == [path.name for path in checkpoints.folders(tmp_path / "run")]
    assert len(left[0]) == 1
