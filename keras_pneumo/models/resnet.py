"""torchvision's ResNet 18, 34 and 50 (v1.5) as Keras encoders, layer for layer.

In: float tensor, shape (batch, height, width, 3), normalised. Out: a list of five feature maps at strides 2, 4, 8, 16
and 32. So a weight file of the PyTorch world gives the same numbers here: PyTorch's padding on every
side, no convolution bias, BatchNorm epsilon 1e-5 and momentum 0.9, the stride of a bottleneck on its 3x3 convolution.
``keras.applications`` differs in each of these.

Source: torchvision 0.29 ``models/resnet.py``; He et al., arXiv 1512.03385; stride on the 3x3: ResNet v1.5. Layers with
weights carry torchvision's module names with ``-`` for ``.`` (``layer1-0-conv1``; the rule stands in
``models/weights.py``), so their weights are found by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.batch_norm import batch_norm
from keras_pneumo.models.preprocessing import full_dtype

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks in each of the four stages, by depth."""

STRIDES = (2, 4, 8, 16, 32)
"""Pixels of the input per pixel of each of the five feature maps."""

HEAD_GROUP = 5
"""Depth group of everything after the encoder; the stem is 0 and the four stages 1 to 4."""


def depth_of(encoder: str) -> int:
    """Return the depth in an encoder's name: ``resnet50`` is 50.

    Raises:
        PneumoError: the name is none of resnet18, resnet34 and resnet50.
    """
    names = {f"resnet{depth}": depth for depth in BLOCKS}
    if encoder not in names:
        raise PneumoError(f"There is no encoder {encoder!r}. Choose one of {', '.join(names)}.")
    return names[encoder]


def resnet(depth: int = 50, name: str = "encoder", synchronized: bool = False) -> keras.Model:
    """Build a ResNet without its head, with random weights.

    Args:
        depth: 18, 34 or 50.
        name: the model's name inside a larger one.
        synchronized: whether BatchNorm takes its batch statistics over all replicas of a ``tf.distribute`` strategy.

    Returns:
        A model from (batch, height, width, 3) to the list of five feature maps. Height and width are free; where they
        do not divide by the stride, the maps round up as PyTorch's do.

    Raises:
        PneumoError: no such depth.
    """
    if depth not in BLOCKS:
        raise PneumoError(f"There is no ResNet of depth {depth}. Choose one of {', '.join(map(str, BLOCKS))}.")
    image = keras.Input((None, None, 3), dtype=full_dtype(), name="normalised")
    x = convolution(image, 64, 7, stride=2, name="conv1")
    x = batch_norm(x, "bn1", synchronized)
    x = keras.layers.ReLU(name="relu")(x)
    features = [x]  # stride 2, 64 channels
    # PyTorch pads the pool with minus infinity; after a ReLU zeros give the same maxima.
    x = keras.layers.ZeroPadding2D(1, data_format="channels_last", name="maxpool-pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, "valid", data_format="channels_last", name="maxpool")(x)
    block = _bottleneck if depth == 50 else _basic
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for index in range(blocks):
            stride = 2 if stage > 1 and index == 0 else 1
            x = block(x, 64 * 2 ** (stage - 1), stride, f"layer{stage}-{index}", synchronized)
        features.append(x)
    return keras.Model(image, features, name=name)


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield every layer that holds weights itself, those of nested models included, in the model's order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        elif layer.weights:
            yield layer


def depth_groups(model: keras.Model) -> dict[str, int]:
    """Return the depth of each variable, by its path, for learning rates that grow with depth.

    0 is the stem (``conv1``, ``bn1``), 1 to 4 the stages, 5 what is not the encoder: the head, and a U-Net's decoder.
    """
    groups = {}
    for layer in leaf_layers(model):
        stage = re.match(r"layer([1-4])-", layer.name)
        group = int(stage.group(1)) if stage else 0 if layer.name in ("conv1", "bn1") else HEAD_GROUP
        groups.update({variable.path: group for variable in layer.weights})
    return groups


def convolution(x: Any, filters: int, size: int, *, name: str, stride: int = 1) -> Any:
    """Add a square convolution without bias, padded as ``torch.nn.Conv2d(padding=size // 2)``.

    Random start: normal with variance 2 / (outgoing connections), torchvision's ``kaiming_normal_(fan_out)``.
    """
    same = stride == 1  # then "same" pads alike on all sides; at stride 2 Keras would pad the bottom and right only
    if not same and size > 1:
        x = keras.layers.ZeroPadding2D(size // 2, data_format="channels_last", name=f"{name}-pad")(x)
    return keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same" if same else "valid",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        data_format="channels_last",
        name=name,
    )(x)


def _basic(x: Any, width: int, stride: int, name: str, synchronized: bool) -> Any:
    """Add two 3x3 convolutions and a shortcut (ResNet 18 and 34); ``width`` is also the number of output channels."""
    shortcut = _shortcut(x, width, stride, name, synchronized)
    x = convolution(x, width, 3, stride=stride, name=f"{name}-conv1")
    x = batch_norm(x, f"{name}-bn1", synchronized)
    x = keras.layers.ReLU(name=f"{name}-relu1")(x)
    x = convolution(x, width, 3, name=f"{name}-conv2")
    x = batch_norm(x, f"{name}-bn2", synchronized)
    x = keras.layers.Add(name=f"{name}-add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}-relu")(x)


def _bottleneck(x: Any, width: int, stride: int, name: str, synchronized: bool) -> Any:
    """Add 1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut (ResNet 50); 4 x ``width`` channels out."""
    shortcut = _shortcut(x, 4 * width, stride, name, synchronized)
    x = convolution(x, width, 1, name=f"{name}-conv1")
    x = batch_norm(x, f"{name}-bn1", synchronized)
    x = keras.layers.ReLU(name=f"{name}-relu1")(x)
    x = convolution(x, width, 3, stride=stride, name=f"{name}-conv2")
    x = batch_norm(x, f"{name}-bn2", synchronized)
    x = keras.layers.ReLU(name=f"{name}-relu2")(x)
    x = convolution(x, 4 * width, 1, name=f"{name}-conv3")
    x = batch_norm(x, f"{name}-bn3", synchronized)
    x = keras.layers.Add(name=f"{name}-add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}-relu")(x)


def _shortcut(x: Any, channels: int, stride: int, name: str, synchronized: bool) -> Any:
    """Return the block's input, or its projection by a 1x1 convolution where the shape changes."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    x = convolution(x, channels, 1, stride=stride, name=f"{name}-downsample-0")
    return batch_norm(x, f"{name}-downsample-1", synchronized)
