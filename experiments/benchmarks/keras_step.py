"""Worker: training steps of this project, the step that ``keras-pneumo train`` takes.

Of one batch that stays the same, or with ``--data`` of the batches that ``train`` would draw from a prepared folder;
then the answer also has ``data_seconds``, the time that the network waited for them. The weights are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import UnmeasurableError, serve, step_parser


def main() -> None:
    """Read the command line and serve."""
    given = step_parser().parse_args()
    serve(lambda: set_up(given))


def set_up(given: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """The network, its optimizer and its batches, ready; gives the function that takes steps."""
    from keras_pneumo.quiet import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    if given.gpu and not tf.config.list_physical_devices("GPU"):
        raise UnmeasurableError("TensorFlow has no GPU here")
    from keras_pneumo.config import CLASSIFIER, SEGMENTER
    from keras_pneumo.training.distributed.strategy import ONE_DEVICE
    from keras_pneumo.training.losses import image_losses
    from keras_pneumo.training.optimizers import make_optimizer, set_learning
    from keras_pneumo.training.step import training_network
    from keras_pneumo.training.trainer import set_determinism, set_precision, starting_network

    base = CLASSIFIER if given.task == "classifier" else SEGMENTER.replace(image_head=False)
    experiment = base.replace(
        encoder=given.encoder, weights="random", image_size=given.size, global_batch_size=given.batch,
        precision=given.precision, schedule="constant", optimizer="adamw",
    )  # fmt: skip
    set_precision(experiment)
    set_determinism(experiment)
    model = starting_network(experiment)
    set_learning(model, experiment, True)
    optimizer = make_optimizer(experiment, model, experiment.learning_rate, 10_000)
    network = training_network(model, image_losses(experiment), optimizer, 1, ONE_DEVICE)
    batches = real_batches(experiment, given.data) if given.data else one_batch(given)
    iterator = iter(batches)
    take_step = network.make_train_function()

    def run(count: int) -> dict[str, float]:
        network.data_seconds = 0.0
        results = [take_step(iterator) for _ in range(count)]
        float(results[-1]["loss"])  # wait for the device
        return {"work": count * given.batch, "data_seconds": network.data_seconds}

    return run


def one_batch(given: argparse.Namespace) -> Any:
    """One batch, again and again: noise, with a square as the mask."""
    import numpy as np
    import tensorflow as tf

    images = np.random.default_rng(0).random((given.batch, given.size, given.size, 1), np.float32)
    if given.task == "classifier":
        target = (np.arange(given.batch) % 2).astype(np.float32)[:, None]
    else:
        target = np.zeros_like(images)
        target[:, : given.size // 4, : given.size // 4] = 1
    return tf.data.Dataset.from_tensors((images, target)).repeat().prefetch(2)


def real_batches(experiment: Any, folder: Path) -> Any:
    """The batches of a training on a prepared folder, augmented, for more epochs than will be asked for."""
    from keras_pneumo.data.batches.images import open_source
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.training.distributed.strategy import ONE_DEVICE
    from keras_pneumo.training.trainer import plan_of

    prepared = load_prepared(folder)
    ids = prepared.split.loc[prepared.split["subset"] == "train", "image_id"]
    ids = ids[: len(ids) // experiment.global_batch_size * experiment.global_batch_size]  # as the other sides take it
    source = open_source(prepared, list(ids), experiment.image_size, experiment.task == "segmenter")
    return ONE_DEVICE.batches(source, plan_of(experiment, 0, 1000))


if __name__ == "__main__":
    main()
