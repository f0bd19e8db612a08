"""What determinism costs a training step: ``determinism.py TASK SIZE BATCH ROUNDS [OPTIMIZER] [MICRO_BATCHES]``.

Three ways to take the same step, in turns within one process: ``plain`` (an experiment with ``deterministic=False``),
``operations`` (TensorFlow's deterministic operations alone, as this project trained before), and ``deterministic`` (the
default: those, and no arithmetic optimizer). The last batch stays the same, so reading and augmentation do not count.
Prints the processor time of each relative to ``plain``: the median over the rounds, with the lowest and the highest.
Processor time, of all threads, since a machine with other work lengthens wall times by any factor.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_pneumo.quiet import import_tensorflow

WAYS = ("plain", "operations", "deterministic")


def set_way(way: str) -> None:
    """Make TensorFlow work in this way from now on."""
    import tensorflow as tf
    from tensorflow.python.framework import config

    if way == "plain":
        config.disable_op_determinism()
    else:
        tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": way != "deterministic"})


def step_of(way: str, task: str, size: int, batch: int, optimizer: str, micro_batches: int) -> Callable[[], None]:
    """A function that takes one step of a new network, after two that made its graph."""
    import tensorflow as tf

    from keras_pneumo.config import CLASSIFIER, SEGMENTER
    from keras_pneumo.inference.run import build
    from keras_pneumo.training.losses import image_losses
    from keras_pneumo.training.optimizers import make_optimizer, set_learning
    from keras_pneumo.training.step import training_network

    set_way(way)
    base = CLASSIFIER if task == "classifier" else SEGMENTER.replace(image_head=False)
    experiment = base.replace(weights="random", image_size=size, schedule="constant", optimizer=optimizer)
    model = build(experiment)
    set_learning(model, experiment, True)
    rate = make_optimizer(experiment, model, 1e-4, 10_000)
    network = training_network(model, image_losses(experiment), rate, micro_batches)
    images = np.random.default_rng(0).random((batch, size, size, 1), np.float32)
    mask = (images > 0.9).astype(np.float32)
    target = (np.arange(batch) % 2).astype(np.float32)[:, None] if task == "classifier" else mask
    iterator: Any = iter(tf.data.Dataset.from_tensors((images, target)).repeat())
    take_step = network.make_train_function()

    def step() -> None:
        float(take_step(iterator)["loss"])

    for _ in range(2):
        step()
    return step


def main() -> None:
    """Measure and print."""
    task, size, batch, rounds, *rest = sys.argv[1:]
    optimizer, micro_batches = (rest + ["adamw", "1"][len(rest) :])[:2]
    import_tensorflow()
    steps = {way: step_of(way, task, int(size), int(batch), optimizer, int(micro_batches)) for way in WAYS}
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: list[float] = []
    for number in range(int(rounds)):
        times = {}
        for way in WAYS if number % 2 else WAYS[::-1]:
            set_way(way)
            started = time.process_time()
            steps[way]()
            times[way] = time.process_time() - started
        seconds.append(times["plain"])
        for way in WAYS:
            ratios[way].append(times[way] / times["plain"])
    print(
        f"{task}, {size} px, batch {batch}, {optimizer}, in {micro_batches}: {statistics.median(seconds):.2f} s a step"
    )
    for way, values in ratios.items():
        print(
            f"{way}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}) of plain's processor time"
        )


if __name__ == "__main__":
    main()
