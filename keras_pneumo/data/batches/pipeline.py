"""From opened images and a plan to batches: tf.data that feeds the network.

The order of a whole run is decided on the host (``order``). It is a pure function of (labels, seed, epoch), so the
batch of a step is a function of the step's number alone: a dataset gives the same batches each time it is iterated.
tf.data only loads, augments and prefetches what it is told. Nothing is dropped, repeated or reordered.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_pneumo.config import NO_AUGMENTATION, Augmentation
from keras_pneumo.data.batches.augmentation import IDENTITY, augment, augment_masks, crop, draw_parameters
from keras_pneumo.data.batches.images import ImageSet, read_all
from keras_pneumo.data.batches.order import Share, TrainingPlan, epoch_order, steps_per_epoch

Draws = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices, augmentation parameters and noise seeds of some draws."""


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
        after the plan's end its last parts come again and again. Without a share the dataset knows its cardinality.
    """
    rows = plan.rows(len(source))
    steps = len(rows) * (plan.last_epoch - plan.first_epoch) - plan.first_step
    replicas = share or Share(0, 1, 1)
    draws = functools.lru_cache(maxsize=2)(lambda epoch: plan.draws(source.labels, epoch))

    def part(number: int) -> tuple[np.ndarray, ...]:
        """The part of a batch with this number, and what each of its images counts."""
        step, replica = divmod(number, replicas.count)
        epoch, position = divmod(min(step, steps - 1) + plan.first_step, len(rows))
        images = rows[position]
        chosen = images[replicas.parts(len(images))[replica]]
        weights = np.full(len(chosen), 1.0 / len(images), np.float32)
        return (*(values[chosen] for values in draws(plan.first_epoch + epoch)), weights)

    assemble = _assembly(source, plan)
    types = (tf.int64, tf.float32, tf.int32, tf.float32)
    shapes: tuple[list[int | None], ...] = ([None], [None, 10], [None, 2], [None])

    def numbered(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        drawn = tf.numpy_function(part, [number], types, stateful=True)
        return tuple(tf.ensure_shape(values, shape) for values, shape in zip(drawn, shapes, strict=True))

    def finish(
        indices: tf.Tensor, parameters: tf.Tensor, noise_seeds: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        batch = assemble(indices, parameters, noise_seeds)
        return batch if share is None else (*batch, weights)

    # Not from_generator: TensorFlow 2.21 then has the C library give back freed memory at once, for the whole process,
    # and a U-Net spends most of its time in page faults.
    # Under a strategy without an end: else every step would first ask all workers, over the network, if there is
    # another.
    numbers = tf.data.Dataset.range(steps) if share is None else tf.data.Dataset.counter()
    return (
        numbers.map(numbered)
        .map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def labelled_batches(
    source: ImageSet,
    batch_size: int,
    masks: bool = False,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    shuffle: bool = False,
) -> tf.data.Dataset:
    """Every image once in each pass, with its target; for a notebook's own ``model.fit`` and ``model.predict``.

    The dataset can be iterated any number of times. Each new pass is the next epoch: the order and the augmentation
    are the same functions of (seed, epoch, image) by which a training draws them. Without ``shuffle`` the images
    come in the order of ``source``, and the last batch is as small as it comes.

    Args:
        source: the images.
        batch_size: images in a batch, at most.
        masks: whether the target is the mask; else it is the label.
        augmentation: how images and masks are changed; None: not at all.
        seed: of order and augmentation.
        shuffle: whether each pass has an order of its own.

    Returns:
        Dataset of (image, target): float32 (B, S, S, 1) in [0, 1]; target float32 (B, 1), or the mask (B, S, S, 1).
        It knows its cardinality.
    """
    changes = augmentation or NO_AUGMENTATION
    images = len(source)
    steps = steps_per_epoch(images, batch_size)
    if shuffle:  # batches as equal as can be, as in a training
        rows = np.array_split(np.arange(images), steps)
    else:
        rows = [np.arange(start, min(start + batch_size, images)) for start in range(0, images, batch_size)]
    passes = itertools.count()

    @functools.lru_cache(maxsize=2)
    def draws(epoch: int) -> Draws:
        order = epoch_order(source.labels, seed, epoch) if shuffle else np.arange(images)
        if augmentation is None:
            return order, np.tile(IDENTITY, (images, 1)), np.zeros((images, 2), np.int32)
        return order, *draw_parameters(augmentation, seed, epoch, order, np.zeros(images, np.int64))

    def drawn(epoch: int, step: int) -> Draws:
        indices, parameters, noise_seeds = draws(int(epoch))
        chosen = rows[step]
        return indices[chosen], parameters[chosen], noise_seeds[chosen]

    types = (tf.int64, tf.float32, tf.int32)
    shapes: tuple[list[int | None], ...] = ([None], [None, 10], [None, 2])

    def one_pass(epoch: tf.Tensor) -> tf.data.Dataset:
        def numbered(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            values = tf.numpy_function(drawn, [epoch, step], types, stateful=True)
            return tuple(tf.ensure_shape(value, shape) for value, shape in zip(values, shapes, strict=True))

        return tf.data.Dataset.range(steps).map(numbered)

    plan = TrainingPlan(seed, batch_size, 0, 1, (), changes, with_masks=masks)

    def next_epoch(nothing: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(
            tf.numpy_function(lambda _: np.int64(next(passes)), [nothing], tf.int64, stateful=True), []
        )

    begun = tf.data.Dataset.from_tensors(0).map(next_epoch)
    draws_of_steps = begun.flat_map(one_pass)
    batches = draws_of_steps.map(_assembly(source, plan), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(tf.data.AUTOTUNE)


def _assembly(
    source: ImageSet, plan: TrainingPlan
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]:
    """A function from draws to (image, target), as the plan wants them."""
    with tf.device("CPU:0"):
        labels = tf.constant(source.labels, tf.float32)
    load_images = _loader(source, source.paths, source.images)
    load_masks = _loader(source, source.mask_paths, source.masks) if plan.with_masks else None

    def assemble(indices: tf.Tensor, parameters: tf.Tensor, noise_seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = augment(plan.augmentation, load_images(indices), parameters, noise_seeds)
        if load_masks is None:
            return image, tf.gather(labels, indices)[:, None]
        mask = augment_masks(plan.augmentation, load_masks(indices), parameters)
        label = tf.gather(labels, indices)[:, None]
        if plan.crop:
            image, mask = crop(image, noise_seeds, plan.crop), crop(mask, noise_seeds, plan.crop)
            label = tf.reduce_max(mask, axis=(1, 2))
        return image, {"mask": mask, "image": label} if plan.with_labels else mask

    return assemble


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
