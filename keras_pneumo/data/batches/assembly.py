"""Batches put together with NumPy and OpenCV alone: which images are in which, and what is done to each.

In: opened images and a plan. Out: the batch of each number, filled ahead by threads (``ahead``). Nothing here knows of
TensorFlow, so that whoever trains on another of Keras's backends, or without Keras, gets the same batches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from keras_pneumo.config import Augmentation
from keras_pneumo.data.batches.ahead import Ahead, aligned
from keras_pneumo.data.batches.augmentation import augment_image, augment_mask, crop_corner
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.order import Share, TrainingPlan


def training_assembly(source: ImageSet, plan: TrainingPlan, share: Share | None = None) -> tuple[Ahead, int]:
    """The batches of all the plan's epochs by their number, and how many there are.

    Args:
        source: the training images.
        plan: which of them come when.
        share: what one worker of several replicas is fed; see :func:`~.pipeline.training_batches`.

    Returns:
        ``take(number)`` of the first gives float32 arrays: images (B, S, S, 1) in [0, 1], then masks (B, S, S, 1),
        labels (B, 1), or both, as the plan says, and with a share what each image counts (B,).
    """
    rows = plan.rows(len(source))
    steps = len(rows) * (plan.last_epoch - plan.first_epoch) - plan.first_step
    replicas = share or Share(0, 1, 1)
    draws = functools.lru_cache(maxsize=2)(lambda epoch: plan.draws(source.labels, epoch))

    def begin(number: int) -> Assembly:
        """The part of a batch with this number, and what each of its images counts."""
        step, replica = divmod(number, replicas.count)
        position_in_run = min(step, steps - 1) + plan.first_step
        epoch, position = plan.first_epoch + position_in_run // len(rows), position_in_run % len(rows)
        images = rows[position]
        chosen = images[replicas.parts(len(images))[replica]]
        indices, repeats = (values[chosen] for values in draws(epoch))
        weights = np.full(len(chosen), 1.0 / len(images), np.float32) if share else None
        parameters, noise_seeds = plan.parameters(epoch, indices, repeats)
        return Assembly(source, plan.augmentation, indices, parameters, noise_seeds, plan, weights)

    return Ahead(begin, -(-plan.batch_size // replicas.of)), steps


@dataclass(frozen=True)
class Targets:
    """What comes with each image; the same names as in a :class:`TrainingPlan`."""

    with_masks: bool = False
    with_labels: bool = False
    crop: int | None = None


class Assembly:
    """A batch in the making: its arrays, and how each of its rows is loaded and changed."""

    def __init__(
        self,
        source: ImageSet,
        augmentation: Augmentation | None,
        indices: np.ndarray,
        parameters: np.ndarray | None = None,
        noise_seeds: np.ndarray | None = None,
        targets: TrainingPlan | Targets | None = None,
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
