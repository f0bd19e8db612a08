"""The slope of a score: the one place that knows how each Keras backend differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_pneumo.errors import PneumoError


def slope(score: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """A score and its gradient.

    Args:
        score: from a tensor to one score for each image, shape (B,), image by image: none depends on another's.
        x: the tensor, its first axis the images.

    Returns:
        The scores, shape (B,), and the gradient of each image's score by that image's part of ``x``, shape of ``x``.

    Raises:
        PneumoError: Keras runs on a backend without gradients.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            scores = score(x)
        return scores, tape.gradient(scores, x, unconnected_gradients="zero")
    if backend == "torch":
        # Only by methods of the tensor, since the package does not import torch.
        x = x.detach().requires_grad_(True)
        scores = score(x)
        scores.sum().backward(inputs=[x])
        return scores.detach(), x.grad
    if backend == "jax":
        import jax

        def summed(value: Any) -> tuple[Any, Any]:
            scores = score(value)
            return scores.sum(), scores

        (_, scores), gradient = jax.value_and_grad(summed, has_aux=True)(x)
        return scores, gradient
    raise PneumoError(f"Heat maps need gradients, which Keras's backend {backend!r} has not. Use tensorflow.")
