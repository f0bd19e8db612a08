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
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_pneumo.config import Augmentation
from keras_pneumo.data.batches.ahead import Ahead, aligned
from keras_pneumo.data.batches.augmentation import augment_image, augment_mask, crop_corner, draw_parameters
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
    rows = plan.rows(len(source))
    steps = len(rows) * (plan.last_epoch - plan.first_epoch) - plan.first_step
    replicas = share or Share(0, 1, 1)
    draws = functools.lru_cache(maxsize=2)(lambda epoch: plan.draws(source.labels, epoch))

    def begin(number: int) -> _Assembly:
        """The part of a batch with this number, and what each of its images counts."""
        step, replica = divmod(number, replicas.count)
        position_in_run = min(step, steps - 1) + plan.first_step
        epoch, position = plan.first_epoch + position_in_run // len(rows), position_in_run % len(rows)
        images = rows[position]
        chosen = images[replicas.parts(len(images))[replica]]
        indices, repeats = (values[chosen] for values in draws(epoch))
        weights = np.full(len(chosen), 1.0 / len(images), np.float32) if share else None
        parameters, noise_seeds = plan.parameters(epoch, indices, repeats)
        return _Assembly(source, plan.augmentation, indices, parameters, noise_seeds, plan, weights)

    # Not from_generator: TensorFlow 2.21 then has the C library give back freed memory at once, for the whole process,
    # and a U-Net spends most of its time in page faults.
    # Under a strategy without an end: else every step would first ask all workers, over the network, if there is
    # another.
    batches = Ahead(begin, -(-plan.batch_size // replicas.of))
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
    plan = _Targets(with_masks=masks)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return epoch_order(source.labels, seed, epoch) if shuffle else np.arange(images)

    def begin(number: int) -> _Assembly:
        epoch, step = divmod(number, steps)
        indices = order(epoch)[rows[step]]
        if augmentation is None:
            return _Assembly(source, None, indices, targets=plan)
        drawn = draw_parameters(augmentation, seed, epoch, indices, np.zeros(len(indices), np.int64))
        return _Assembly(source, augmentation, indices, *drawn, targets=plan)

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

    def begin(number: int) -> _Assembly:
        indices = np.arange(number * batch_size, min((number + 1) * batch_size, len(source)))
        return _Assembly(source, None, indices, targets=None)

    batches = Ahead(begin, batch_size)
    take = _taken(lambda number: batches.take(int(number), steps), source.size, None)
    return tf.data.Dataset.range(steps).map(take).prefetch(FINISHED)


@dataclass(frozen=True)
class _Targets:
    """What comes with each image; the same names as in a :class:`TrainingPlan`."""

    with_masks: bool = False
    with_labels: bool = False
    crop: int | None = None


class _Assembly:
    """A batch in the making: its arrays, and how each of its rows is loaded and changed."""

    def __init__(
        self,
        source: ImageSet,
        augmentation: Augmentation | None,
        indices: np.ndarray,
        parameters: np.ndarray | None = None,
        noise_seeds: np.ndarray | None = None,
        targets: TrainingPlan | _Targets | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            source: the images.
            augmentation: None leaves images and masks as they are; else the next two are needed.
            indices: which image is in which row, (B,).
            parameters: float32 (B, 10).
            noise_seeds: int32 (B, 2).
            targets: what comes with the images; None: nothing.
            weights: what each image counts, float32 (B,); None: that is not asked for.
        """
        self._source, self._augmentation, self._indices = source, augmentation, indices
        self._parameters, self._noise_seeds, self._targets = parameters, noise_seeds, targets
        side = source.size if targets is None or targets.crop is None else targets.crop
        self._images = aligned((len(indices), side, side, 1))
        self._masks = aligned(self._images.shape) if targets is not None and targets.with_masks else None
        self._labels = source.labels[indices].astype(np.float32)[:, None]
        self._weights = weights

    def __len__(self) -> int:
        """Number of images."""
        return len(self._indices)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Image, then what the targets are and the weights, where they are asked for."""
        values = [self._images]
        if self._masks is not None:
            values.append(self._masks)
        if self._targets is not None and (self._masks is None or self._targets.with_labels):
            values.append(self._labels)
        return (*values, self._weights) if self._weights is not None else tuple(values)

    def fill(self, first: int, last: int) -> None:
        """Load and change the images ``first`` to ``last - 1``."""
        size, masks = self._source.size, self._masks
        side = self._images.shape[1]
        whole = np.empty((2, size, size), np.float32) if side != size else None
        for row in range(first, last):
            image = self._images[row, :, :, 0] if whole is None else whole[0]
            self._fill_image(row, image)
            if masks is not None:
                self._fill_mask(row, masks[row, :, :, 0] if whole is None else whole[1])
            if whole is not None and masks is not None:
                assert self._noise_seeds is not None  # there are no crops without a plan
                top, left = crop_corner(self._noise_seeds[row], (size, size), side)
                self._images[row, :, :, 0] = whole[0, top : top + side, left : left + side]
                masks[row, :, :, 0] = whole[1, top : top + side, left : left + side]
                self._labels[row] = masks[row].max()

    def _fill_image(self, row: int, out: np.ndarray) -> None:
        image = self._source.image(self._indices[row])
        if self._augmentation is None:
            np.divide(image, np.float32(255), out=out)
        else:
            assert self._parameters is not None
            assert self._noise_seeds is not None
            augment_image(self._augmentation, image, self._parameters[row], self._noise_seeds[row], out)

    def _fill_mask(self, row: int, out: np.ndarray) -> None:
        mask = self._source.mask(self._indices[row])
        if mask is None:
            out.fill(0)
        elif self._augmentation is None:
            np.divide(mask, np.float32(255), out=out)  # 0 or 1, exactly
        else:
            assert self._parameters is not None
            augment_mask(self._augmentation, mask, self._parameters[row], out)


def _taken(
    take: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    size: int,
    targets: TrainingPlan | _Targets | None,
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
