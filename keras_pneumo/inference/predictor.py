"""Where networks predict: on TensorFlow's own device, or dealt out to all devices that a training's engine has.

The engine (``training.distribution``) stands above this package, so it is handed in: where variables are to be made,
and what predicts in a network's place. Every worker asks for the same batches in the same order and gets all rows back,
in order; so what is computed from them is the same on each.

A network that is asked about few images at once, where a whole batch would not fit into memory.

In: what predicts, and how many images it may be asked about at once. Out: something that predicts in its place and
gives the same answers for the whole batch. Predictions of an image do not depend on the others of its batch, so this
changes nothing but rounding, and not even that where a batch is no larger than a part.

From a network and images to probabilities.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.pipeline import evaluation_batches
from keras_pneumo.errors import PneumoError


class Predictor(Protocol):
    """What a network is asked for."""

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch, as NumPy arrays (batch, ...) in its order."""


@dataclass(frozen=True)
class DistributedPredictor:
    """Where networks predict."""

    scope: Callable[[], contextlib.AbstractContextManager[Any]]
    """Within it networks are built and loaded."""
    share: Callable[[keras.Model], Predictor]
    """What predicts in a network's place."""
    devices: int = 1
    """How many share a batch."""
    workers: int = 1
    """How many processes must ask for the same."""


def _itself(model: keras.Model) -> Predictor:
    return model


SINGLE_DEVICE = DistributedPredictor(contextlib.nullcontext, _itself)
"""One device, TensorFlow's default."""


class MicroBatchPredictor:
    """A predictor's answers, found part by part; the parts are halved when one does not fit."""

    def __init__(
        self,
        predictor: Predictor,
        at_once: int | None = None,
        fewest: int = 1,
        halved: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Ask ``predictor``.

        Args:
            predictor: what is asked.
            at_once: images of a part; None: whole batches.
            fewest: what a part must hold: an image for each device that shares it.
            halved: told the images of a part from then on, when one did not fit. Where others predict the same parts it
                must raise: they would wait for the rest of a larger one.
        """
        self.predictor = predictor
        self.at_once = at_once
        self.fewest = fewest
        self.halved = halved

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch.

        Raises:
            PneumoError: the memory is too small for the smallest part.
        """
        rows = len(x)
        found: list[Any] = []
        done = 0
        while done < rows:
            images = min(self.at_once or rows, rows)
            try:
                part = x if images == rows else x[done : done + images]
                found.append(self.predictor.predict_on_batch(part))
                done += images
            except tf.errors.ResourceExhaustedError:
                if images <= self.fewest:
                    number = "one image" if images == 1 else f"{images} images"
                    raise PneumoError(
                        f"The memory is too small to predict even {number} at once. See that nothing else uses "
                        "the device, or use another."
                    ) from None
                self.at_once = max(-(-images // 2), self.fewest)
                self.halved(self.at_once)
        if len(found) == 1:
            return found[0]
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *found)


Progress = Callable[[int, int], None]


def predict_logits(
    model: Predictor, batches: tf.data.Dataset, mirrored: bool = False, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Logits, float32 (n,), of a dataset of float32 (B, S, S, 1) in [0, 1]; of the mirror images where asked."""
    found = []
    done = 0
    for images in batches:
        logits = model.predict_on_batch(tf.reverse(images, [2]) if mirrored else images)
        found.append(np.asarray(logits)[:, 0])
        done += len(found[-1])
        if progress:
            progress(done)
    return np.concatenate(found) if found else np.empty(0, np.float32)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64, of logits of any size, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))


def predict_probabilities(
    model: Predictor, source: ImageSet, batch_size: int, flip_averaging: bool, progress: Progress | None = None
) -> np.ndarray:
    """Probability of pneumothorax for each image of ``source``, float64 (n,), in its order.

    With ``flip_averaging``, the mean of the probabilities of the image and of its mirror image.
    """
    batches = evaluation_batches(source, batch_size)
    passes = [False, True] if flip_averaging else [False]
    total = len(source) * len(passes)
    summed = np.zeros(len(source))
    for number, mirrored in enumerate(passes):

        def count(done: int, before: int = number * len(source)) -> None:
            if progress:
                progress(before + done, total)

        summed += probabilities_of(predict_logits(model, batches, mirrored, count))
    return summed / len(passes)
