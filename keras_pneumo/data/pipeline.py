"""From a prepared folder to batches: which image comes when, and tf.data that feeds it to the network.

The order of a whole run is decided on the host by :func:`epoch_order`, a pure function of (labels, seed, epoch);
tf.data only loads, augments and prefetches what it is told, so nothing is dropped, repeated or reordered.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import tensorflow as tf

from keras_pneumo.config import Augmentation
from keras_pneumo.data.augmentation import augment, augment_masks, crop, draw_parameters
from keras_pneumo.data.prepared import Prepared
from keras_pneumo.errors import PneumoError

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.4
"""Images are held in memory, decoded, when they take at most this share of what is free; else they are read anew."""


@dataclass(frozen=True)
class Source:
    """Images (and masks) of one size, by their index in ``image_ids``.

    ``images`` is uint8 (N, S, S, 1) when all are held in memory, else None, and then ``paths`` are read when used;
    the same for masks. ``mask_paths`` is "" for a negative.
    """

    image_ids: tuple[str, ...]
    labels: np.ndarray
    size: int
    paths: tuple[str, ...]
    mask_paths: tuple[str, ...]
    images: np.ndarray | None
    masks: np.ndarray | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)


def open_source(
    prepared: Prepared, image_ids: Sequence[str], size: int, with_masks: bool = False, memory_bytes: int | None = None
) -> Source:
    """The images of ``image_ids`` at ``size``, held in memory when they fit.

    Args:
        prepared: a prepared folder.
        image_ids: which images, in which order.
        size: one of the folder's sizes, in pixels.
        with_masks: whether masks are wanted too.
        memory_bytes: most memory that decoded images may take; None: :data:`MEMORY_SHARE` of what is free.

    Raises:
        PneumoError: an image cannot be read; the message names it.
    """
    positive = prepared.cases.set_index("image_id")["pneumothorax"].astype(int)
    labels = positive.loc[list(image_ids)].to_numpy()
    paths = tuple(str(prepared.image_path(image_id, size)) for image_id in image_ids)
    mask_paths = tuple(
        str(path) if label and (path := prepared.mask_path(image_id, size)).exists() else ""
        for image_id, label in zip(image_ids, labels, strict=True)
    )
    needed = len(paths) * size * size * (2 if with_masks else 1)
    allowed = int(free_memory() * MEMORY_SHARE) if memory_bytes is None else memory_bytes
    resident = needed <= allowed
    if not resident:
        log.info("Images take %.1f GB decoded; they are read from disk as they are used.", needed / 1e9)
    images = _read_all(paths, size) if resident else None
    masks = _read_all(mask_paths, size) if resident and with_masks else None
    return Source(tuple(image_ids), labels, size, paths, mask_paths, images, masks)


def free_memory() -> int:
    """Bytes of memory that can be used without swapping; a container's limit counts, where there is one."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(free, 0)


def _read_all(paths: Sequence[str], size: int) -> np.ndarray:
    images = np.zeros((len(paths), size, size, 1), np.uint8)
    for row, path in enumerate(paths):
        if path:
            images[row, :, :, 0] = _read(path, size)
    return images


def _read(path: str, size: int) -> np.ndarray:
    pixels = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.shape != (size, size):
        raise PneumoError(f"{path} is missing or is no grey PNG of {size}x{size}. Run prepare on this folder again.")
    return pixels


def epoch_order(labels: np.ndarray, seed: int, epoch: int, positive_rate: float | None = None) -> np.ndarray:
    """Which image is drawn when in one epoch; as many draws as images.

    Args:
        labels: (n,) 0 or 1.
        seed: the experiment's seed.
        epoch: counted from 0 over the whole run.
        positive_rate: None draws every image once; else this share of the draws (rounded) is positive, and within each
            class every image is drawn n times before one is drawn n + 1 times.

    Returns:
        int64 (n,) of indices: a full permutation, not a shuffle within a buffer.

    Raises:
        PneumoError: a rate is asked for that needs a class of which there is no image.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, 1]))
    n = len(labels)
    if positive_rate is None:
        return generator.permutation(n)
    wanted_positive = round(n * positive_rate)
    drawn = []
    for label, wanted in ((1, wanted_positive), (0, n - wanted_positive)):
        members = np.flatnonzero(labels == label)
        if wanted and not len(members):
            kind = "positive" if label else "negative"
            raise PneumoError(f"positive_rate {positive_rate} draws {kind} images, but the training subset has none.")
        rounds = [generator.permutation(members) for _ in range(-(-wanted // max(len(members), 1)))]
        drawn.append(np.concatenate(rounds)[:wanted] if rounds else np.empty(0, np.int64))
    return generator.permutation(np.concatenate(drawn))


def rate_at(positive_rate: Sequence[tuple[int, float]], epoch: int) -> float | None:
    """The rate in force at ``epoch`` of (first epoch, rate) steps; None when there are no steps."""
    rate = None
    for start, value in positive_rate:
        if epoch >= start:
            rate = value
    return rate


def repeats_of(order: np.ndarray) -> np.ndarray:
    """For each draw, how often the same image was drawn before in this epoch."""
    seen: dict[int, int] = {}
    repeats = np.empty(len(order), np.int64)
    for position, image in enumerate(order.tolist()):
        repeats[position] = seen.get(image, 0)
        seen[image] = repeats[position] + 1
    return repeats


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Steps in which every image is drawn once; the batches are as equal as can be, none above ``batch_size``."""
    return -(-images // batch_size)


@dataclass(frozen=True)
class TrainingPlan:
    """What decides the order and the augmentation of a run, and nothing else."""

    seed: int
    batch_size: int
    first_epoch: int
    last_epoch: int
    """The epoch after the last one."""
    positive_rate: tuple[tuple[int, float], ...]
    augmentation: Augmentation
    with_masks: bool = False
    crop: int | None = None
    """Side of the square cut out of image and mask."""
    with_labels: bool = False
    """With masks: whether the target holds the image's label too."""
    first_step: int = 0
    """Steps of the first epoch that are done already, in a run that goes on."""
    skip: tuple[int, ...] = ()
    """Images that are drawn no more; another of the same class, drawn in turn, takes the place of each."""

    def batches(self, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(indices, parameters, noise seeds) of each batch, in order, over all epochs of the plan.

        Batches of one epoch differ in size by at most one image: a last batch of one or two images would give
        BatchNorm statistics of one or two images.
        """
        for epoch in range(self.first_epoch, self.last_epoch):
            order, parameters, noise_seeds = self.draws(labels, epoch)
            steps = self.rows(len(labels))[self.first_step if epoch == self.first_epoch else 0 :]
            for rows in steps:
                yield order[rows], parameters[rows], noise_seeds[rows]

    def rows(self, images: int) -> list[np.ndarray]:
        """Which draws of an epoch each of its steps takes."""
        return np.array_split(np.arange(images), steps_per_epoch(images, self.batch_size))

    def draws(self, labels: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indices, parameters, noise seeds) of all draws of one epoch."""
        order = epoch_order(labels, self.seed, epoch, rate_at(self.positive_rate, epoch))
        if self.skip:
            order = replaced(order, labels, self.skip)
        return order, *draw_parameters(self.augmentation, self.seed, epoch, order, repeats_of(order))


def replaced(order: np.ndarray, labels: np.ndarray, skip: Sequence[int]) -> np.ndarray:
    """``order`` with others of their class in place of the images ``skip``, so that batches keep their sizes.

    Raises:
        PneumoError: every image of a class is to be skipped.
    """
    order = order.copy()
    for label in (0, 1):
        places = np.flatnonzero(np.isin(order, skip) & (labels[order] == label))
        others = np.setdiff1d(np.flatnonzero(labels == label), skip)
        if len(places) and not len(others):
            kind = "positive" if label else "negative"
            raise PneumoError(f"All {kind} training images are to be skipped, so there is nothing left to learn from.")
        order[places] = others[places % len(others)] if len(places) else order[places]
    return order


@dataclass(frozen=True)
class Share:
    """The replicas that one worker feeds: ``count`` of ``of``, from number ``first`` on."""

    first: int
    count: int
    of: int

    def parts(self, images: int) -> list[np.ndarray]:
        """Which rows of a batch each of the worker's replicas takes; all replicas' together are every row once."""
        return np.array_split(np.arange(images), self.of)[self.first : self.first + self.count]


def training_batches(source: Source, plan: TrainingPlan, share: Share | None = None) -> tf.data.Dataset:
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


def evaluation_batches(source: Source, batch_size: int) -> tf.data.Dataset:
    """Every image once, in the order of ``source``, unchanged: Dataset of float32 (B, S, S, 1) in [0, 1].

    The last batch is as small as it comes: nothing is dropped.
    """
    load_images = _loader(source, source.paths, source.images)

    def finish(indices: tf.Tensor) -> tf.Tensor:
        return tf.cast(load_images(indices), tf.float32) / 255.0

    order = tf.data.Dataset.range(len(source)).batch(batch_size)
    return order.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def masks_of(source: Source, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """The masks of some images of a source, uint8 (n, S, S, 1), 0 outside the mask."""
    if source.masks is not None:
        return source.masks[rows]
    return _read_all([source.mask_paths[row] for row in rows], source.size)


def _loader(source: Source, paths: Sequence[str], held: np.ndarray | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from indices (B,) to uint8 pixels (B, S, S, 1)."""
    size = source.size
    if held is not None:
        with tf.device("CPU:0"):  # else a GPU would hold the whole set
            pixels = tf.constant(held)
        return lambda indices: tf.gather(pixels, indices)

    def read(indices: np.ndarray) -> np.ndarray:
        return _read_all([paths[index] for index in indices], size)

    def load(indices: tf.Tensor) -> tf.Tensor:
        batch = tf.numpy_function(read, [indices], tf.uint8)
        batch.set_shape([None, size, size, 1])
        return batch

    return load
