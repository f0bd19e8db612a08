"""The classifier: a ResNet, pooling, dropout and one logit.

In: radiograph, float, shape (batch, height, width, 1), 0 to 1. Out: one logit per image, float32, shape (batch, 1);
its sigmoid is the probability of a pneumothorax. With the ImageNet head's thousand classes in place of the one logit
(``classes=1000``) it is torchvision's ResNet itself.
"""

from __future__ import annotations

from pathlib import Path

import keras

from keras_pneumo.models.imagenet import load_pretrained
from keras_pneumo.models.preprocessing import Normalise, full_dtype
from keras_pneumo.models.resnet import depth_of, resnet


def build_classifier(
    encoder: str = "resnet50",
    weights: Path | str | None = None,
    *,
    dropout: float = 0.0,
    synchronized: bool = False,
    classes: int = 1,
) -> keras.Model:
    """Build the classifier.

    Args:
        encoder: ``resnet18``, ``resnet34`` or ``resnet50``. It is reached as ``model.get_layer("encoder")``.
        weights: None for random ones, ``imagenet_v1`` or ``imagenet_v2`` for the encoder, or a safetensors file with
            torchvision's names for the whole network; see :func:`keras_pneumo.models.imagenet.load_pretrained`.
        dropout: share of the pooled features set to 0 in training.
        synchronized: whether BatchNorm takes its batch statistics over all replicas.
        classes: logits per image; another number than 1 is for PyTorch's classifiers, such as ImageNet's.

    Returns:
        A model from (batch, height, width, 1) in [0, 1] to logits (batch, classes), float32. Its last layer is ``fc``.

    Raises:
        PneumoError: no such encoder, or the weights cannot be had or do not fit.
    """
    image = keras.Input((None, None, 1), dtype=full_dtype(), name="image")
    normalised = Normalise(name="normalise")(image)
    features = resnet(depth_of(encoder), name="encoder", synchronized=synchronized)(normalised)
    # The head is float32 whatever the policy: a mean over 32x32 positions and one logit cost nothing.
    pool = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype=full_dtype(), name="pool")
    pooled = pool(features[-1])
    pooled = keras.layers.Dropout(dropout, dtype=full_dtype(), name="dropout")(pooled)
    logits = linear(classes, pooled.shape[-1], name="fc")(pooled)
    model = keras.Model(image, logits, name=f"{encoder}_classifier")
    load_pretrained(model, encoder, weights)
    return model


def linear(units: int, inputs: int, name: str) -> keras.layers.Dense:
    """Make a float32 dense layer that starts as ``torch.nn.Linear``: all uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
        dtype=full_dtype(),
        name=name,
    )
