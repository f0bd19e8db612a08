"""BatchNorm folded into the convolutions before it: the same logits with fewer passes over memory.

In: a network as it was trained. Out: a second network for prediction alone. With fixed statistics BatchNorm multiplies
each channel by ``gamma / sqrt(variance + epsilon)`` and adds ``beta - mean * that``. The convolution before it can do
both, with a scaled kernel and a bias, in one pass together with the ReLU or the addition that comes next. The new
weights are computed in float64 and rounded once; the logits agree to about 1e-6.

The first network is left as it is: it is the one to train, to export, and to draw heat maps of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Make a network for prediction whose convolutions do the work of the BatchNorm after them.

    Args:
        model: a functional model, which may hold others. BatchNorm that does not follow a convolution stays, and so
            does one after a convolution that something else reads too.

    Returns:
        A new model of the same inputs and outputs, whose layers have the names of the first's.
    """
    models = list(_models(model))
    layers = _layers(models)
    norms = _norm_after(models, layers)
    folded = {norm.name for norm in norms.values()}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Conv2D):
            # Every weight is set below, and drawing a random kernel of 23 million numbers takes a second.
            config |= {"use_bias": layer.use_bias or layer.name in norms, "kernel_initializer": "zeros"}
        return type(layer).from_config(config)

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in folded else layer(*args, **kwargs)

    result = keras.models.clone_model(model, clone_function=clone, call_function=call, recursive=True)
    new = {layer.name: layer for layer in _layers(list(_models(result)))}
    for layer in layers:
        if layer.name in norms:
            new[layer.name].set_weights(_folded_weights(layer, norms[layer.name]))
        elif layer.weights and layer.name not in folded:
            new[layer.name].set_weights(layer.get_weights())
    return result


def _models(model: keras.Model) -> Iterator[keras.Model]:
    """The model and those within it."""
    yield model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _models(layer)


def _layers(models: list[keras.Model]) -> list[keras.layers.Layer]:
    """Every layer of these models that is not a model."""
    return [layer for model in models for layer in model.layers if not isinstance(layer, keras.Model)]


def _norm_after(
    models: list[keras.Model], layers: list[keras.layers.Layer]
) -> dict[str, keras.layers.BatchNormalization]:
    """The BatchNorm that alone reads a convolution's output, over its channels; by the convolution's name."""
    convolutions = {id(layer.output): layer for layer in layers if isinstance(layer, keras.layers.Conv2D)}
    readers = Counter(id(tensor) for layer in layers for tensor in keras.tree.flatten(layer.input))
    readers += Counter(id(tensor) for model in models for tensor in model.outputs)
    norms = {}
    for layer in layers:
        if not isinstance(layer, keras.layers.BatchNormalization) or readers[id(layer.input)] != 1:
            continue
        convolution = convolutions.get(id(layer.input))
        if convolution is not None and layer.axis in (-1, 3) and _is_linear(convolution):
            norms[convolution.name] = layer
    return norms


def _is_linear(convolution: keras.layers.Conv2D) -> bool:
    return convolution.activation is keras.activations.linear and convolution.data_format == "channels_last"


def _folded_weights(convolution: keras.layers.Conv2D, norm: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Kernel (height, width, in, out) and bias (out,) of a convolution with the BatchNorm after it."""
    kernel, *bias = (np.asarray(value, np.float64) for value in convolution.get_weights())
    mean, variance = (_values(value) for value in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * _values(norm.gamma)
    shift = ((bias[0] if bias else 0.0) - mean) * scale
    if norm.center:
        shift = shift + _values(norm.beta)
    return [kernel * scale, shift]


def _values(variable: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
