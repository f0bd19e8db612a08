"""The positives that heat maps are checked on: pixels, true masks, patients, and where pneumothoraces usually are.

In: a run, the prepared folder it was trained on, a subset's name. Out: arrays in one order, that of the image ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_pneumo.data.batches.images import open_source
from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.saliency import coverage_at, mask_at
from keras_pneumo.explain.gradcam import BATCH, RawMaps, raw_maps
from keras_pneumo.explain.pictures import SIDE
from keras_pneumo.inference.ensemble import held_out_images
from keras_pneumo.inference.predictor import sigmoid
from keras_pneumo.inference.run import RunFolder


def positives_of(run: RunFolder, prepared: PreparedFolder, subset: str) -> list[str]:
    """Image ids of a subset's positives that have a mask.

    Raises:
        PneumoError: there is none.
    """
    found = outlined(run, prepared, subset)
    if not found:
        raise PneumoError(f"{prepared.folder} has no outlined positive among its {subset} images: nothing to check.")
    return found


def outlined(run: RunFolder, prepared: PreparedFolder, subset: str) -> list[str]:
    """As :func:`positives_of`, but none where there is none."""
    ids = [image_id for _, group in held_out_images([run], prepared, subset) for image_id in group]
    pixels = prepared.cases.set_index("image_id")["mask_pixels"].astype(int)
    return [image_id for image_id in ids if pixels[image_id] > 0]


def can_be_checked(run: RunFolder, prepared: PreparedFolder) -> bool:
    """Whether there are outlined positives to choose a heat map by, on validation, and to check it on, on test."""
    return all(outlined(run, prepared, subset) for subset in ("validation", "test"))


def operating_threshold(run: RunFolder) -> float | None:
    """From which probability on a classifier says yes; None for a segmenter, whose threshold is not on this score."""
    return run.threshold if run.experiment.task == "classifier" else None


def image_probabilities(run: RunFolder, logits: np.ndarray) -> np.ndarray:
    """A segmenter's probabilities that there is any pneumothorax, by its image-level head; NaN without one."""
    if run.experiment.image_head:
        return sigmoid(logits)
    return np.full(len(logits), np.nan)


def pixels_of(prepared: PreparedFolder, image_ids: Sequence[str], size: int, as_uint8: bool = False) -> np.ndarray:
    """Images of one size as the network takes them, float32 (n, S, S, 1) in [0, 1], or as they lie on disk."""
    held = open_source(prepared, image_ids, size, memory_bytes=2**62).images
    assert held is not None  # so much memory is allowed that they are always held
    return held if as_uint8 else held.astype(np.float32) / np.float32(255)


def truth_of(prepared: PreparedFolder, image_ids: Sequence[str]) -> list[rle.Runs]:
    """True masks on the grid of 1024, as runs."""
    texts = prepared.truth.set_index("image_id")["encoded_pixels"].astype(str)
    return [rle.runs_of(texts[image_id]) for image_id in image_ids]


def masks_of(prepared: PreparedFolder, image_ids: Sequence[str], size: int) -> np.ndarray:
    """True masks, bool (n, S, S)."""
    return np.stack([mask_at(runs, size) for runs in truth_of(prepared, image_ids)])


def batches_of(image_ids: Sequence[str], size: int = BATCH) -> Iterator[list[str]]:
    """The ids a batch at a time: a thousand radiographs at full size would not fit in memory as floats."""
    for start in range(0, len(image_ids), size):
        yield list(image_ids[start : start + size])


def maps_of(model: keras.Model, prepared: PreparedFolder, image_ids: Sequence[str], side: int, *how: Any) -> RawMaps:
    """Raw maps of prepared images of one size; ``how`` is the method and the stage."""
    parts = [raw_maps(model, pixels_of(prepared, some, side), *how) for some in batches_of(image_ids)]
    return RawMaps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def patients_of(prepared: PreparedFolder, image_ids: Sequence[str]) -> np.ndarray:
    """The patient of each image as a number from 0."""
    return pd.factorize(prepared.cases.set_index("image_id")["patient_id"].loc[list(image_ids)])[0]


def usual_place(run: RunFolder, prepared: PreparedFolder, size: int) -> np.ndarray:
    """Where pneumothoraces usually are: the mean of the training masks, the best map that has seen no image."""
    total = np.zeros((size, size), np.float32)
    for image_id in positives_of(run, prepared, "train"):
        total += coverage_at(truth_of(prepared, [image_id])[0], size)
    return total


def picture_size(prepared: PreparedFolder) -> int:
    """The prepared size that pictures are made from: the smallest that need not be enlarged, else the largest."""
    sizes = sorted(int(size) for size in prepared.manifest["sizes"])
    return next((size for size in sizes if size >= SIDE), sizes[-1])
