"""What a training survives: NaN, too little memory, a full disk, another's checkpoint, a second run in its folder."""

import errno
import json
import os
import signal
import time

import crash_lab
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.storage.files import folder_lock
from keras_pneumo.training import checkpoints, memory
from keras_pneumo.training.callbacks import CheckpointInterval, Interruption, stopped_at_once
from keras_pneumo.training.run_folder import find_run_folder, progress_of
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.trainer import TrainingOptions, plan_of, train

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = crash_lab.SHORT.replace(
    frozen_epochs=1, epochs=2, swa_epochs=0, ema=0.0, top_k=1, schedule="constant", plateau_patience=2, dropout=0.0
)


@pytest.fixture
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


def run(prepared, folder, experiment=QUICK, **options):
    """Train the tiny network; gives the result, and the messages."""
    folder.mkdir(exist_ok=True)
    messages = []
    options = TrainingOptions(notify=messages.append, build=crash_lab.tiny, **options)
    return train(experiment, prepared, folder, options), messages


def poisoned(when):
    """Networks whose steps give NaN where ``when(number of the step)``, as an image of NaN would."""
    count = [0]

    class Poisoned(TrainingNetwork):
        def take_step(self, data):
            count[0] += 1
            if when(count[0]):
                data = (data[0] * np.nan, *data[1:])
            return super().take_step(data)

    return Poisoned


def test_nan_stops_names_the_images_and_leaves_a_good_checkpoint(tmp_path, prepared):
    bad = poisoned(lambda step: step == 7)
    with pytest.raises(PneumoError, match=r"loss is nan at epoch 2, step \d.*nan_batches.csv") as caught:
        run(prepared, tmp_path / "run", checkpoint_every=CheckpointInterval(None, 1), network_class=bad)
    table = pd.read_csv(tmp_path / "run/nan_batches.csv")
    assert set(table["action"]) == {"stopped"}
    assert len(table) in (6, 7, 8)
    assert all(image_id in str(caught.value) for image_id in table["image_id"])
    found = checkpoints.latest(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in found.arrays.values())
    run(prepared, tmp_path / "run", resume=True)
    run(prepared, tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


@pytest.mark.slow
def test_skipping_nan_goes_on_without_these_images(tmp_path, prepared):
    bad = poisoned(lambda step: step == 7)
    every_step = CheckpointInterval(None, 1)
    _, said = run(prepared, tmp_path / "run", checkpoint_every=every_step, skip_nan=True, network_class=bad)
    assert any("left out" in one for one in said)
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
        run(prepared, tmp_path / "run", skip_nan=True, network_class=poisoned(lambda step: step >= 3))


def exhausted(fewest):
    """Networks that learn only from batches in at least ``fewest`` micro-batches."""

    class Exhausted(TrainingNetwork):
        def take_step(self, data):
            if self.micro_batches < fewest:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return super().take_step(data)

    return Exhausted


@pytest.mark.slow
def test_too_little_memory_halves_the_batch_keeps_its_effect_and_is_remembered(tmp_path, prepared):
    experiment = QUICK.replace(frozen_batchnorm=True)
    run(prepared, tmp_path / "whole", experiment)
    _, said = run(prepared, tmp_path / "run", experiment, network_class=exhausted(3))
    assert [one for one in said if "Out of memory" in one] == [
        "Out of memory: 4 images are taken at once from now on, in 2 micro-batches, with the same effective batch.",
        "Out of memory: 2 images are taken at once from now on, in 4 micro-batches, with the same effective batch.",
    ]
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-4, err_msg=name)
    assert memory.recall(experiment) == 2
    assert memory.recall(experiment.replace(image_size=128)) is None
    _, said = run(prepared, tmp_path / "again", experiment, network_class=exhausted(3))
    assert not any("Out of memory" in one for one in said), "the next run starts with what was found"


def test_no_memory_at_all_is_said(tmp_path, prepared):
    with pytest.raises(PneumoError, match="too small even for"):
        run(prepared, tmp_path / "run", network_class=exhausted(100))


@pytest.mark.parametrize(("need", "most"), [(1, 8), (2, 8), (3, 8), (5, 6), (8, 8)])
def test_the_fewest_slices_that_fit(need, most):
    assert memory.fewest_micro_batches(lambda slices: slices >= need, most) == need


@pytest.mark.slow
def test_auto_batch_finds_the_largest_without_a_trace_in_the_weights(tmp_path, prepared):
    run(prepared, tmp_path / "whole")
    _, said = run(prepared, tmp_path / "run", auto_batch=True)
    assert any("fit into memory at once" in one for one in said)
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    attempts = []

    class Small(TrainingNetwork):
        def try_micro_batch(self, data):
            attempts.append(len(data[0]))
            if len(data[0]) > 3:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    run(prepared, tmp_path / "small", auto_batch=True, network_class=Small)
    assert memory.recall(QUICK) == 3
    assert attempts[0] == max(attempts)


def test_a_full_disk_while_weights_are_saved_leaves_the_best_ones(monkeypatch, tmp_path, prepared):
    run_folder = tmp_path / "run"
    run(prepared, run_folder)
    before = (run_folder / "best.weights.h5").read_bytes()
    from keras_pneumo.training.log import save_best

    model = crash_lab.tiny(QUICK)

    def full(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model, "save_weights", full)
    with pytest.raises(PneumoError, match=f"{run_folder}: No space left"):
        save_best(model, run_folder)
    assert (run_folder / "best.weights.h5").read_bytes() == before
    assert not list(run_folder.glob("writing*"))


def test_weights_are_on_the_disk_before_they_take_their_name(monkeypatch, tmp_path):
    from keras_pneumo.training.log import save_weights

    path, flush, flushed = tmp_path / "best.weights.h5", os.fsync, []

    def noted(handle):
        flushed.append((os.fstat(handle).st_ino, path.exists()))
        flush(handle)

    monkeypatch.setattr(os, "fsync", noted)
    save_weights(crash_lab.tiny(QUICK), path)
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_weights_that_cannot_be_flushed_are_not_taken(monkeypatch, tmp_path):
    from keras_pneumo.training.log import save_weights

    (tmp_path / "best.weights.h5").write_bytes(b"before")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PneumoError, match="No space left"):
        save_weights(crash_lab.tiny(QUICK), tmp_path / "best.weights.h5")
    assert (tmp_path / "best.weights.h5").read_bytes() == b"before"
    assert not list(tmp_path.glob("writing*"))


@pytest.mark.parametrize(("changes", "word"), [({"seed": 9}, "experiment"), ({"global_batch_size": 4}, "experiment")])
def test_another_trainings_checkpoint_is_refused(tmp_path, prepared, changes, word):
    run(prepared, tmp_path / "run")
    with pytest.raises(PneumoError, match=f"of another {word}.*cannot go on"):
        run(prepared, tmp_path / "run", QUICK.replace(**changes), resume=True)


def test_a_checkpoint_of_other_images_split_or_network_is_refused(tmp_path, prepared):
    run(prepared, tmp_path / "run")
    manifest = {**prepared.manifest, "split_sha256": "0", "prepared_sha256": "1"}
    other = type(prepared)(**{**prepared.__dict__, "manifest": manifest})
    with pytest.raises(PneumoError, match="another split and another prepared images"):
        run(other, tmp_path / "run", resume=True)
    found = checkpoints.latest(tmp_path / "run")
    state = found.state
    state["identity"]["network"] = "0"
    checkpoints.save(tmp_path / "run", 99, 0, found.arrays, state, [])
    with pytest.raises(PneumoError, match="another network"):
        run(prepared, tmp_path / "run", resume=True)


def test_two_runs_in_one_folder_are_refused(tmp_path, prepared):
    (tmp_path / "run").mkdir()
    with folder_lock(tmp_path / "run"), pytest.raises(PneumoError, match="Another run is working in"):
        run(prepared, tmp_path / "run")


def test_a_folder_is_gone_on_with_only_where_it_is_unfinished_and_the_same(tmp_path, monkeypatch, prepared):
    monkeypatch.chdir(tmp_path)
    assert find_run_folder(None, QUICK, prepared, False).folder.name == "short"
    with pytest.raises(PneumoError):
        run(prepared, tmp_path / "runs/short", network_class=poisoned(lambda step: step == 5))
    assert progress_of(tmp_path / "runs/short", QUICK, prepared) == "unfinished"
    place = find_run_folder(None, QUICK, prepared, False)
    assert (place.folder.name, place.resume) == ("short", True)
    assert find_run_folder(tmp_path / "runs/short", QUICK, prepared, True).resume
    other = QUICK.replace(seed=5)
    assert find_run_folder(None, other, prepared, False).folder.name == "short-2"
    with pytest.raises(PneumoError, match=r"not empty.*another experiment"):
        find_run_folder(tmp_path / "runs/short", other, prepared, False)
    with folder_lock(tmp_path / "runs/short"):
        assert find_run_folder(None, QUICK, prepared, False).folder.name != "short"
    record = json.loads((tmp_path / "runs/short/experiment.json").read_text())
    (tmp_path / "runs/short/experiment.json").write_text(json.dumps(record | {"best_epoch": 1}))
    assert progress_of(tmp_path / "runs/short", QUICK, prepared) == "unfinished", "its report is missing"
    (tmp_path / "runs/short/report.html").touch()
    assert progress_of(tmp_path / "runs/short", QUICK, prepared) == "finished"
    with pytest.raises(PneumoError, match=r"finished training.*nothing to go on with"):
        find_run_folder(tmp_path / "runs/short", QUICK, prepared, True)


def test_stopping_between_the_last_step_and_the_validation_of_an_epoch(tmp_path, prepared):
    """Every fifth step ends an epoch; a checkpoint there has still to be validated."""
    experiment = crash_lab.SHORT.replace(frozen_epochs=1, epochs=2)
    run(prepared, tmp_path / "whole", experiment)
    steps = len(plan_of(experiment, 0, 1).rows(len(prepared.subset("train"))))
    count = [0]

    class Stopping(TrainingNetwork):
        def take_step(self, data):
            found = super().take_step(data)
            count[0] += 1
            return {**found, "stop_requests": tf.constant(float(count[0] == 2 * steps))}

    with pytest.raises(Stopped):
        run(prepared, tmp_path / "run", experiment, network_class=Stopping)
    assert checkpoints.latest(tmp_path / "run").state["position"]["step"] == steps
    assert len(pd.read_csv(tmp_path / "run/log.csv")) == 1
    run(prepared, tmp_path / "run", experiment, resume=True)
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert len(pd.read_csv(tmp_path / "run/log.csv")) == 4


def test_events_hold_the_log(tmp_path, prepared):
    run(prepared, tmp_path / "run")
    log = pd.read_csv(tmp_path / "run/log.csv")
    assert (log["data_seconds"] >= 0).all()
    assert (log["gradient_norm"] > 0).all()
    assert (log["memory_gb"] > 0).all()
    (file,) = (tmp_path / "run/events").iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor).item()
    assert found["epoch/validation_auroc"] == pytest.approx(
        dict(zip(log["epoch"], log["validation_auroc"], strict=True))
    )
    assert {"step/loss", "step/gradient_norm", "step/images_per_second", "epoch/learning_rate"} <= set(found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("300", CheckpointInterval(300.0)),
        ("300s", CheckpointInterval(300.0)),
        ("5min", CheckpointInterval(300.0)),
        ("200steps", CheckpointInterval(None, 200)),
    ],
)
def test_how_often(text, wanted):
    assert CheckpointInterval.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "often", "0steps", "-3", "5 hours", "1.5steps"])
def test_how_often_not(text):
    with pytest.raises(PneumoError, match="200steps"):
        CheckpointInterval.parse(text)


def test_a_signal_is_caught_within_only():
    before = signal.getsignal(signal.SIGTERM)
    told = []
    found = Interruption(told.append)
    with found.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (found.wanted, found.exit_code, found.name) == (True, 75, "SIGUSR1")
    assert signal.getsignal(signal.SIGTERM) is before
    assert "finished and saved" in told[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_there_is_nothing_to_save_ends_at_once_with_its_code(number, code):
    before = signal.getsignal(number)

    @stopped_at_once("The training is done.")
    def report():
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(Stopped, match=r"came\. The training is done") as found:
        report()
    assert found.value.exit_code == code
    assert signal.getsignal(number) is before
