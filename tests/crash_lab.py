"""A process that trains a tiny network again and again, each time in a child of its own that may be killed.

TensorFlow is imported once, here, and started in each child, so that thirty restarts take seconds, not minutes.
Commands come on stdin, one JSON object a line; each child's process id, and ``first step`` when it has done one, go to
stdout.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import keras

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.models.preprocessing import Normalise
from keras_pneumo.training import checkpoints, trainer
from keras_pneumo.training.callbacks import CheckpointInterval
from keras_pneumo.training.distributed.strategy import start_distribution
from keras_pneumo.training.trainer import Trainer, TrainingOptions, train

SHORT = CLASSIFIER.replace(
    name="short", encoder="resnet18", weights="random", image_size=64, frozen_epochs=2, epochs=4, global_batch_size=8,
    positive_rate=((0, 0.5),), ema=0.5, swa_epochs=2, top_k=2, schedule="plateau", plateau_patience=0, dropout=0.3,
    learning_rate=1e-2, clip_norm=1.0, optimizer="adamw",
)  # fmt: skip
"""Everything that has state: an average of either kind, kept epochs, a plateau, dropout, two phases."""

LONG = SHORT.replace(name="long", frozen_epochs=10, epochs=30)


def tiny(experiment, synchronized=False):
    """A network with the real ones' parts by name, and some hundred weights."""
    keras.utils.set_random_seed(experiment.seed)
    inner = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, use_bias=False, name="conv1")(inner)
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized, name="bn1")(x)
    encoder = keras.Model(inner, keras.layers.ReLU()(x), name="encoder")
    image = keras.Input((None, None, 1))
    x = encoder(Normalise(name="normalise")(image))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(experiment.dropout, name="dropout")(x)
    return keras.Model(image, keras.layers.Dense(1, name="fc")(x), name="tiny")


def slow_saves(seconds):
    """Make each flush take longer, so that many a kill meets a save."""
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
"""Of each moment before the first step something that is called then."""


def killed_at(moment):
    """Make the process end there as by SIGKILL."""
    setattr(*MOMENTS[moment], lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def work(prepared, folder, experiment, **options):
    """Train with the tiny network, on from what ``folder`` holds."""
    folder.mkdir(exist_ok=True)
    return train(experiment, load_prepared(prepared), folder, TrainingOptions(resume=True, build=tiny, **options))


def child(command):
    sys.stdin.close()
    told = []

    def first(*_):
        if not told:
            print("first step", flush=True)
            told.append(1)

    if command.get("slow"):
        slow_saves(command["slow"])
    if command.get("kill"):
        killed_at(command["kill"])
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
    except PneumoError as fault:
        print(json.dumps(str(fault)), file=sys.stderr, flush=True)
        return getattr(fault, "exit_code", 2)
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
