"""What the workers of this project's training steps have in common: the experiment and its images.

Imported when a worker is set up, with the Keras backend of that worker.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from keras_pneumo.config import CLASSIFIER, SEGMENTER, Experiment
from keras_pneumo.data.batches.images import ImageSet, open_source
from keras_pneumo.data.prepared.folder import load_prepared


def experiment_of(given: argparse.Namespace) -> Experiment:
    """The experiment that a command line of ``worker.step_parser`` means; its weights are random."""
    base = CLASSIFIER if given.task == "classifier" else SEGMENTER.replace(image_head=False)
    return base.replace(
        encoder=given.encoder, weights="random", image_size=given.size, global_batch_size=given.batch,
        precision=given.precision, schedule="constant", optimizer="adamw",
    )  # fmt: skip


def fixed_batch(given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """One batch of images and their target, float32: noise, with a square as the mask."""
    images = np.random.default_rng(0).random((given.batch, given.size, given.size, 1), np.float32)
    if given.task == "classifier":
        return images, (np.arange(given.batch) % 2).astype(np.float32)[:, None]
    masks = np.zeros_like(images)
    masks[:, : given.size // 4, : given.size // 4] = 1
    return images, masks


def training_images(experiment: Experiment, folder: Path) -> ImageSet:
    """The training images of a prepared folder, as many as make whole batches: each new shape is compiled anew."""
    prepared = load_prepared(folder)
    ids = prepared.split.loc[prepared.split["subset"] == "train", "image_id"]
    whole = len(ids) // experiment.global_batch_size * experiment.global_batch_size
    return open_source(prepared, list(ids[:whole]), experiment.image_size, experiment.task == "segmenter")
