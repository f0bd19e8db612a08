"""Surface distances between a predicted and a true mask, in millimetres.

In: true and predicted masks as COCO runs, and the side of a pixel from the files' PixelSpacing. Out: for each image the
95% Hausdorff distance and the average symmetric surface distance. A distance needs two outlines: an image with one mask
missing has none, and is counted beside the mean instead of being given some number. So these distances belong beside
the share of positives missed, never in its place.

Definitions: surface pixels are those of the mask with a neighbour (of 4) outside it. With d(A, B) the distances from
each surface pixel of A to the nearest of B, the 95% Hausdorff distance is the larger of the 95th percentiles of d(A, B)
and d(B, A), and the average symmetric surface distance the mean of both sets together (Taha and Hanbury 2015,
doi 10.1186/s12880-015-0068-x; percentiles by linear interpolation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from pycocotools import mask as coco

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.scoring.masks import mask_areas

DISTANCES = ("hd95_mm", "surface_mm")


class Distances(NamedTuple):
    """In pixels, or in millimetres once multiplied by the spacing."""

    hd95: float
    surface: float


def distances(truth: np.ndarray, prediction: np.ndarray) -> Distances:
    """Both distances between two masks, in pixels; NaN where either is empty.

    Args:
        truth: shape (height, width), non-zero inside.
        prediction: the same shape.
    """
    from scipy import ndimage

    masks = [np.asarray(mask) > 0 for mask in (truth, prediction)]
    if not all(mask.any() for mask in masks):
        return Distances(float("nan"), float("nan"))
    rows, columns = (np.flatnonzero((masks[0] | masks[1]).any(axis=axis)) for axis in (1, 0))
    # Distances between two surfaces do not look beyond the box that holds both; the rim makes its edge an outside.
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    first, second = (_surface(np.pad(mask[box], 1)) for mask in masks)
    there = ndimage.distance_transform_edt(~second)[first]
    back = ndimage.distance_transform_edt(~first)[second]
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return Distances(float(hd95), float(np.concatenate([there, back]).mean()))


def surface_table(truth: Sequence[rle.Runs], prediction: Sequence[rle.Runs], spacing_mm: np.ndarray) -> pd.DataFrame:
    """Distances of every image.

    Args:
        truth: masks, one for each image.
        prediction: the same.
        spacing_mm: side of a pixel of the masks' grid, (images,); NaN where the file does not say.

    Returns:
        A row per image: ``hd95_mm``, ``surface_mm`` (NaN without both masks or without spacing) and ``case``:
        ``measured``, ``both empty``, ``missed`` (no prediction), ``false alarm`` (no truth) or ``no spacing``.
    """
    true_area, predicted_area = mask_areas(truth), mask_areas(prediction)
    rows = []
    for number, spacing in enumerate(np.asarray(spacing_mm, float)):
        in_pixels = Distances(float("nan"), float("nan"))
        if true_area[number] and predicted_area[number]:
            case = "measured" if np.isfinite(spacing) and spacing > 0 else "no spacing"
            if case == "measured":
                in_pixels = distances(coco.decode(truth[number]), coco.decode(prediction[number]))
        else:
            case = "missed" if true_area[number] else "false alarm" if predicted_area[number] else "both empty"
        rows.append((in_pixels.hd95 * spacing, in_pixels.surface * spacing, case))
    return pd.DataFrame(rows, columns=[*DISTANCES, "case"])


def _surface(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with one of their four neighbours outside it."""
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)
