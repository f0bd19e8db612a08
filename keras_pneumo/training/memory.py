"""How many images fit into memory at once: halved when they do not, measured beforehand if asked, and remembered.

Two numbers are remembered: the largest micro-batch that one device can train on, and, where validation had to predict
fewer images, how many a device predicts at once. They are kept for each device, network, image size and precision in
``memory.json`` in the user's cache folder (see :func:`~.files.cache_folder`), and the next training starts from them.
The effective batch never changes; see :mod:`keras_pneumo.training.step`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.config import Experiment
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.run import hardware
from keras_pneumo.storage.files import cache_folder, read_json, write_json
from keras_pneumo.training.step import TrainingNetwork

FILE = "memory.json"
NEEDED = "slices.json"
"""In a run folder: into how many micro-batches a worker that ran out of memory has to divide its part of a batch."""


def key_of(experiment: Experiment, predicting: bool = False) -> str:
    """What a number is remembered for: device, network, image size, precision, and whether it trains or predicts."""
    size = experiment.image_size if predicting else experiment.crop or experiment.image_size
    learning = "frozen BatchNorm" if experiment.frozen_batchnorm else "learning BatchNorm"
    if predicting:
        learning = "predicting"
    parts = (hardware(), experiment.task, experiment.encoder, f"{size} px", keras.config.dtype_policy().name, learning)
    return ", ".join(parts)


def recall(experiment: Experiment, predicting: bool = False) -> int | None:
    """Images of the largest micro-batch that fits, or that a device can predict at once; None where none is known."""
    images = _remembered().get(key_of(experiment, predicting))
    return images if isinstance(images, int) and images > 0 else None


def remember(experiment: Experiment, images: int, predicting: bool = False) -> None:
    """Remember how many images fit in one micro-batch, or can be predicted at once.

    Where the cache folder cannot be written, nothing is remembered.
    """
    try:
        write_json(cache_folder() / FILE, _remembered() | {key_of(experiment, predicting): images})
    except PneumoError:
        return


def _remembered() -> dict[str, object]:
    """All numbers, also those of earlier versions, which did not look at ``$XDG_CACHE_HOME``."""
    if os.environ.get("KERAS_PNEUMO_CACHE"):
        return _read(cache_folder() / FILE)
    return _read(Path.home() / ".cache" / "keras_pneumo" / FILE) | _read(cache_folder() / FILE)


def write_needed(folder: Path, micro_batches: int, replicas: int) -> None:
    """Write into the run folder, for the next start of all workers, how many micro-batches one of them needs."""
    write_json(folder / NEEDED, {"slices": micro_batches, "replicas": replicas})


def read_needed(folder: Path, replicas: int) -> int:
    """The micro-batches that a worker needs in this run with so many replicas; 0 where none ran out of memory."""
    match _read(folder / NEEDED):
        case {"slices": int(micro_batches), "replicas": int(of)} if of == replicas:
            return micro_batches
    return 0


def _read(path: Path) -> dict[str, object]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def micro_batch_size(part: int, micro_batches: int) -> int:
    """Images of the largest of the micro-batches that a part of ``part`` images is divided into."""
    return -(-part // micro_batches)


def micro_batches_for(part: int, images: int, most: int) -> int:
    """The micro-batches that a part of ``part`` images is divided into, where ``images`` fit; at most ``most``."""
    return min(max(-(-part // images), 1), most)


def halve_micro_batch(micro_batches: int, part: int, most: int) -> int:
    """The number of micro-batches after one did not fit: twice as many, at most ``most``.

    Raises:
        PneumoError: there are ``most`` already.
    """
    if micro_batches >= most:
        raise PneumoError(
            f"The memory is too small even for {micro_batch_size(part, micro_batches)} images at once. Use a smaller "
            "image_size, a smaller encoder, or mixed_float16, and see that nothing else uses the device."
        )
    return min(2 * micro_batches, most)


def fewest_micro_batches(fits: Callable[[int], bool], most: int) -> int:
    """The fewest micro-batches that fit: doubled until they do, then halved between the last two.

    Raises:
        PneumoError: not even ``most`` fit.
    """
    low, high = 0, 1  # low does not fit
    while not fits(high):
        if high >= most:
            raise PneumoError(
                "The memory is too small even for the smallest micro-batch. Use a smaller image_size or encoder."
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def make_trial(network: TrainingNetwork, experiment: Experiment, part: int) -> Callable[[int], bool]:
    """A function that says whether so many micro-batches fit, by a forward and a backward pass of the largest one.

    The network is on this device alone: the workers' answers differ, so none may wait for another here.
    """
    size = experiment.crop or experiment.image_size

    def fits(micro_batches: int) -> bool:
        images = micro_batch_size(part, micro_batches)
        values = [keras.ops.convert_to_numpy(variable) for variable in network.variables]
        try:
            network.try_micro_batch(_random_batch(experiment, images, size))
        except tf.errors.ResourceExhaustedError:
            return False
        finally:
            for variable, value in zip(network.variables, values, strict=True):
                variable.assign(value)  # BatchNorm's statistics have moved
        return True

    return fits


def _random_batch(experiment: Experiment, images: int, size: int) -> object:
    pixels = np.random.default_rng(0).random((images, size, size, 1)).astype(np.float32)
    mask = (pixels > 0.9).astype(np.float32)
    label = mask.max(axis=(1, 2))
    target = (
        label if experiment.task == "classifier" else {"mask": mask, "image": label} if experiment.image_head else mask
    )
    weight = np.full(images, 1.0 / images, np.float32)
    return tf.nest.map_structure(tf.constant, (pixels, target, weight))
