"""Batch normalisation with PyTorch's running statistics, in TensorFlow's one fused operation where there is one.

In: float tensor (batch, ..., channels). Out: the same shape. It is a Keras ``BatchNormalization`` in its weights, names
and files. Two things differ from Keras 3.15's own layer:

- The running variance takes in the batch's unbiased variance, n / (n - 1) times the biased one that normalises, where n
  is the number of values of a channel. PyTorch does so; Keras takes the biased one.
- On TensorFlow the mean, the variance and the normalisation of images in half or single precision are one operation
  (``FusedBatchNormV3``; on a GPU cuDNN's). Keras computes them apart, which costs 12 to 33% of a training step on a CPU
  (``experiments/benchmarks/notes.md``). Double precision and other backends go the general way: the operation does not
  know them. Statistics over several replicas are those of ``models.synchronized``.

Source: Ioffe and Szegedy, arXiv 1502.03167; ``torch.nn.BatchNorm2d`` (PyTorch 2.14).
"""

from __future__ import annotations

from typing import Any

import keras

from keras_pneumo.models.synchronized import synchronized_batch_norm

BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}
"""PyTorch's defaults in Keras's terms (its momentum 0.1 weighs the new batch, Keras's 0.9 the old average)."""

_FUSED_TYPES = ("float32", "float16", "bfloat16")
"""What the fused operation computes; its sums are float32 for each."""

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


# The class keeps Keras's name, since a file of weights (.weights.h5) finds its layers by the names of their classes.
@keras.saving.register_keras_serializable(package="keras_pneumo")
class BatchNormalization(keras.layers.BatchNormalization):
    """A Keras BatchNormalization over the last axis that keeps PyTorch's running variance."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise each channel.

        Args:
            inputs: (batch, ..., channels).
            training: whether the batch's own statistics normalise, and move the running ones; a layer that does not
                learn takes the running ones all the same.
            mask: must be None.
        """
        learns = bool(training) and self.trainable
        if learns and self.synchronized:
            return self._over_replicas(inputs)
        # With running statistics its gradient is not deterministic on a GPU, and TensorFlow refuses it in a training.
        if _is_fused(inputs) and (learns or not tf.config.list_logical_devices("GPU")):
            return self._fused(inputs, learns)
        return self._from_moments(inputs) if learns else super().call(inputs, training=False)

    def _fused(self, images: Any, learns: bool) -> Any:
        """By TensorFlow's fused operation, whose new running variance is the unbiased one already."""
        statistics = self.moving_mean, self.moving_variance
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=self.gamma,
            offset=self.beta,
            mean=statistics[0],
            variance=statistics[1],
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - self.momentum,
            data_format="NHWC",
            is_training=learns,
        )
        if learns:
            statistics[0].assign(mean)
            statistics[1].assign(variance)
        return outputs

    def _over_replicas(self, inputs: Any) -> Any:
        """By the mean and the variance of the images of all replicas of a strategy."""
        kind = keras.backend.result_type(inputs.dtype, "float32")
        scale, offset = keras.ops.cast(self.gamma, kind), keras.ops.cast(self.beta, kind)
        outputs, mean, unbiased = synchronized_batch_norm(inputs, scale, offset, self.epsilon)
        self._move_statistics(mean, unbiased)
        return keras.ops.cast(outputs, self.compute_dtype)

    def _move_statistics(self, mean: Any, unbiased: Any) -> None:
        """Move the running mean and variance towards those of the batch."""
        for running, new in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            running.assign(running * self.momentum + keras.ops.cast(new, running.dtype) * (1.0 - self.momentum))

    def _from_moments(self, inputs: Any) -> Any:
        """By the mean and the variance of the batch, on any backend."""
        ops = keras.ops
        inputs = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        axes = list(range(len(inputs.shape) - 1))
        mean, variance = ops.moments(inputs, axes)
        values = ops.cast(ops.prod(ops.shape(inputs)[:-1]), variance.dtype)
        unbiased = variance * (values / ops.maximum(values - 1.0, 1.0))
        self._move_statistics(mean, unbiased)
        outputs = ops.batch_normalization(
            inputs, mean, variance, axis=-1, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return ops.cast(outputs, self.compute_dtype)


def batch_norm(x: Any, name: str, synchronized: bool = False, **options: Any) -> Any:
    """Add BatchNorm over the channels with PyTorch's momentum and epsilon.

    Args:
        x: (batch, ..., channels).
        name: of the layer.
        synchronized: whether the batch's statistics are taken over all replicas of a ``tf.distribute`` strategy.
        options: further ones of Keras's layer.
    """
    return BatchNormalization(axis=-1, name=name, synchronized=synchronized, **{**BATCH_NORM, **options})(x)


def _is_fused(inputs: Any) -> bool:
    """Whether the fused operation computes these: images on TensorFlow, not in double precision."""
    is_tensorflow = keras.backend.backend() == "tensorflow"
    return is_tensorflow and len(inputs.shape) == 4 and keras.backend.standardize_dtype(inputs.dtype) in _FUSED_TYPES
