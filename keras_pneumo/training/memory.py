"""How much of a batch fits into memory at once: halved when it does not, found beforehand if asked, and remembered.

What is found is the largest part of a batch that one device takes in one slice, and, where validation had to predict
fewer, how many it predicts at once. It is kept for the device, the network, the image size and the precision in
``memory.json`` in the user's cache folder (see :func:`~.files.cache_folder`), and the next training starts from it.
The effective batch never changes: see ``slices``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.config import Experiment
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.run import hardware
from keras_pneumo.storage.files import cache_folder, write_json
from keras_pneumo.training.step import TrainingNetwork

FILE = "memory.json"
SLICES = "slices.json"
"""In a run folder: the slices that a worker needs which ran out of memory there."""


def key_of(experiment: Experiment, predicting: bool = False) -> str:
    """Device, network, image size and precision in words, and what the network does."""
    size = experiment.image_size if predicting else experiment.crop or experiment.image_size
    learning = "frozen BatchNorm" if experiment.frozen_batchnorm else "learning BatchNorm"
    if predicting:
        learning = "predicting"
    parts = (hardware(), experiment.task, experiment.encoder, f"{size} px", keras.config.dtype_policy().name, learning)
    return ", ".join(parts)


def recall(experiment: Experiment, predicting: bool = False) -> int | None:
    """Images that fit in one slice, or that one device can predict at once, if that was found before."""
    found = _remembered().get(key_of(experiment, predicting))
    return found if isinstance(found, int) and found > 0 else None


def remember(experiment: Experiment, images: int, predicting: bool = False) -> None:
    """Keep how many images fit in one slice, or can be predicted at once.

    Where the folder cannot be written, nothing is kept.
    """
    try:
        write_json(cache_folder() / FILE, _remembered() | {key_of(experiment, predicting): images})
    except PneumoError:
        return


def _remembered() -> dict[str, object]:
    """What was kept, also by earlier versions, which did not look at ``$XDG_CACHE_HOME``."""
    if os.environ.get("KERAS_PNEUMO_CACHE"):
        return _read(cache_folder() / FILE)
    return _read(Path.home() / ".cache" / "keras_pneumo" / FILE) | _read(cache_folder() / FILE)


def need(folder: Path, slices: int, replicas: int) -> None:
    """Write down for the next start of all workers that one of them needs so many slices in this run."""
    write_json(folder / SLICES, {"slices": slices, "replicas": replicas})


def needed(folder: Path, replicas: int) -> int:
    """The slices that a worker needs in this run with so many replicas; 0: none ran out of memory."""
    match _read(folder / SLICES):
        case {"slices": int(slices), "replicas": int(of)} if of == replicas:
            return slices
    return 0


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def in_a_slice(part: int, slices: int) -> int:
    """Images of the largest slice of a part of ``part`` images."""
    return -(-part // slices)


def slices_for(part: int, images: int, most: int) -> int:
    """Slices in which a part of ``part`` images is worked through when ``images`` fit at once; at most ``most``."""
    return min(max(-(-part // images), 1), most)


def halved(slices: int, part: int, most: int) -> int:
    """Twice the slices, after one did not fit.

    Raises:
        PneumoError: a slice is down to what it must hold.
    """
    if slices >= most:
        raise PneumoError(
            f"The memory is too small even for {in_a_slice(part, slices)} images at once. Use a smaller image_size, a "
            "smaller "
            "encoder, or mixed_float16; see that nothing else uses the device."
        )
    return min(2 * slices, most)


def fewest(fits: Callable[[int], bool], most: int) -> int:
    """The fewest slices that fit: doubled until they do, then between the last two by halves.

    Raises:
        PneumoError: not even ``most`` fit.
    """
    low, high = 0, 1  # low does not fit
    while not fits(high):
        if high >= most:
            raise PneumoError(
                "The memory is too small even for the smallest slice. Use a smaller image_size or encoder."
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def trial(network: TrainingNetwork, experiment: Experiment, part: int) -> Callable[[int], bool]:
    """A function that says whether a part of a batch fits in so many slices, by a forward and a backward pass.

    The network is one of this device alone: workers find out different things, and none must wait for another here.
    """
    size = experiment.crop or experiment.image_size

    def fits(slices: int) -> bool:
        images = in_a_slice(part, slices)
        kept = [keras.ops.convert_to_numpy(variable) for variable in network.variables]
        try:
            network.try_micro_batch(_made_up(experiment, images, size))
        except tf.errors.ResourceExhaustedError:
            return False
        finally:
            for variable, value in zip(network.variables, kept, strict=True):
                variable.assign(value)  # BatchNorm has seen noise
        return True

    return fits


def _made_up(experiment: Experiment, images: int, size: int) -> object:
    pixels = np.random.default_rng(0).random((images, size, size, 1)).astype(np.float32)
    mask = (pixels > 0.9).astype(np.float32)
    label = mask.max(axis=(1, 2))
    target = (
        label if experiment.task == "classifier" else {"mask": mask, "image": label} if experiment.image_head else mask
    )
    weight = np.full(images, 1.0 / images, np.float32)
    return tf.nest.map_structure(tf.constant, (pixels, target, weight))
