"""Tests of the callbacks of a training: what they count, when they save, and what they do on a signal."""

import contextlib
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.storage.interruption import Interruption
from keras_pneumo.training import callbacks
from keras_pneumo.training.callbacks import (
    CheckpointInterval,
    EpochValidation,
    StepCounter,
)
from keras_pneumo.training.checkpoints import TrainingState
from keras_pneumo.training.log import Events


@pytest.mark.parametrize(("norms", "wanted"), [([1.0, np.inf, 4.0], 2.0), ([np.nan] * 3, np.nan)])
def test_the_mean_gradient_leaves_out_the_steps_that_overflowed(monkeypatch, norms, wanted):
    """In float16 an overflowed step is left out; its norm is not finite. Batches of 8, 4 and 4 images."""
    state, rows = TrainingState(), []
    network = SimpleNamespace(optimizer=SimpleNamespace(inner_optimizer=None), data_seconds=0.0)
    steps = StepCounter(state, [8, 4, 4], 1, Interruption(), Events(None), None)
    steps.set_model(network)
    for norm in norms:
        steps.on_train_batch_end(0, {"loss": 1.0, "gradient_norm": norm, "stop_requests": 0.0})
    steps.on_epoch_end(0)
    monkeypatch.setattr(callbacks, "averaged_weights", lambda model: contextlib.nullcontext())
    log = SimpleNamespace(best=None, add_epoch=lambda *row: rows.append(row[-1]) or SimpleNamespace(score=0.5))
    validation = EpochValidation(state, log, lambda model: None, "whole", lambda row: None)
    validation.set_model(network)
    validation.on_epoch_end(0)
    assert rows[0].gradient_norm == pytest.approx(wanted, nan_ok=True)
    assert state.images == 16


def counter_of(several_workers=False, sizes=(4,) * 40, progress=None, stop=None):
    """A counter of steps, its state, and a function that ends a step with these values."""
    state = TrainingState()
    counter = StepCounter(
        state, list(sizes), 1, stop or Interruption(), Events(None), progress, several_workers=several_workers
    )
    counter.set_model(SimpleNamespace(optimizer=None, data_seconds=0.0))

    def step(loss, norm=1.0, requests=0.0):
        counter.on_train_batch_begin(0)
        counter.on_train_batch_end(0, {"loss": loss, "gradient_norm": norm, "stop_requests": requests})

    return counter, state, step


@pytest.fixture
def slow_clock(monkeypatch):
    """No time passes between two steps, so that steps alone decide when losses are read."""
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_READS", float("inf"))


@pytest.fixture
def readings(monkeypatch):
    """The number of steps of each reading of values from the device."""
    counts, original = [], callbacks.values_of
    monkeypatch.setattr(callbacks, "values_of", lambda steps: counts.append(len(steps)) or original(steps))
    return counts


@pytest.mark.usefixtures("slow_clock")
def test_losses_are_read_every_tenth_step_and_all_at_the_epochs_end(readings):
    counter, state, step = counter_of(sizes=(3, 2) * 14)
    for number in range(28):
        step(float(number))
    assert readings == [1, 10, 10], "all but the newest, whose reading would wait for the device"
    assert (state.step, state.images) == (28, 70)
    assert state.loss_sum == sum(number * (3, 2)[number % 2] for number in range(21))
    counter.on_epoch_end(0)
    assert readings == [1, 10, 10, 7]
    assert state.loss_sum == sum(number * (3, 2)[number % 2] for number in range(28))
    assert state.norm_images == 70


def test_losses_are_read_after_some_time_where_steps_are_slow(monkeypatch, readings):
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_READS", 0.0)
    _, _, step = counter_of()
    for _ in range(4):
        step(1.0)
    assert readings == [1, 1, 1], "each step but the newest"


@pytest.mark.usefixtures("slow_clock")
def test_a_loss_that_is_not_finite_is_reported_for_its_own_step():
    counter, state, step = counter_of()
    for number in range(9):
        step(np.nan if number >= 4 else 1.0)
    with pytest.raises(callbacks.NotFinite, match="loss is nan") as caught:
        counter.settle()
    assert (caught.value.epoch, caught.value.step) == (0, 4)
    assert state.loss_sum == 16.0, "of the steps before"


@pytest.mark.usefixtures("slow_clock")
def test_nothing_is_saved_after_a_loss_that_is_not_finite():
    counter, state, step = counter_of()
    saved = []
    saver = callbacks.CheckpointSaver(
        state, 1, lambda: None, 40, CheckpointInterval(None, 3), saved.append, lambda: None, counter, Interruption(),
        SimpleNamespace(workers=1, broadcast=lambda value: value),
    )  # fmt: skip
    saver.set_model(counter.model)
    for number in range(5):
        step(np.inf if number == 4 else 1.0)
        saver.on_train_batch_end(0)
    assert len(saved) == 1
    step(1.0)
    with pytest.raises(callbacks.NotFinite) as caught:
        saver.on_train_batch_end(0)
    assert caught.value.step == 4
    assert len(saved) == 1


def test_workers_learn_of_a_stop_and_of_a_loss_that_is_not_finite_at_the_same_step():
    """By the step before the newest, also the chief, which reads more before a checkpoint; at an epoch's end by all."""
    for settles in (False, True):
        counter, _, step = counter_of(several_workers=True, sizes=(4,) * 5)
        step(1.0)
        step(1.0, requests=1.0)
        assert not counter.requested
        if settles:
            assert counter.settle()
        step(1.0)
        assert counter.requested
        step(np.nan)
        if settles:
            assert not counter.settle(), "the others do not know it yet"
        with pytest.raises(callbacks.NotFinite) as caught:
            step(1.0)
        assert caught.value.step == 3
    counter, _, step = counter_of(several_workers=True, sizes=(4,) * 2)
    step(1.0)
    step(1.0, requests=2.0)
    assert counter.requested


def test_a_stop_waits_until_the_checkpoint_is_written():
    order, stop = [], Interruption()
    counter, state, step = counter_of(stop=stop)
    saver = callbacks.CheckpointSaver(
        state, 1, lambda: None, 40, CheckpointInterval(None, 99), lambda network: order.append("begun"),
        lambda: order.append("written"), counter, stop,
        SimpleNamespace(workers=1, broadcast=lambda value: order.append("others may go")),
    )  # fmt: skip
    saver.set_model(counter.model)
    step(1.0)
    saver.on_train_batch_end(0)
    assert order == []
    stop.number = signal.SIGTERM
    step(1.0)
    with pytest.raises(Stopped, match="came at epoch 1, step 2; everything is saved"):
        saver.on_train_batch_end(0)
    assert order == ["begun", "written", "others may go"]


@pytest.mark.usefixtures("slow_clock")
def test_progress_is_shown_a_few_times_a_second_and_whole_at_the_end():
    shown = []
    counter, _, step = counter_of(progress=lambda *now: shown.append(now))
    counter.on_epoch_end(0)
    assert shown == [], "a training that goes on from an epoch's last step has made none yet"
    for _ in range(40):
        step(0.5)
    counter.on_epoch_end(0)
    assert shown == [(4, 160, "epoch 1, loss 0.500"), (160, 160, "epoch 1, loss 0.500")]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("300", CheckpointInterval(300.0)),
        ("300s", CheckpointInterval(300.0)),
        ("5min", CheckpointInterval(300.0)),
        ("200steps", CheckpointInterval(None, 200)),
    ],
)
def test_checkpoint_intervals(text, wanted):
    assert CheckpointInterval.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "often", "0steps", "-3", "5 hours", "1.5steps"])
def test_an_invalid_checkpoint_interval_is_refused(text):
    with pytest.raises(PneumoError, match="200steps"):
        CheckpointInterval.parse(text)
