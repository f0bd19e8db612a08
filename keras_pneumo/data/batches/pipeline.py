"""From opened images and a plan to batches: tf.data that feeds the network.

The order of a whole run is decided on the host (``order``), a pure function of (labels, seed, epoch); tf.data only
loads, augments and prefetches what it is told, so nothing is dropped, repeated or reordered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_pneumo.data.batches.augmentation import augment, augment_masks, crop
from keras_pneumo.data.batches.images import ImageSet, read_all
from keras_pneumo.data.batches.order import Share, TrainingPlan, steps_per_epoch


def training_batches(source: ImageSet, plan: TrainingPlan, share: Share | None = None) -> tf.data.Dataset:
    """Batches of all the plan's epochs, one after the other.

    Args:
        source: the training images.
        plan: which of them come when.
        share: what one worker of several replicas is fed: for each step one part of the batch for each of its replicas,
            one after the other. Parts differ by at most one image and nothing is padded: a padding row would enter
            BatchNorm's statistics.

    Returns:
        Dataset of (image, target): float32 (B, S, S, 1) in [0, 1], and the label, float32 (B, 1). With masks the target
        is the mask, float32 (B, S, S, 1), or with both ``{"mask": ..., "image": label}``. A crop's label says whether
        there is any pneumothorax in the crop; a whole image's is its own, also where its mask is too small to see.
        With a share a third part follows: float32 (B,), what each image counts: one over the whole batch's number; and
        after the plan's end its last parts come again and again.
    """
    with tf.device("CPU:0"):
        labels = tf.constant(source.labels, tf.float32)
    load_images = _loader(source, source.paths, source.images)
    load_masks = _loader(source, source.mask_paths, source.masks) if plan.with_masks else None

    def finish(
        indices: tf.Tensor, parameters: tf.Tensor, noise_seeds: tf.Tensor, weight: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        found = prepare(indices, parameters, noise_seeds)
        return found if share is None else (*found, weight)

    def prepare(indices: tf.Tensor, parameters: tf.Tensor, noise_seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = augment(plan.augmentation, load_images(indices), parameters, noise_seeds)
        if load_masks is None:
            return image, tf.gather(labels, indices)[:, None]
        mask = augment_masks(plan.augmentation, load_masks(indices), parameters)
        label = tf.gather(labels, indices)[:, None]
        if plan.crop:
            image, mask = crop(image, noise_seeds, plan.crop), crop(mask, noise_seeds, plan.crop)
            label = tf.reduce_max(mask, axis=(1, 2))
        return image, {"mask": mask, "image": label} if plan.with_labels else mask

    remaining = _shared(plan.batches(source.labels), share or Share(0, 1, 1))
    shapes: tuple[list[int | None], ...] = ([None], [None, 10], [None, 2], [None])
    types = (tf.int64, tf.float32, tf.int32, tf.float32)

    def following(_step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        drawn = tf.numpy_function(lambda _: next(remaining), [_step], types, stateful=True)
        return tuple(tf.ensure_shape(one, shape) for one, shape in zip(drawn, shapes, strict=True))

    # Not from_generator: TensorFlow 2.21 then has the C library give back freed memory at once, for the whole process,
    # and a U-Net spends most of its time in page faults.
    steps = steps_per_epoch(len(source), plan.batch_size) * (plan.last_epoch - plan.first_epoch) - plan.first_step
    # Under a strategy without an end: else every step would first ask all workers, over the network, if there is
    # another.
    numbers = tf.data.Dataset.range(steps) if share is None else tf.data.Dataset.counter()
    order = numbers.map(following)  # one after the other, so in the plan's order
    return order.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _shared(
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], share: Share
) -> Iterator[tuple[np.ndarray, ...]]:
    """The share's parts of each batch, with what each image counts."""
    parts: list[tuple[np.ndarray, ...]] = []
    for drawn in batches:
        images = len(drawn[0])
        parts = [
            (*(one[rows] for one in drawn), np.full(len(rows), 1.0 / images, np.float32))
            for rows in share.parts(images)
        ]
        yield from parts
    yield from itertools.cycle(parts)


def evaluation_batches(source: ImageSet, batch_size: int) -> tf.data.Dataset:
    """Every image once, in the order of ``source``, unchanged: Dataset of float32 (B, S, S, 1) in [0, 1].

    The last batch is as small as it comes: nothing is dropped.
    """
    load_images = _loader(source, source.paths, source.images)

    def finish(indices: tf.Tensor) -> tf.Tensor:
        return tf.cast(load_images(indices), tf.float32) / 255.0

    order = tf.data.Dataset.range(len(source)).batch(batch_size)
    return order.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _loader(source: ImageSet, paths: Sequence[str], held: np.ndarray | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from indices (B,) to uint8 pixels (B, S, S, 1)."""
    size = source.size
    if held is not None:
        with tf.device("CPU:0"):  # else a GPU would hold the whole set
            pixels = tf.constant(held)
        return lambda indices: tf.gather(pixels, indices)

    def read(indices: np.ndarray) -> np.ndarray:
        return read_all([paths[index] for index in indices], size)

    def load(indices: tf.Tensor) -> tf.Tensor:
        batch = tf.numpy_function(read, [indices], tf.uint8)
        batch.set_shape([None, size, size, 1])
        return batch

    return load
