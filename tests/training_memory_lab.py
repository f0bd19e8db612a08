"""Trains a small wide network, where the memory of TensorFlow's own allocator may be limited from outside.

``training_memory_lab.py PREPARED OUT`` writes ``messages.json`` into OUT. :data:`LIMITED` is the environment in which
TensorFlow's allocator for GPUs serves the CPU, with so much memory and no more. The operating system's limit
(RLIMIT_DATA) was tried first: where it is met, most of TensorFlow's kernels and Python's own threads end the process
(std::bad_alloc, "could not create a primitive"). So do the kernels of convolutions under this allocator, and all of
oneDNN's: hence a network of point-wise layers, without oneDNN.
"""

import json
import sys
from pathlib import Path

import keras

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.models.batch_norm import batch_norm
from keras_pneumo.training.trainer import TrainingOptions, train

UNLIMITED = {"TF_ENABLE_ONEDNN_OPTS": "0"}
LIMITED = UNLIMITED | {"TF_CPU_ALLOCATOR_USE_BFC": "true", "TF_CPU_BFC_MEM_LIMIT_IN_MB": "400"}
"""A step with 14 images takes about 700 MiB, one with 7 half of it."""

EXPERIMENT = CLASSIFIER.replace(
    name="memory", encoder="resnet18", weights="random", image_size=128, frozen_epochs=0, epochs=2,
    global_batch_size=16, frozen_batchnorm=True, optimizer="sgd", learning_rate=1e-1,
)  # fmt: skip


def wide(experiment, synchronized=False):
    """A network with much to remember of each image (4 MiB a layer at 128 px), and little to compute."""
    keras.utils.set_random_seed(experiment.seed)
    image = x = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(64, 1, name="conv1")(x)
    for number in range(6):
        x = keras.layers.ReLU()(batch_norm(x, f"bn{number}", synchronized))
    encoder = keras.Model(image, x, name="encoder")
    image = keras.Input((None, None, 1))
    x = keras.layers.GlobalAveragePooling2D()(encoder(image))
    return keras.Model(image, keras.layers.Dense(1, name="fc")(x), name="wide")


def main(prepared, out):
    out.mkdir()
    messages = []
    train(EXPERIMENT, load_prepared(prepared), out, TrainingOptions(notify=messages.append, build=wide))
    (out / "messages.json").write_text(json.dumps(messages))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
