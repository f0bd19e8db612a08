"""From opened images and a plan to batches: tf.data that feeds the network.

The order of a whole run is decided beforehand (``order``). It is a pure function of (labels, seed, epoch), so the batch
of a step is a function of the step's number alone: a dataset gives the same batches each time it is iterated. Threads
load and augment the batches ahead (``ahead``); tf.data only counts, takes each finished batch and hands it on. Nothing
is dropped, repeated or reordered.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_pneumo.config import Augmentation
from keras_pneumo.data.batches.ahead import Ahead
from keras_pneumo.data.batches.assembly import Assembly, Targets, training_assembly
from keras_pneumo.data.batches.augmentation import draw_parameters
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.order import Share, TrainingPlan, epoch_order, steps_per_epoch

FINISHED = 2
"""Batches that tf.data takes over before they are asked for."""


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
    batches, steps = training_assembly(source, plan, share)
    # Not from_generator: TensorFlow 2.21 then has the C library give back freed memory at once, for the whole process,
    # and a U-Net spends most of its time in page faults.
    # Under a strategy without an end: else every step would first ask all workers, over the network, if there is
    # another.
    stop = None if share else steps
    numbers = tf.data.Dataset.range(steps) if share is None else tf.data.Dataset.counter()
    take = _taken(lambda number: batches.take(int(number), stop), source.size, plan, share is not None)
    return numbers.map(take).prefetch(FINISHED)


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
    images = len(source)
    steps = steps_per_epoch(images, batch_size)
    if shuffle:  # batches as equal as can be, as in a training
        rows = np.array_split(np.arange(images), steps)
    else:
        rows = [np.arange(start, min(start + batch_size, images)) for start in range(0, images, batch_size)]
    passes = itertools.count()
    plan = Targets(with_masks=masks)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return epoch_order(source.labels, seed, epoch) if shuffle else np.arange(images)

    def begin(number: int) -> Assembly:
        epoch, step = divmod(number, steps)
        indices = order(epoch)[rows[step]]
        if augmentation is None:
            return Assembly(source, None, indices, targets=plan)
        drawn = draw_parameters(augmentation, seed, epoch, indices, np.zeros(len(indices), np.int64))
        return Assembly(source, augmentation, indices, *drawn, targets=plan)

    batches = Ahead(begin, batch_size)

    def take(number: np.ndarray) -> tuple[np.ndarray, ...]:
        return batches.take(int(number), stop=(int(number) // steps + 1) * steps)

    def next_pass(nothing: tf.Tensor) -> tf.Tensor:
        first = tf.numpy_function(lambda _: np.int64(next(passes) * steps), [nothing], tf.int64, stateful=True)
        return tf.ensure_shape(first, [])

    # The number of a pass is drawn when an iterator is made, so each iterator has a pass of its own.
    begun = tf.data.Dataset.from_tensors(0).map(next_pass)
    numbers = begun.flat_map(lambda first: tf.data.Dataset.range(first, first + steps))
    dataset = numbers.map(_taken(take, source.size, plan))
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(FINISHED)


def evaluation_batches(source: ImageSet, batch_size: int) -> tf.data.Dataset:
    """Every image once, in the order of ``source``, unchanged: Dataset of float32 (B, S, S, 1) in [0, 1].

    The last batch is as small as it comes: nothing is dropped.
    """
    steps = steps_per_epoch(len(source), batch_size)

    def begin(number: int) -> Assembly:
        indices = np.arange(number * batch_size, min((number + 1) * batch_size, len(source)))
        return Assembly(source, None, indices, targets=None)

    batches = Ahead(begin, batch_size)
    take = _taken(lambda number: batches.take(int(number), steps), source.size, None)
    return tf.data.Dataset.range(steps).map(take).prefetch(FINISHED)


def _taken(
    take: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    size: int,
    targets: TrainingPlan | Targets | None,
    weighted: bool = False,
) -> Callable[[tf.Tensor], Any]:
    """A function from a number to a batch, for ``Dataset.map``: (image, target), with weights a third, or the image."""
    side = size if targets is None or targets.crop is None else targets.crop
    pixels, label = [None, side, side, 1], [None, 1]
    shapes: list[list[int | None]] = [pixels]
    if targets is not None:
        shapes += [pixels] if targets.with_masks else []
        shapes += [label] if targets.with_labels or not targets.with_masks else []
    shapes += [[None]] if weighted else []

    def taken(number: tf.Tensor) -> Any:
        # Called one after the other: which batch is ready when is for the threads to see to.
        values = tf.numpy_function(take, [number], [tf.float32] * len(shapes), stateful=True)
        batch = [tf.ensure_shape(value, shape) for value, shape in zip(values, shapes, strict=True)]
        if targets is None:
            return batch[0]
        both = targets.with_masks and targets.with_labels
        target = {"mask": batch[1], "image": batch[2]} if both else batch[1]
        return (batch[0], target, batch[-1]) if weighted else (batch[0], target)

    return taken
