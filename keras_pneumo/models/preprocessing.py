"""Turns a grey radiograph into the three normalised channels that ImageNet networks expect.

In: float image, shape (batch, height, width, 1), 0 (black) to 1 (white). Out: float32, shape (batch, height, width, 3):
the grey value three times, each channel less ImageNet's mean and divided by its standard deviation (the figures of
torchvision's ``transforms`` presets, RGB order). It is a function and a layer, and nothing else in the project
normalises: a network carries its own preprocessing, so a file of weights cannot be fed differently prepared images.
"""

from __future__ import annotations

from typing import Any

import keras

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's red, green and blue, on the scale 0 to 1."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's red, green and blue, on the scale 0 to 1."""


def full_dtype() -> str:
    """Return the type for what must not be in half precision: float32, or float64 under a float64 policy (in tests)."""
    return keras.config.dtype_policy().variable_dtype


def normalise(image: Any, dtype: str = "float32") -> Any:
    """Turn a grey image in [0, 1], (..., 1), into three normalised channels, (..., 3); float32 by default."""
    image = keras.ops.cast(image, dtype)
    mean = keras.ops.convert_to_tensor(IMAGENET_MEAN, dtype=dtype)
    std = keras.ops.convert_to_tensor(IMAGENET_STD, dtype=dtype)
    return (image - mean) / std  # (..., 1) against (3,) makes the three channels


@keras.saving.register_keras_serializable(package="keras_pneumo")
class Normalise(keras.layers.Layer):
    """:func:`normalise` as the first layer of every network; no weights; never in half precision."""

    def __init__(self, **kwargs: Any) -> None:
        """Take the keyword arguments of any Keras layer."""
        # In half precision the grey levels of a 12-bit radiograph would already be rounded together here.
        super().__init__(**{"dtype": full_dtype(), **kwargs})

    def call(self, image: Any) -> Any:
        """Turn a grey image (batch, height, width, 1) into (batch, height, width, 3)."""
        return normalise(image, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input's shape with three channels."""
        return (*input_shape[:-1], 3)
