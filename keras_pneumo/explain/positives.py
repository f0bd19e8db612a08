"""The positives on which heat maps are checked: pixels, true masks, patients and raw maps.

In: a run, the prepared folder it was trained on, a subset's name. Out: arrays in one order, that of the image ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import pandas as pd

from keras_pneumo.data.batches.images import images_of, open_source
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
    image_ids = outlined(run, prepared, subset)
    if not image_ids:
        raise PneumoError(
            f"{prepared.folder} has no {subset} image with a true mask, so heat maps cannot be checked. "
            "Choose another subset, or prepare data with masks."
        )
    return image_ids


def outlined(run: RunFolder, prepared: PreparedFolder, subset: str) -> list[str]:
    """As :func:`positives_of`, but an empty list where there is none."""
    image_ids = [image_id for _, group in held_out_images([run], prepared, subset) for image_id in group]
    pixels = prepared.cases.set_index("image_id")["mask_pixels"].astype(int)
    return [image_id for image_id in image_ids if pixels[image_id] > 0]


def can_be_checked(run: RunFolder, prepared: PreparedFolder) -> bool:
    """Whether positives have masks: on validation to select a heat map by, and on test to check it."""
    return not prepared.lacks_masks and all(outlined(run, prepared, subset) for subset in ("validation", "test"))


def operating_threshold(run: RunFolder) -> float | None:
    """The threshold on a classifier's probability; None for a segmenter, whose threshold is on another score."""
    return run.threshold if run.experiment.task == "classifier" else None


def image_probabilities(run: RunFolder, logits: np.ndarray) -> np.ndarray:
    """A segmenter's probabilities of any pneumothorax, by its image-level head; NaN without one."""
    if run.experiment.image_head:
        return sigmoid(logits)
    return np.full(len(logits), np.nan)


def pixels_of(prepared: PreparedFolder, image_ids: Sequence[str], size: int, as_uint8: bool = False) -> np.ndarray:
    """Images of one size as a network takes them, float32 (n, S, S, 1) in [0, 1], or as they are stored, uint8."""
    # So much memory is allowed that they are always held; the callers have verified them.
    source = open_source(prepared, image_ids, size, memory_bytes=2**62, verify=False)
    stored = images_of(source, range(len(source)))
    return stored if as_uint8 else stored.astype(np.float32) / np.float32(255)


def true_runs(prepared: PreparedFolder, image_ids: Sequence[str]) -> list[rle.Runs]:
    """True masks on the grid of 1024, as runs."""
    texts = prepared.encoded_pixels()
    return [rle.runs_of(texts[image_id]) for image_id in image_ids]


def true_masks(prepared: PreparedFolder, image_ids: Sequence[str], size: int) -> np.ndarray:
    """True masks, bool (n, S, S)."""
    return np.stack([mask_at(runs, size) for runs in true_runs(prepared, image_ids)])


def batched(image_ids: Sequence[str], size: int = BATCH) -> Iterator[list[str]]:
    """The ids batch by batch: a thousand radiographs at full size would not fit in memory as floats."""
    for start in range(0, len(image_ids), size):
        yield list(image_ids[start : start + size])


def raw_maps_of(
    model: keras.Model, prepared: PreparedFolder, image_ids: Sequence[str], size: int, method: str, stage: int
) -> RawMaps:
    """Raw maps of prepared images of one size."""
    parts = [raw_maps(model, pixels_of(prepared, batch, size), method, stage) for batch in batched(image_ids)]
    return RawMaps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def patient_numbers(prepared: PreparedFolder, image_ids: Sequence[str]) -> np.ndarray:
    """The patient of each image as a number from 0."""
    return pd.factorize(prepared.cases.set_index("image_id")["patient_id"].loc[list(image_ids)])[0]


def training_mask_density(run: RunFolder, prepared: PreparedFolder, size: int) -> np.ndarray:
    """The sum of the training masks, float32 (size, size): the best map that knows nothing of the image."""
    total = np.zeros((size, size), np.float32)
    for image_id in positives_of(run, prepared, "train"):
        total += coverage_at(true_runs(prepared, [image_id])[0], size)
    return total


def picture_size(prepared: PreparedFolder) -> int:
    """The prepared size that pictures are made from: the smallest that need not be enlarged, else the largest."""
    sizes = sorted(int(size) for size in prepared.manifest["sizes"])
    return next((size for size in sizes if size >= SIDE), sizes[-1])
