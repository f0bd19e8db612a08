"""Tests of the callbacks of a training: what they count, when they save, and what they do on a signal."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.training import callbacks
from keras_pneumo.training.callbacks import (
    CheckpointInterval,
    EpochValidation,
    Interruption,
    StepCounter,
    stopped_at_once,
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
        steps.on_train_batch_end(0, {"loss": 1.0, "gradient_norm": norm})
    monkeypatch.setattr(callbacks, "averaged_weights", lambda model: contextlib.nullcontext())
    log = SimpleNamespace(best=None, add_epoch=lambda *row: rows.append(row[-1]) or SimpleNamespace(score=0.5))
    validation = EpochValidation(state, log, lambda model: None, "whole", lambda row: None)
    validation.set_model(network)
    validation.on_epoch_end(0)
    assert rows[0].gradient_norm == pytest.approx(wanted, nan_ok=True)
    assert state.images == 16


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


def test_a_signal_is_caught_within_only():
    before = signal.getsignal(signal.SIGTERM)
    messages = []
    interruption = Interruption(messages.append)
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (interruption.wanted, interruption.exit_code, interruption.name) == (True, 75, "SIGUSR1")
    assert signal.getsignal(signal.SIGTERM) is before
    assert "finished and saved" in messages[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_there_is_nothing_to_save_ends_at_once_with_its_code(number, code):
    before = signal.getsignal(number)

    @stopped_at_once("The training is done.")
    def report():
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(Stopped, match=r"came\. The training is done") as stopped:
        report()
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before


WORK = """
import sys, time
from keras_pneumo.training.callbacks import Interruption
interruption = Interruption(lambda text: print(text, flush=True))
with interruption.listening():
    print("listens", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_a_second_ctrl_c_ends_at_once():
    process = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C once more stops at once" in process.stdout.readline()
    assert process.poll() is None, "the first one is only noted"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == -signal.SIGINT


def test_a_second_sigterm_is_ignored():
    """Schedulers send the signal more than once; a second one must not interrupt a save."""
    process = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    assert "SIGTERM: this step is finished" in process.stdout.readline()
    assert process.poll() is None
    process.kill()
    process.wait()
