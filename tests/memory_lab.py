"""A predictor with a small memory."""

import numpy as np
import tensorflow as tf


def exhausted(images):
    """The error of a device without memory for so many images."""
    return tf.errors.ResourceExhaustedError(None, None, f"out of memory by {images} images")


class SmallMemory:
    """Predicts with two outputs, and has memory for ``most`` images; ``sizes`` are those of its batches."""

    def __init__(self, most):
        self.most, self.sizes = most, []

    def predict_on_batch(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise exhausted(len(x))
        return {"mask": np.asarray(x) + 1, "image": -np.asarray(x)[:, 0]}
