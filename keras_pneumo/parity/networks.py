"""The ladder's two networks, and their weights, layers, gradients and statistics as arrays.

In: inputs and weights. Out: arrays by PyTorch's layer and tensor names. Nothing here imports TensorFlow itself, so the
same code runs on Keras's torch backend.

Gradients are compared in float64: a ReLU whose input rounds to the other side of zero changes the gradient by a step,
and a random ResNet50 has so many that PyTorch's own float32 gradient is 1 to 3% off its float64 one. In float64 what
remains would be a difference of the implementations. Float32's figure is reported beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_pneumo import config
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.preprocessing import normalise
from keras_pneumo.models.resnet import leaf_layers
from keras_pneumo.models.unet import build_unet
from keras_pneumo.models.weights import StateDict, from_torch, module_name, to_torch
from keras_pneumo.parity.comparison import summary_of
from keras_pneumo.training.losses import image_losses
from keras_pneumo.training.step import loss_and_gradients

CLASSIFIER, UNET = "classifier", "unet"
NETWORKS = (CLASSIFIER, UNET)

RECIPE = "3 bce + 1 dice + 4 focal"
"""The mask loss of the ladder, the competition's first place's."""

EXPERIMENTS = {CLASSIFIER: config.CLASSIFIER, UNET: config.SEGMENTER.replace(loss=RECIPE)}
"""The experiment whose loss each network learns by."""

_SHOWN = (
    keras.layers.Conv2D,
    keras.layers.BatchNormalization,
    keras.layers.ReLU,
    keras.layers.MaxPooling2D,
    keras.layers.Concatenate,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Dense,
)
"""Layers whose outputs are compared; PyTorch has a module (or, for the concatenation, a module's input) for each."""


def build(network: str, encoder: str) -> keras.Model:
    """Build one of the ladder's two networks: the classifier, or the U-Net with its image-level head; no dropout."""
    if network == CLASSIFIER:
        return build_classifier(encoder)
    return build_unet(encoder, image_head=True, dropout=0.0)


def target_of(network: str, truths: Mapping[str, np.ndarray]) -> Any:
    """Return the network's target: the labels, (n, 1), or by name the masks and the labels."""
    return truths["image"] if network == CLASSIFIER else {head: truths[head] for head in ("mask", "image")}


def randomise(model: keras.Model, rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw every BatchNorm vector at random: fresh statistics would hide mistakes.

    The statistics are drawn around those of the image; others would let the activations grow from layer to layer until
    float32 has no digits left to compare.
    """
    state = to_torch(model)
    for name, array in state.items():
        if name.endswith(".weight") and array.ndim == 1:
            state[name] = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        elif name.endswith(".bias"):
            state[name] = rng.normal(0, 0.2, array.shape).astype(np.float32)
    from_torch(model, state)
    norms = [layer for layer in leaf_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(image, training=True)
    for norm in norms:
        norm.momentum = 0.9
        mean, variance = to_numpy(norm.moving_mean), to_numpy(norm.moving_variance)
        norm.moving_mean.assign(mean + rng.normal(0, 0.3, mean.shape) * variance**0.5)
        norm.moving_variance.assign(rng.uniform(0.7, 1.5, mean.shape) * variance + 1e-3)


def initial_summaries(model: keras.Model) -> dict[str, np.ndarray]:
    """Return number, mean, spread and shape of each tensor of a freshly built network."""
    return {name: summary_of(array) for name, array in to_torch(model).items() if "num_batches" not in name}


def activations(model: keras.Model, image: np.ndarray, training: bool) -> dict[str, np.ndarray]:
    """Return the output of every layer, by PyTorch's name for it. In training mode the running statistics move."""
    encoder = model.get_layer("encoder")
    prefix = "encoder." if any(module_name(layer.name).startswith("decoder.") for layer in model.layers) else ""
    inner = [layer for layer in encoder.layers if isinstance(layer, _SHOWN)]
    probe = keras.Model(encoder.inputs, [layer.output for layer in inner])
    outputs = probe([normalise(image)], training=training)
    arrays = {prefix + module_name(layer.name): to_numpy(value) for layer, value in zip(inner, outputs, strict=True)}
    outer = [layer for layer in model.layers if isinstance(layer, _SHOWN)]
    probe = keras.Model(model.inputs, [layer.output for layer in outer])
    outputs = probe([image], training=training)
    for layer, value in zip(outer, outputs if isinstance(outputs, list) else [outputs], strict=True):
        arrays["avgpool" if layer.name == "pool" else module_name(layer.name)] = to_numpy(value)
    return arrays


def gradients_by_name(
    model: keras.Model, network: str, image: np.ndarray, truths: Mapping[str, np.ndarray]
) -> tuple[float, StateDict]:
    """Return the training step's loss for one batch, and the gradients of trained tensors by PyTorch's names."""
    weight = np.full(len(image), 1 / len(image))
    losses = image_losses(EXPERIMENTS[network])
    loss, gradients = loss_and_gradients(model, losses, image, target_of(network, truths), weight)
    return float(to_numpy(loss)), by_torch_names(model, model.trainable_variables, gradients)


def by_torch_names(model: keras.Model, variables: list[Any], values: list[Any]) -> StateDict:
    """Return values of variables, such as gradients, renamed and transposed as the weights are."""
    kept = [to_numpy(variable).copy() for variable in variables]
    for variable, value in zip(variables, values, strict=True):
        variable.assign(to_numpy(value))
    state = to_torch(model)
    for variable, value in zip(variables, kept, strict=True):
        variable.assign(value)
    return {name: array for name, array in state.items() if is_trained(name)}


def is_trained(name: str) -> bool:
    """Return whether the tensor of this name (PyTorch's) has a gradient; smp makes one attention that it never uses."""
    counted = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    return not counted and "blocks.4.attention1" not in name


def running_statistics(model: keras.Model) -> dict[str, np.ndarray]:
    """Return BatchNorm's running means and variances by PyTorch's names."""
    return {name: array for name, array in to_torch(model).items() if name.endswith(("running_mean", "running_var"))}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Build networks of this type within the context."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def to_numpy(value: Any) -> np.ndarray:
    """Return a variable or tensor of any Keras backend as an array."""
    return np.asarray(keras.ops.convert_to_numpy(value))
