"""From a network and images to probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_pneumo.data.images import Source
from keras_pneumo.data.pipeline import evaluation_batches
from keras_pneumo.prediction.sharing import Predictor

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
    model: Predictor, source: Source, batch_size: int, flip_averaging: bool, progress: Progress | None = None
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
