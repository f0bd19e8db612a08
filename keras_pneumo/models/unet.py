"""The segmenter: the U-Net of ``segmentation_models_pytorch`` 0.6, layer for layer.

In: radiograph, float, shape (batch, height, width, 1), 0 to 1; both sides divide by 32. Out: one logit per pixel,
float32, shape (batch, height, width, 1); with the image-level head a dictionary of that as ``mask`` and one logit per
image as ``image``, shape (batch, 1). Layers have smp's module names (with ``-`` for ``.``), so its weights load here
and ours there.

Source: ``smp.Unet`` 0.6.0 (``decoders/unet/decoder.py``, ``base/heads.py``, ``base/modules.py``); Ronneberger et al.,
arXiv 1505.04597; the SCSE attention, arXiv 1803.02579.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import keras

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.batch_norm import batch_norm
from keras_pneumo.models.imagenet import load_pretrained
from keras_pneumo.models.preprocessing import Normalise, full_dtype
from keras_pneumo.models.resnet import STRIDES, depth_of, resnet
from keras_pneumo.models.weights import UnusedTensors

DECODER_CHANNELS = (256, 128, 64, 32, 16)
"""Output channels of the five decoder blocks, deepest first."""

REDUCTION = 16
"""How much narrower SCSE's bottleneck is than its input."""


def build_unet(
    encoder: str = "resnet50",
    weights: Path | str | None = None,
    *,
    attention: Literal["scse"] | None = None,
    image_head: bool = False,
    dropout: float = 0.2,
    synchronized: bool = False,
) -> keras.Model:
    """Build the segmenter.

    Args:
        encoder: ``resnet18``, ``resnet34`` or ``resnet50``. It is reached as ``model.get_layer("encoder")``.
        weights: None for random ones, ``imagenet_v1`` or ``imagenet_v2`` for the encoder, or a safetensors file with
            smp's names for the whole network; see :func:`keras_pneumo.models.imagenet.load_pretrained`.
        attention: ``scse`` for smp's ``decoder_attention_type="scse"``.
        image_head: whether there is a second output, one logit per image (smp's ``aux_params``), computed from the
            deepest features.
        dropout: share of the pooled features set to 0 before the image-level logit in training; smp's default.
        synchronized: whether BatchNorm takes its batch statistics over all replicas.

    Returns:
        A model from (batch, height, width, 1) to mask logits (batch, height, width, 1), or with ``image_head`` to
        ``{"mask": ..., "image": (batch, 1)}``; logits are float32 whatever the policy.

    Raises:
        PneumoError: no such encoder or attention, or the weights cannot be had or do not fit.
    """
    if attention not in (None, "scse"):
        raise PneumoError(f"There is no decoder attention {attention!r}. Choose 'scse' or none.")
    image = keras.Input((None, None, 1), dtype=full_dtype(), name="image")
    network = resnet(depth_of(encoder), name="encoder", synchronized=synchronized)
    features = network(Normalise(name="normalise")(image))
    x = features[-1]
    skips: list[Any] = [*features[-2::-1], None]  # strides 16, 8, 4, 2, and none at full size
    for index, (skip, channels) in enumerate(zip(skips, DECODER_CHANNELS, strict=True)):
        x = _decoder_block(x, skip, channels, f"decoder-blocks-{index}", attention == "scse", synchronized)
    mask = keras.layers.Conv2D(
        1,
        3,
        padding="same",
        kernel_initializer="glorot_uniform",
        data_format="channels_last",
        dtype=full_dtype(),
        name="segmentation_head-0",
    )(x)
    outputs: Any = {"mask": mask, "image": _image_head(features[-1], dropout)} if image_head else mask
    model = keras.Model(image, outputs, name=f"{encoder}_unet")
    load_pretrained(model, encoder, weights)
    return model


def check_size(height: int, width: int) -> None:
    """Refuse an image size that the U-Net cannot halve five times.

    Raises:
        PneumoError: a side does not divide by 32.
    """
    if height % STRIDES[-1] or width % STRIDES[-1] or min(height, width) < STRIDES[-1]:
        raise PneumoError(
            f"The U-Net takes images whose sides divide by {STRIDES[-1]}, not {height}x{width}. "
            "Prepare the images at another size."
        )


def _decoder_block(x: Any, skip: Any, channels: int, name: str, scse: bool, synchronized: bool) -> Any:
    """Add a decoder block: twice the size by nearest neighbour, the encoder's features, two 3x3 convolutions."""
    x = keras.layers.UpSampling2D(2, data_format="channels_last", interpolation="nearest", name=f"{name}-up")(x)
    attention = f"{name}-attention1-attention"
    if skip is not None:
        x = keras.layers.Concatenate(name=f"{name}-concatenate")([x, skip])
        if scse:
            x = _scse(x, attention)
    elif scse:
        x = UnusedTensors(_scse_shapes(x.shape[-1]), name=attention)(x)
    for position in (1, 2):
        x = keras.layers.Conv2D(
            channels,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer=_kaiming_uniform(),
            data_format="channels_last",
            name=f"{name}-conv{position}-0",
        )(x)
        x = batch_norm(x, f"{name}-conv{position}-1", synchronized)
        x = keras.layers.ReLU(name=f"{name}-conv{position}-2")(x)
    return _scse(x, f"{name}-attention2-attention") if scse else x


def _kaiming_uniform() -> keras.initializers.Initializer:
    """Make smp's initializer of every decoder convolution, ``kaiming_uniform_(fan_in, relu)``.

    A new one for each layer: an initializer draws the same numbers every time.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_in", "uniform")


def _scse(x: Any, name: str) -> Any:
    """Add spatial and channel squeeze and excitation: x times a weight per channel plus x times one per pixel."""
    channels = x.shape[-1]

    def pointwise(value: Any, filters: int, activation: str, part: str) -> Any:
        return keras.layers.Conv2D(
            filters,
            1,
            activation=activation,
            kernel_initializer=_kaiming_uniform(),
            data_format="channels_last",
            name=f"{name}-{part}",
        )(value)

    pool = keras.layers.GlobalAveragePooling2D(data_format="channels_last", keepdims=True, name=f"{name}-cSE-0")
    per_channel = pointwise(pool(x), channels // REDUCTION, "relu", "cSE-1")
    per_channel = pointwise(per_channel, channels, "sigmoid", "cSE-3")
    per_pixel = pointwise(x, 1, "sigmoid", "sSE-0")
    by_channel = keras.layers.Multiply(name=f"{name}-by_channel")([x, per_channel])
    by_pixel = keras.layers.Multiply(name=f"{name}-by_pixel")([x, per_pixel])
    return keras.layers.Add(name=f"{name}-add")([by_channel, by_pixel])


def _scse_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of smp's tensors of one SCSE module, by name, in PyTorch's order of axes."""
    narrow = channels // REDUCTION
    return {
        "cSE.1.weight": (narrow, channels, 1, 1),
        "cSE.1.bias": (narrow,),
        "cSE.3.weight": (channels, narrow, 1, 1),
        "cSE.3.bias": (channels,),
        "sSE.0.weight": (1, channels, 1, 1),
        "sSE.0.bias": (1,),
    }


def _image_head(features: Any, dropout: float) -> Any:
    """Add smp's classification head: average pooling, dropout, one logit."""
    pool = keras.layers.GlobalAveragePooling2D(
        data_format="channels_last", dtype=full_dtype(), name="classification_head-0"
    )
    x = pool(features)
    x = keras.layers.Dropout(dropout, dtype=full_dtype(), name="classification_head-2")(x)
    return keras.layers.Dense(1, kernel_initializer="glorot_uniform", dtype=full_dtype(), name="classification_head-3")(
        x
    )
