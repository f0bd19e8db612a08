"""fastai's classifier, layer for layer: torchvision's ResNet body and the head that ``vision_learner`` puts on it.

In: radiograph, float, shape (batch, height, width, 1), 0 to 1. Out: one logit per class, float32, shape (batch, 2);
the softmax over them is the probability of each class, in the order of fastai's vocabulary. So a
learner that was trained in fastai gives the same numbers here: its weights load by name (``0.*`` the
body, ``1.*`` the head) through :mod:`keras_pneumo.models.weights`.

Source: fastai 2.8.12 ``vision/learner.py`` (``create_head``, ``create_vision_model``) and ``layers.py``
(``AdaptiveConcatPool2d``, ``LinBnDrop``).
"""

from __future__ import annotations

from typing import Any

import keras

from keras_pneumo.models.batch_norm import batch_norm
from keras_pneumo.models.preprocessing import Normalise, full_dtype
from keras_pneumo.models.resnet import depth_of, resnet

HIDDEN = 512
"""Units of the head's hidden layer."""


def build_fastai_classifier(
    encoder: str = "resnet50", classes: int = 2, dropout: float = 0.5, normalised: bool = True
) -> keras.Model:
    """Build the network of ``vision_learner(dls, encoder)`` with random weights.

    Args:
        encoder: ``resnet18``, ``resnet34`` or ``resnet50``. It is reached as ``model.get_layer("encoder")``.
        classes: logits; a category target of two values makes 2.
        dropout: fastai's ``ps``: share set to 0 before the last layer, half of it before the hidden one.
        normalised: whether ImageNet's mean and deviation are applied, as fastai does for ``pretrained=True`` only.

    Returns:
        A model from (batch, height, width, 1) in [0, 1] to logits (batch, classes), float32.

    Raises:
        PneumoError: no such encoder.
    """
    image = keras.Input((None, None, 1), dtype=full_dtype(), name="image")
    prepared = Normalise(name="normalise")(image) if normalised else _three_channels(image)
    features = resnet(depth_of(encoder), name="encoder")(prepared)[-1]
    kind = {"data_format": "channels_last", "dtype": full_dtype()}
    largest = keras.layers.GlobalMaxPooling2D(name="pool-mp", **kind)(features)
    average = keras.layers.GlobalAveragePooling2D(name="pool-ap", **kind)(features)
    x = keras.layers.Concatenate(dtype=full_dtype(), name="pool")([largest, average])  # 1.0, and 1.1 flattens
    x = _norm_drop_linear(x, 2, HIDDEN, dropout / 2)
    x = keras.layers.ReLU(dtype=full_dtype(), name="relu")(x)  # 1.5
    return keras.Model(image, _norm_drop_linear(x, 6, classes, dropout), name=f"{encoder}_fastai_classifier")


def _norm_drop_linear(x: Any, first: int, units: int, dropout: float) -> Any:
    """Add fastai's ``LinBnDrop``: modules ``first`` to ``first + 2`` of the head; no bias after BatchNorm."""
    beta = keras.initializers.Constant(1e-3)  # fastai's start of every BatchNorm of its own
    x = batch_norm(x, f"1-{first}", beta_initializer=beta, dtype=full_dtype())
    x = keras.layers.Dropout(dropout, dtype=full_dtype(), name=f"dropout-{first + 1}")(x)
    return keras.layers.Dense(
        units,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal"),  # kaiming_normal_
        dtype=full_dtype(),
        name=f"1-{first + 2}",
    )(x)


def _three_channels(image: Any) -> Any:
    return keras.layers.Concatenate(dtype=full_dtype(), name="three")([image, image, image])
