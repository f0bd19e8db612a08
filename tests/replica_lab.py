"""Trains the tiny network of crash_lab.py in one process of a few: ``replica_lab.py PREPARED FOLDER OUT JSON``.

Writes to OUT (npz) each step's loss and the final network's predictions of the validation images.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import crash_lab
import numpy as np
import tensorflow as tf

from keras_pneumo.errors import PneumoError
from keras_pneumo.training.callbacks import CheckpointInterval
from keras_pneumo.training.distributed.strategy import start_distribution
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.trainer import TrainingOptions, train


def main():
    prepared, folder, out, text = sys.argv[1:]
    given = json.loads(text)
    losses, networks = [], []
    number = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)

    class Recorded(TrainingNetwork):
        """Keeps its losses; may be without memory at one step, or for more than two images."""

        def take_step(self, data):
            if self.distribution.worker == given.get("poor_worker") and self.micro_batches == 1 and len(losses) == 9:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            values = super().take_step(data)
            losses.append(float(values["loss"]))
            if given.get("say"):
                print(f"step {len(losses)}", flush=True)
            networks.append(self)
            return values

        def try_micro_batch(self, data):
            if number == given.get("poor_trial") and len(data[0]) > 2:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            super().try_micro_batch(data)

    experiment = crash_lab.SHORT.replace(**{"dropout": 0.0, "ema": 0.0, "top_k": 1, **given.get("changes", {})})
    if number:
        experiment = experiment.replace(**given.get("others", {}))
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    try:
        distribution = start_distribution(given["strategy"], given.get("replicas"), given.get("wait", 60), say)
        options = TrainingOptions(
            distribution,
            CheckpointInterval.parse(given.get("every", "10min")),
            resume=True,
            notify=say,
            auto_batch="poor_trial" in given,
            build=crash_lab.tiny,
            network_class=Recorded,
        )
        Path(folder).mkdir(exist_ok=True)
        train(experiment, crash_lab.load_prepared(Path(prepared)), Path(folder), options)
    except PneumoError as fault:
        say(str(fault))
        os._exit(getattr(fault, "exit_code", 2))
    images = np.random.default_rng(1).random((7, 64, 64, 1)).astype("float32")
    np.savez(
        out,
        losses=losses,
        predictions=networks[-1].predict_on_batch(tf.constant(images)),
        one=networks[-1].predict_on_batch(tf.constant(images[:1])),
        moving=np.concatenate([np.ravel(value) for value in networks[-1].get_weights()]),
    )
    distribution.broadcast(0)


if __name__ == "__main__":
    main()
