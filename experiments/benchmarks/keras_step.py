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
    from our_step import experiment_of

    from keras_pneumo.training.distributed.strategy import ONE_DEVICE
    from keras_pneumo.training.losses import image_losses
    from keras_pneumo.training.optimizers import make_optimizer, set_learning
    from keras_pneumo.training.step import training_network
    from keras_pneumo.training.trainer import set_determinism, set_precision, starting_network

    experiment = experiment_of(given)
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
    """The fixed batch, again and again."""
    import tensorflow as tf
    from our_step import fixed_batch

    return tf.data.Dataset.from_tensors(fixed_batch(given)).repeat().prefetch(2)


def real_batches(experiment: Any, folder: Path) -> Any:
    """The batches of a training on a prepared folder, augmented, for more epochs than will be asked for."""
    from our_step import training_images

    from keras_pneumo.training.distributed.strategy import ONE_DEVICE
    from keras_pneumo.training.trainer import plan_of

    return ONE_DEVICE.batches(training_images(experiment, folder), plan_of(experiment, 0, 1000))


if __name__ == "__main__":
    main()
