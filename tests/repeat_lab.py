"""Trains each kind of experiment in a process of its own: ``repeat_lab.py PREPARED OUT.json [--backwards] [NAMES]``.

Kinds are optimizer x clipping x accumulation x task. Writes the SHA-256 of each one's weights after some steps. Whether
a seed gives the same weights each time can only be seen in several processes: the addresses of TensorFlow's objects,
which it sorts some things by, are others in each.
"""

import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.data.batches.pipeline import training_batches
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.training.losses import image_losses
from keras_pneumo.training.optimizers import make_optimizer, set_learning
from keras_pneumo.training.step import training_network
from keras_pneumo.training.trainer import plan_of, starting_point

STEPS = 3


def experiments():
    """By name, such as ``segmenter sgd clipped in 2``; with dropout and weight decay."""
    kinds = itertools.product((CLASSIFIER, SEGMENTER), ("adamw", "sgd"), (None, 1.0), (1, 2))
    for base, optimizer, clip_norm, accumulation in kinds:
        clipped = "clipped" if clip_norm else "free"
        yield f"{base.task} {optimizer} {clipped} in {accumulation}", base.replace(
            name="repeated", encoder="resnet18", weights="random", image_size=64, global_batch_size=8, dropout=0.3,
            positive_rate=(), learning_rate=1e-2, optimizer=optimizer, clip_norm=clip_norm,
            accumulation=accumulation,
        )  # fmt: skip


def weights_after(experiment, prepared):
    """SHA-256 of all weights after the first steps of a training of the whole network."""
    keras.utils.clear_session()
    model, training, _ = starting_point(experiment, prepared, None)
    set_learning(model, experiment, True)
    optimizer = make_optimizer(experiment, model, experiment.learning_rate, STEPS)
    network = training_network(model, image_losses(experiment), optimizer, experiment.accumulation)
    network.fit(training_batches(training, plan_of(experiment, 0, 1)), steps_per_epoch=STEPS, shuffle=False, verbose=0)
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()


def main():
    names = [name for name in sys.argv[3:] if not name.startswith("--")]
    chosen = [(name, experiment) for name, experiment in experiments() if not names or name in names]
    if "--backwards" in sys.argv:
        chosen.reverse()
    prepared = load_prepared(Path(sys.argv[1]))
    hashes = {name: weights_after(experiment, prepared) for name, experiment in chosen}
    Path(sys.argv[2]).write_text(json.dumps(hashes), encoding="utf-8")


if __name__ == "__main__":
    main()
