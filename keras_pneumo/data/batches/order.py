"""The order of images in a training, and each replica's part: pure functions of (labels, seed, epoch).

In: labels and a seed. Out: for each step the images' indices, what augments them, and each replica's part. A run that
goes on needs no more of the past than two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_pneumo.config import Augmentation
from keras_pneumo.data.batches.augmentation import draw_parameters
from keras_pneumo.errors import PneumoError


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

    def rows(self, images: int) -> list[np.ndarray]:
        """Which draws of an epoch each of its steps takes.

        Steps of one epoch differ in size by at most one image: a last batch of one or two images would give
        BatchNorm statistics of one or two images.
        """
        return np.array_split(np.arange(images), steps_per_epoch(images, self.batch_size))

    def draws(self, labels: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices, how often each came before) of all draws of one epoch; see :meth:`parameters` for some of them."""
        order = epoch_order(labels, self.seed, epoch, rate_at(self.positive_rate, epoch))
        if self.skip:
            order = replaced(order, labels, self.skip)
        return order, repeats_of(order)

    def parameters(self, epoch: int, images: np.ndarray, repeats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(parameters, noise seeds) of some draws of an epoch; see :func:`draw_parameters`."""
        return draw_parameters(self.augmentation, self.seed, epoch, images, repeats)


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
            raise PneumoError(
                f"All {kind} training images are to be skipped, so there is nothing left to learn from. "
                "Check these images, or lower the learning rate."
            )
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
