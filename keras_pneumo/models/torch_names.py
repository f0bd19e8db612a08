"""PyTorch's name and order of axes for each weight of our networks.

In: one of our networks. Out: each of its weights with the name that torchvision and timm (ResNet), smp (U-Net) or
fastai (its learner's body and head) give it. Our layers carry PyTorch's module names, so there is one rule per kind of
layer; fastai cuts torchvision's ResNet into a Sequential, whose modules are numbered instead of named.

The rule for names, of all layers and of a layer's own variables, with weights or without: PyTorch's name with ``-`` for
``.``, so ``layer1.0.conv1`` is the layer ``layer1-0-conv1``. Keras's torch backend allows no dot there, and PyTorch has
no ``-`` in a name, so the way back, :func:`module_name`, is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import keras

from keras_pneumo.models.classifier import leaf_layers
from keras_pneumo.models.unet import Carried

HEADS = ("fc.", "segmentation_head.", "classification_head.", "1.")
"""Beginnings of the names of tensors that belong to a task rather than to the features; ``1.`` is fastai's head."""

COUNTER = ".num_batches_tracked"
"""PyTorch counts BatchNorm's batches, Keras does not: written as 0, accepted and not used when read."""

STATISTICS = (".running_mean", ".running_var")
"""Endings of the tensors that training keeps but no optimizer learns."""

_KERNELS = {"kernel": "weight", "bias": "bias"}
_VECTORS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
"""How a convolution's, a dense layer's and a vector's axes are transposed into PyTorch's order."""

_FASTAI_STEM = {"conv1": "0.0", "bn1": "0.1"}
"""The ResNet's first modules in fastai's Sequential; 0.2 and 0.3 are the ReLU and the pool, 0.4 to 0.7 the stages."""


class Named(NamedTuple):
    """One weight, its PyTorch name, and how its axes are transposed into PyTorch's order."""

    name: str
    variable: keras.Variable
    axes: tuple[int, ...]


def named_variables(model: keras.Model) -> Iterator[Named]:
    """Each weight of the model, in the model's order."""
    layers = list(leaf_layers(model))
    modules = [module_name(layer.name) for layer in layers]
    is_unet = any(module.startswith("decoder.") for module in modules)
    is_fastai = any(module.startswith("1.") for module in modules)
    for layer, module in zip(layers, modules, strict=True):
        if isinstance(layer, Carried):
            for variable in layer.weights:
                yield Named(f"{module}.{module_name(variable.name)}", variable, tuple(range(len(variable.shape))))
            continue
        if is_fastai:
            module = fastai_name(module)
        elif is_unet and not module.startswith(("decoder.", *HEADS)):
            module = f"encoder.{module}"  # smp holds the ResNet in a module of that name; elsewhere it is the model
        names = _VECTORS if isinstance(layer, keras.layers.BatchNormalization) else _KERNELS
        for variable in layer.weights:
            yield Named(f"{module}.{names[variable.name]}", variable, _AXES[len(variable.shape)])


def module_name(layer_name: str) -> str:
    """PyTorch's name of a layer: ``layer1-0-conv1`` is ``layer1.0.conv1``; see the rule above."""
    return layer_name.replace("-", ".")


def fastai_name(module: str) -> str:
    """torchvision's module name as fastai's: ``layer1.0.conv1`` is ``0.4.0.conv1``; the head's names stay."""
    if module in _FASTAI_STEM:
        return _FASTAI_STEM[module]
    return re.sub(r"^layer([1-4])\.", lambda found: f"0.{int(found.group(1)) + 3}.", module)
