"""Trains the tiny network of crash_lab.py as one of several processes: ``replica_lab.py PREPARED FOLDER OUT JSON``.

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
from keras_pneumo.training.trainer import Trainer, TrainingOptions


class LastWeights(Trainer):
    """A training that leaves its network as the last step did, on one device too, where it would load the best."""

    def best_network(self):
        return None


def main():
    prepared, folder, out, text = sys.argv[1:]
    options = json.loads(text)
    losses, networks = [], []
    number = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)

    class Recorded(TrainingNetwork):
        """Records its losses. Can run out of memory at one step, or with more than two images."""

        def take_step(self, data):
            if self.distribution.worker == options.get("poor_worker") and self.micro_batches == 1 and len(losses) == 9:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            values = super().take_step(data)
            losses.append(float(values["loss"]))
            if options.get("print"):
                print(f"step {len(losses)}", flush=True)
            networks.append(self)
            return values

        def try_micro_batch(self, data):
            if number == options.get("poor_trial") and len(data[0]) > 2:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            super().try_micro_batch(data)

    experiment = crash_lab.SHORT.replace(**{"dropout": 0.0, "ema": 0.0, "top_k": 1, **options.get("changes", {})})
    if number:
        experiment = experiment.replace(**options.get("others", {}))
    notify = lambda message: print(message, file=sys.stderr, flush=True)  # noqa: E731
    try:
        distribution = start_distribution(options["strategy"], options.get("replicas"), options.get("wait", 60), notify)
        training_options = TrainingOptions(
            distribution,
            CheckpointInterval.parse(options.get("every", "10min")),
            resume=True,
            notify=notify,
            auto_batch="poor_trial" in options,
            build=crash_lab.tiny,
            network_class=Recorded,
        )
        Path(folder).mkdir(exist_ok=True)
        LastWeights(experiment, crash_lab.load_prepared(Path(prepared)), Path(folder), training_options).run(None, None)
    except PneumoError as error:
        notify(str(error))
        os._exit(getattr(error, "exit_code", 2))
    images = np.random.default_rng(1).random((7, 64, 64, 1)).astype("float32")
    np.savez(
        out,
        losses=losses,
        predictions=networks[-1].predict_on_batch(tf.constant(images)),
        first_prediction=networks[-1].predict_on_batch(tf.constant(images[:1])),
        moving=np.concatenate([np.ravel(value) for value in networks[-1].get_weights()]),
    )
    distribution.broadcast(0)


if __name__ == "__main__":
    main()
