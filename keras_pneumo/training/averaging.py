"""Averages of weights over the training: exponential, and stochastic weight averaging with its BatchNorm statistics.

Sources: stochastic weight averaging, arXiv 1803.05407, and its ``torch.optim.swa_utils.update_bn`` (PyTorch 2.14).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.models.resnet import leaf_layers
from keras_pneumo.training.optimizers import inner_optimizer


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """A context in which the model has its optimizer's averaged weights, if the optimizer keeps an average."""
    optimizer = inner_optimizer(model)
    if not optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    current = [keras.ops.convert_to_numpy(variable) for variable in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average, strict=True):
        variable.assign(keras.ops.convert_to_numpy(average))
    try:
        yield
    finally:
        for variable, value in zip(variables, current, strict=True):
            variable.assign(value)


def keep_average(model: keras.Model) -> None:
    """Give the model its optimizer's averaged weights for good, at the end of a phase."""
    optimizer = inner_optimizer(model)
    if optimizer.use_ema:
        for variable, average in zip(model.trainable_variables, optimizer._model_variables_moving_average, strict=True):
            variable.assign(keras.ops.convert_to_numpy(average))


class WeightAverage(keras.callbacks.Callback):
    """The mean of the learning weights at the ends of all epochs from ``first_epoch`` on (counted from 0)."""

    def __init__(self, first_epoch: int) -> None:
        """Begin an empty average."""
        super().__init__()
        self.first_epoch = first_epoch
        self.count = 0
        self.sums: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Add the weights to the average."""
        if epoch < self.first_epoch:
            return
        weights = [keras.ops.convert_to_numpy(value).astype(np.float64) for value in self.model.trainable_variables]
        self.sums = [total + new for total, new in zip(self.sums, weights, strict=True)] if self.sums else weights
        self.count += 1

    def assign(self, model: keras.Model) -> None:
        """Give ``model`` the averaged weights; BatchNorm's statistics do not fit them until they are estimated anew."""
        for variable, total in zip(model.trainable_variables, self.sums, strict=True):
            variable.assign(total / self.count)


def estimate_statistics(model: keras.Model, batches: Iterable[Any]) -> None:
    """Set the moving mean and variance of every learning BatchNorm layer to their means over ``batches``.

    Layers that do not learn keep theirs. No weight changes.

    Args:
        model: with the weights that the statistics are to fit.
        batches: of images, float32 (B, S, S, 1), a finite number of them.
    """
    layers = [
        layer for layer in leaf_layers(model) if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    sums: list[np.ndarray] = []
    count = 0
    try:
        for layer in layers:
            layer.momentum = 0.0  # the moving statistics are then those of the last batch
        forward = tf.function(lambda images: model(images, training=True), reduce_retracing=True)
        for images in batches:
            forward(images)
            statistics = [
                keras.ops.convert_to_numpy(value).astype(np.float64)
                for layer in layers
                for value in (layer.moving_mean, layer.moving_variance)
            ]
            sums = [total + new for total, new in zip(sums, statistics, strict=True)] if sums else statistics
            count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    for number, layer in enumerate(layers):
        layer.moving_mean.assign(sums[2 * number] / count)
        layer.moving_variance.assign(sums[2 * number + 1] / count)
