"""How good outlines are, counted on runs without drawing a mask.

In: true and predicted masks as COCO runs, one each per image. Out: exact pixel areas, Dice and IoU per image, and the
competition's mean Dice taken apart, since 0.7886 of it is had by outlining nothing at all. Rule for empty masks (the
competition's): both empty scores 1, one empty scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle

SIZE_CUTS = (4096, 16384)
"""Pixels at 1024x1024 (0.4% and 1.6% of the image) that part small, medium and large masks; about a quarter of SIIM's
positives are small and three tenths large."""

SIZES = ("small", "medium", "large")


def overlap(
    truth: Sequence[rle.Runs], prediction: Sequence[rle.Runs], true_area: np.ndarray | None = None
) -> pd.DataFrame:
    """Areas and overlap of each pair of masks; ``true_area`` may be given when it is known.

    Returns:
        A row per image: ``true_pixels``, ``predicted_pixels``, ``shared_pixels`` (int64), ``dice`` and ``iou`` (0..1).
    """
    true_area = mask_areas(truth) if true_area is None else true_area
    predicted_area = mask_areas(prediction)
    shared = np.zeros(len(true_area), np.int64)
    for index in np.flatnonzero((true_area > 0) & (predicted_area > 0)).tolist():
        shared[index] = rle.intersection_area(truth[index], prediction[index])
    total = true_area + predicted_area
    union = total - shared
    empty = total == 0
    return pd.DataFrame(
        {
            "true_pixels": true_area,
            "predicted_pixels": predicted_area,
            "shared_pixels": shared,
            "dice": np.where(empty, 1.0, 2 * shared / np.where(empty, 1, total)),
            "iou": np.where(empty, 1.0, shared / np.where(empty, 1, union)),
        }
    )


def mask_areas(runs: Sequence[rle.Runs]) -> np.ndarray:
    """Number of pixels of each mask: int64, shape (images,)."""
    # One by one: pycocotools 2.0.11 refuses lists longer than 255 under numpy 2.
    return np.array([rle.area(one) for one in runs], np.int64)


def size_of(true_pixels: np.ndarray) -> np.ndarray:
    """``small``, ``medium`` or ``large`` for each true mask, and ``''`` for none."""
    names = np.array(SIZES)[np.searchsorted(SIZE_CUTS, true_pixels, "right")]
    return np.where(true_pixels > 0, names, "")


def parts(true_pixels: np.ndarray, predicted_pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Which images each part of the Dice is a mean over, as bool arrays of shape (images,).

    ``negatives`` and ``positives`` by truth; ``found``: positives with any predicted pixel; ``positives_small`` and so
    on by size of the true mask.
    """
    positive = true_pixels > 0
    sizes = size_of(true_pixels)
    return {
        "positives": positive,
        "negatives": ~positive,
        "found": positive & (predicted_pixels > 0),
        **{f"positives_{name}": sizes == name for name in SIZES},
    }


def dice_parts(table: pd.DataFrame) -> dict[str, float]:
    """The mean Dice and what it is made of, from the table of :func:`overlap`; NaN for a mean over nothing.

    ``dice``, ``iou`` over all images; ``dice_positives``, ``iou_positives`` over positives (a missed one counts 0);
    ``dice_found`` over positives with any outline; ``negatives_left_empty`` and ``positives_missed`` as shares;
    ``dice_small``, ``dice_medium``, ``dice_large`` by size of the true mask.
    """
    which = parts(table.true_pixels.to_numpy(), table.predicted_pixels.to_numpy())
    empty = (table.predicted_pixels == 0).to_numpy()
    dice, iou = table.dice.to_numpy(), table.iou.to_numpy()
    return {
        "dice": _mean(dice),
        "iou": _mean(iou),
        "dice_positives": _mean(dice[which["positives"]]),
        "iou_positives": _mean(iou[which["positives"]]),
        "dice_found": _mean(dice[which["found"]]),
        "negatives_left_empty": _mean(empty[which["negatives"]]),
        "positives_missed": _mean(empty[which["positives"]]),
        **{f"dice_{name}": _mean(dice[which[f"positives_{name}"]]) for name in SIZES},
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
