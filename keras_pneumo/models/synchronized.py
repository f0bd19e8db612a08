"""BatchNorm over all replicas of a ``tf.distribute`` strategy, with one message forwards and one backwards.

In: each replica's own images. Out: what BatchNorm gives for the images of all replicas together, whatever the number of
images on each. Keras 3.15's ``synchronized=True`` sends three messages in each direction (a sum, a sum of squares and
an array of counts), and takes the variance as a difference of two large numbers in float32. Here a replica sends:

- forwards, its number of values per channel, their sum and their sum of squares as one float64 vector of 2 C + 1. The
  replica's own mean and variance are taken about its own mean, so they are as exact as float32 allows, and float64
  keeps that when they are merged (Chan, Golub and LeVeque, 1979).
- backwards, the gradients of offset and scale as one vector of 2 C. These two are also the replica's own part of the
  gradients of the layer's weights, which the step sums with all others.

Where TensorFlow has it (four dimensions, not float64), the fused operation does the work on each replica: one pass over
the images for the statistics, one for the output. Only TensorFlow has strategies, so only TensorFlow is used here.
"""

from __future__ import annotations

from typing import Any

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


def synchronized_batch_norm(x: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise images with the mean and variance of the images of all replicas.

    Called by every replica within a ``tf.function``; without a strategy it is BatchNorm of ``x`` alone.

    Args:
        x: (..., C), the replica's part of the batch; the number of images may differ between replicas, and be 0.
        scale: (C,), gamma.
        offset: (C,), beta.
        epsilon: added to the variance.

    Returns:
        The normalised ``x``; the mean, shape (C,); and the unbiased variance, shape (C,), of which PyTorch keeps the
        running average. Mean and variance have no gradient of their own.
    """

    @tf.custom_gradient
    def normalise(x: Any, scale: Any, offset: Any) -> tuple[Any, Any]:
        total, mean, variance = _statistics_of_all_replicas(x, scale.dtype)
        y = _normalised(x, scale, offset, mean, variance, epsilon)
        unbiased = variance * tf.cast(total / tf.maximum(total - 1, 1), variance.dtype)

        def gradient(of_y: Any, *_of_statistics: Any) -> tuple[Any, Any, Any]:
            through_x, of_scale, of_offset = _local_gradients(of_y, x, scale, mean, variance, epsilon)
            sums = sum_over_replicas(tf.concat([of_scale, of_offset], 0))
            scale_sum, offset_sum = tf.split(sums / tf.cast(tf.maximum(total, 1), sums.dtype), 2)
            # x moves mean and variance too: less (offset_sum + scale_sum * x_normalised) * scale / deviation.
            slope = scale * tf.math.rsqrt(variance + epsilon)
            through_statistics = _normalised(x, -slope * scale_sum, -slope * offset_sum, mean, variance, epsilon)
            return through_x + through_statistics, of_scale, of_offset

        return (y, mean, unbiased), gradient

    return normalise(x, scale, offset)


def sum_over_replicas(values: Any) -> Any:
    """Add up a tensor over the replicas by one message; itself where there is one replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def _statistics_of_all_replicas(x: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """The number of values per channel (a float64 scalar), and their mean and biased variance, shape (C,) each."""
    count, mean, squares = _local_statistics(x, dtype)
    mean, squares = tf.cast(mean, tf.float64), tf.cast(squares, tf.float64)
    channels = x.shape[-1]
    total, sums, squares = tf.split(
        sum_over_replicas(tf.concat([count[None], count * mean, squares + count * mean**2], 0)),
        [1, channels, channels],
    )
    mean = tf.math.divide_no_nan(sums, total)
    variance = tf.maximum(tf.math.divide_no_nan(squares, total) - mean**2, 0)
    return total[0], tf.cast(mean, dtype), tf.cast(variance, dtype)


def _local_statistics(x: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """The replica's own count (float64), mean, and sum of squares about that mean; 0 where it has no image."""
    values = tf.size(x) // x.shape[-1]
    count = tf.cast(values, tf.float64)
    if _fused(x):
        ones, nothing = tf.ones([x.shape[-1]], dtype), tf.zeros([0], dtype)
        _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=ones, offset=0 * ones, mean=nothing, variance=nothing, is_training=True
        )
        squares = variance * tf.cast(tf.maximum(values - 1, 0), dtype)  # the operation's variance is the unbiased one
        zero = 0 * ones
        return count, tf.where(values > 0, mean, zero), tf.where(values > 0, squares, zero)
    x, axes = tf.cast(x, dtype), list(range(len(x.shape) - 1))
    mean = tf.math.divide_no_nan(tf.reduce_sum(x, axes), tf.cast(values, dtype))
    return count, mean, tf.reduce_sum(tf.math.squared_difference(x, mean), axes)


def _normalised(x: Any, scale: Any, offset: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """``scale * (x - mean) / sqrt(variance + epsilon) + offset``, in the type of ``x``."""
    if _fused(x):
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
        ).y
    slope = scale * tf.math.rsqrt(variance + epsilon)
    return tf.cast((tf.cast(x, slope.dtype) - mean) * slope + offset, x.dtype)


def _local_gradients(of_y: Any, x: Any, scale: Any, mean: Any, variance: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Gradients of ``x`` with mean and variance held, and the replica's part of those of scale and offset."""
    if _fused(x) and not tf.config.list_logical_devices("GPU"):  # on a GPU that one is not deterministic
        gradients = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=of_y, x=x, scale=scale, reserve_space_1=mean, reserve_space_2=variance,
            reserve_space_3=tf.zeros([0]), epsilon=epsilon, is_training=False,
        )  # fmt: skip
        return gradients.x_backprop, gradients.scale_backprop, gradients.offset_backprop
    deviation, axes = tf.math.rsqrt(variance + epsilon), list(range(len(x.shape) - 1))
    of_y = tf.cast(of_y, scale.dtype)
    of_scale = tf.reduce_sum(of_y * (tf.cast(x, scale.dtype) - mean), axes) * deviation
    return tf.cast(of_y * scale * deviation, x.dtype), of_scale, tf.reduce_sum(of_y, axes)


def _fused(x: Any) -> bool:
    """Whether TensorFlow has a fused BatchNorm for this tensor."""
    return len(x.shape) == 4 and x.dtype in (tf.float32, tf.float16, tf.bfloat16)
