"""Pneumothorax or not: a ResNet, pooling, dropout and one logit.

In: radiograph, float, shape (batch, height, width, 1), 0 to 1. Out: one logit per image, float32, shape (batch, 1);
its sigmoid is the probability of a pneumothorax. With the ImageNet head's thousand classes in place of the one logit
(``classes=1000``) it is torchvision's ResNet itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import keras

from keras_pneumo.models.preprocessing import Normalise, full_dtype
from keras_pneumo.models.resnet import depth_of, resnet

HEAD_GROUP = 5
"""Depth group of everything after the encoder; the stem is 0 and the four stages 1 to 4."""


def build_classifier(
    encoder: str = "resnet50", dropout: float = 0.0, synchronized: bool = False, classes: int = 1
) -> keras.Model:
    """The classifier with random weights.

    Args:
        encoder: ``resnet18``, ``resnet34`` or ``resnet50``. It is reached as ``model.get_layer("encoder")``.
        dropout: share of the pooled features set to 0 in training.
        synchronized: whether BatchNorm takes its batch statistics over all replicas.
        classes: logits per image; another number than 1 is for PyTorch's classifiers, such as ImageNet's.

    Returns:
        A model from (batch, height, width, 1) in [0, 1] to logits (batch, classes), float32. Its last layer is ``fc``.

    Raises:
        PneumoError: no such encoder.
    """
    image = keras.Input((None, None, 1), dtype=full_dtype(), name="image")
    normalised = Normalise(name="normalise")(image)
    features = resnet(depth_of(encoder), name="encoder", synchronized=synchronized)(normalised)
    # The head is float32 whatever the policy: a mean over 32x32 positions and one logit cost nothing.
    pool = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype=full_dtype(), name="pool")
    pooled = pool(features[-1])
    pooled = keras.layers.Dropout(dropout, dtype=full_dtype(), name="dropout")(pooled)
    logits = linear(classes, pooled.shape[-1], name="fc")(pooled)
    return keras.Model(image, logits, name=f"{encoder}_classifier")


def linear(units: int, inputs: int, name: str) -> keras.layers.Dense:
    """A float32 dense layer started as ``torch.nn.Linear`` starts: weights and bias uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
        dtype=full_dtype(),
        name=name,
    )


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Every layer that holds weights itself, those of nested models included, in the model's order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        elif layer.weights:
            yield layer


def depth_groups(model: keras.Model) -> dict[str, int]:
    """Depth of each variable, by its path, for learning rates that grow with depth.

    0 is the stem (``conv1``, ``bn1``), 1 to 4 the stages, 5 all that is not encoder: the head, and a U-Net's decoder.
    """
    groups = {}
    for layer in leaf_layers(model):
        stage = re.match(r"layer([1-4])-", layer.name)
        group = int(stage.group(1)) if stage else 0 if layer.name in ("conv1", "bn1") else HEAD_GROUP
        groups.update({variable.path: group for variable in layer.weights})
    return groups
