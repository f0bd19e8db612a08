"""A process that trains a tiny network many times, each time in a child process that a test may kill.

TensorFlow is imported once, here, and the child processes are forks, so that thirty restarts take seconds, not minutes.
It reads commands from stdin, one JSON object per line. It writes each child's process id to stdout, and ``first step``
when the child has done its first step.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.models.batch_norm import batch_norm
from keras_pneumo.models.preprocessing import Normalise
from keras_pneumo.training import checkpoints, trainer
from keras_pneumo.training.callbacks import CheckpointInterval
from keras_pneumo.training.checkpoints import CheckpointWriter
from keras_pneumo.training.distributed.strategy import start_distribution
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.trainer import Trainer, TrainingOptions, train

SHORT = CLASSIFIER.replace(
    name="short", encoder="resnet18", weights="random", image_size=64, frozen_epochs=2, epochs=4, global_batch_size=8,
    positive_rate=((0, 0.5),), ema=0.5, swa_epochs=2, top_k=2, schedule="plateau", plateau_patience=0, dropout=0.3,
    learning_rate=1e-2, clip_norm=1.0, optimizer="adamw",
)  # fmt: skip
"""An experiment with everything that has state: both kinds of averages, kept epochs, a plateau, dropout, two phases."""

LONG = SHORT.replace(name="long", frozen_epochs=10, epochs=30)


def tiny(experiment, synchronized=False):
    """A network of some hundred weights, whose parts have the names of the real networks' parts."""
    keras.utils.set_random_seed(experiment.seed)
    inner = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, use_bias=False, name="conv1")(inner)
    x = batch_norm(x, "bn1", synchronized)
    encoder = keras.Model(inner, keras.layers.ReLU()(x), name="encoder")
    image = keras.Input((None, None, 1))
    x = encoder(Normalise(name="normalise")(image))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(experiment.dropout, name="dropout")(x)
    return keras.Model(image, keras.layers.Dense(1, name="fc")(x), name="tiny")


QUICK = SHORT.replace(
    frozen_epochs=1, epochs=2, swa_epochs=0, ema=0.0, top_k=1, schedule="constant", plateau_patience=2, dropout=0.0
)
"""Two short phases without averages."""


def train_tiny(prepared, folder, experiment=QUICK, **options):
    """Trains the tiny network; gives the result and the messages."""
    folder.mkdir(exist_ok=True)
    messages = []
    options = TrainingOptions(notify=messages.append, build=tiny, **options)
    return train(experiment, prepared, folder, options), messages


def save_checkpoint(run, epoch, step, arrays, state, files):
    """Writes a checkpoint and waits until it is on the disk; gives its folder."""
    with CheckpointWriter() as writer:
        writer.save(run, epoch, step, arrays, state, files)
    return run / f"checkpoints/at_{epoch:04d}_{step:06d}"


def poisoned(when):
    """A class of networks whose loss is NaN at each step for which ``when(number of the step)`` is true."""
    count = [0]

    class Poisoned(TrainingNetwork):
        def take_step(self, data):
            count[0] += 1
            if when(count[0]):
                data = (data[0] * np.nan, *data[1:])
            return super().take_step(data)

    return Poisoned


def exhausted(fewest):
    """A class of networks that run out of memory with fewer than ``fewest`` micro-batches."""

    class Exhausted(TrainingNetwork):
        def take_step(self, data):
            if self.micro_batches < fewest:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return super().take_step(data)

    return Exhausted


def slow_saves(seconds):
    """Makes each flush take longer, so that many kills happen during a save."""
    flush = os.fsync

    def slowly(handle):
        flush(handle)
        time.sleep(seconds)

    checkpoints.os.fsync = slowly


MOMENTS = {
    "half a record": (Path, "replace"),
    "events": (Trainer, "new_average"),
    "validation": (trainer, "make_validator"),
    "first network": (trainer, "training_network"),
}
"""Moments before the first step, each with a function that is called then."""


def kill_at(moment):
    """Makes the process kill itself with SIGKILL at that moment."""
    setattr(*MOMENTS[moment], lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def child(command):
    sys.stdin.close()
    done = []

    def first(*_):
        if not done:
            print("first step", flush=True)
            done.append(1)

    if command.get("slow"):
        slow_saves(command["slow"])
    if command.get("kill"):
        kill_at(command["kill"])
    folder = Path(command["folder"])
    folder.mkdir(exist_ok=True)
    experiment = {"short": SHORT, "long": LONG}[command["experiment"]].replace(**command.get("changes", {}))
    options = TrainingOptions(
        start_distribution("one"),
        CheckpointInterval.parse(command.get("every", "1steps")),
        command.get("resume", True),
        show_progress=lambda title: contextlib.nullcontext(first),
        build=tiny,
    )
    try:
        train(experiment, load_prepared(Path(command["prepared"])), folder, options)
    except PneumoError as error:
        print(json.dumps(str(error)), file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 2)
    return 0


def main():
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            code = 3
            try:
                code = child(json.loads(line))
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
