"""Dice, IoU and areas of masks, computed on run-length codes.

In: true and predicted masks as COCO runs, one each per image. Out: exact pixel areas, Dice and IoU per image, and the
competition's mean Dice taken apart, because empty masks for all images already score 0.7886. Empty masks score as
in the competition: both empty scores 1, one empty scores 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.statistics import (
    RESAMPLES,
    Interval,
    bca_interval,
    leave_one_out,
    resample_patients,
)
from keras_pneumo.storage.tables import column_name, listed

SIZE_CUTS = (4096, 16384)
"""Pixels at 1024x1024 (0.4% and 1.6% of the image) that divide small, medium and large masks; about a quarter of SIIM's
positives are small and three tenths large."""

SIZES = ("small", "medium", "large")


Mask = np.ndarray | str
"""One mask: an array (H, W) of 0 and 1 (or 0 and 255, or bool), or an EncodedPixels text on the 1024x1024 grid."""


@overload
def dice(truth: str, prediction: Mask) -> float: ...
@overload
def dice(truth: np.ndarray, prediction: Mask) -> Any: ...
@overload
def dice(truth: list[Any] | tuple[Any, ...], prediction: list[Any] | tuple[Any, ...]) -> np.ndarray: ...
@overload
def dice(truth: pd.DataFrame, prediction: pd.DataFrame) -> pd.Series: ...
def dice(truth: Any, prediction: Any) -> float | np.ndarray | pd.Series:
    """Dice of predicted masks: 2 x shared pixels / (true + predicted pixels); 1 where both are empty, 0 where one is.

    Args:
        truth: an array (H, W), an EncodedPixels text, a list of N of these, an array (N, H, W), or a table with
            ``image_id`` and ``encoded_pixels`` (several rows of one image are united).
        prediction: the same for the prediction. A text and an array go together where the array is 1024x1024.

    Returns:
        A float for one mask; float64 (N,) for a list or an array (N, H, W); a Series by image id for tables, in the
        order of the truth. For a mean with its interval by patient see :func:`keras_pneumo.evaluation.compare.score`.

    Raises:
        PneumoError: the two have different shapes, lengths or images, or an array is no mask.

    Example:
        >>> import numpy as np
        >>> truth, prediction = np.zeros((4, 4)), np.zeros((4, 4))
        >>> kp.dice(truth, prediction)
        1.0
        >>> truth[0, :3] = 1
        >>> prediction[0, 2:] = 1
        >>> kp.dice(truth, prediction)
        0.4
    """
    if isinstance(truth, pd.DataFrame) or isinstance(prediction, pd.DataFrame):
        true_runs, predicted_runs = _runs_by_image(truth, "truth"), _runs_by_image(prediction, "prediction")
        differing = sorted(set(true_runs) ^ set(predicted_runs))
        if differing:
            raise PneumoError(
                f"Truth and prediction are of different images; {listed(differing)} are only in one. "
                "Give both the same images."
            )
        runs = [predicted_runs[image_id] for image_id in true_runs]
        return pd.Series(overlap(list(true_runs.values()), runs).dice.to_numpy(), pd.Index(true_runs, name="image_id"))
    if _is_several(truth) or _is_several(prediction):
        if not (_is_several(truth) and _is_several(prediction)) or len(truth) != len(prediction):
            raise PneumoError("Truth and prediction must be two masks, or two lists of equally many masks.")
        return np.array([_dice_of_pair(*pair) for pair in zip(truth, prediction, strict=True)], float)
    return _dice_of_pair(truth, prediction)


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
    return np.array([rle.area(mask_runs) for mask_runs in runs], np.int64)


def size_of(true_pixels: np.ndarray) -> np.ndarray:
    """``small``, ``medium`` or ``large`` for each true mask, and ``''`` for none."""
    names = np.array(SIZES)[np.searchsorted(SIZE_CUTS, true_pixels, "right")]
    return np.where(true_pixels > 0, names, "")


def parts(true_pixels: np.ndarray, predicted_pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The images that each part of the Dice averages over, as bool arrays of shape (images,).

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
    """The mean Dice and its parts, from the table of :func:`overlap`; NaN for a mean over nothing.

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


def pixel_auprc(
    counts: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, Interval]:
    """Average precision of all pixels, and its interval over patients.

    Args:
        counts: pixels at each level, all and true ones: (images, 2, levels), levels rising.
        patients: patient number from 0, (images,).
        resamples: number of resamples of the patients.
        seed: of the resamples.
    """
    total = int(patients.max()) + 1
    sums = np.zeros((total, *counts.shape[1:]))
    np.add.at(sums, patients, counts)
    value = float(average_precision(sums.sum(axis=0)[None])[0])
    flat = sums.reshape(total, -1)

    def over(draws: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([average_precision((drawn @ flat).reshape(-1, *counts.shape[1:])) for drawn in draws])

    return value, bca_interval(over(resample_patients(total, resamples, seed)), value, over(leave_one_out(total)))


def average_precision(counts: np.ndarray) -> np.ndarray:
    """Average precision of pixels, of counts (..., 2, levels) as above; NaN where no pixel is true."""
    over = np.asarray(counts, float)[..., ::-1].cumsum(axis=-1)
    true, every = over[..., 1, :], over[..., 0, :]
    gained = np.diff(true, axis=-1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(gained * true / np.maximum(every, 1), axis=-1) / true[..., -1]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _is_several(masks: Any) -> bool:
    return masks.ndim == 3 if isinstance(masks, np.ndarray) else not (isinstance(masks, str) or rle.is_empty(masks))


def _dice_of_pair(truth: Any, prediction: Any) -> float:
    if not isinstance(truth, np.ndarray) and not isinstance(prediction, np.ndarray):
        return float(overlap([rle.runs_of(truth)], [rle.runs_of(prediction)]).dice.iloc[0])
    true, predicted = _drawn(truth), _drawn(prediction)
    if true.shape != predicted.shape:
        raise PneumoError(
            f"The true mask has the shape {true.shape}, the predicted one {predicted.shape}. "
            "Bring both to the same shape."
        )
    total = int(true.sum()) + int(predicted.sum())
    return 2 * int((true & predicted).sum()) / total if total else 1.0


def _drawn(mask: Any) -> np.ndarray:
    """A mask as a bool array (H, W)."""
    if not isinstance(mask, np.ndarray):
        return rle.decode(mask) > 0
    if mask.ndim != 2:
        raise PneumoError(
            f"A mask has two dimensions (rows, columns), but this array has the shape {mask.shape}. Give one mask."
        )
    inside = mask != 0
    if mask.dtype != bool and not (np.isin(mask[inside], 1).all() or np.isin(mask[inside], 255).all()):
        raise PneumoError(
            f"A mask holds only 0 and 1 (or 0 and 255), but this array goes from {mask.min():g} to {mask.max():g}. "
            "Cut probabilities at a threshold first."
        )
    return inside


def _runs_by_image(table: Any, name: str) -> dict[str, rle.Runs]:
    """The united mask of each image of a table, in the order of the images."""
    if not isinstance(table, pd.DataFrame):
        raise PneumoError("Truth and prediction must both be tables, or both be masks.")
    columns = {column_name(str(column)): column for column in table.columns}
    missing = [column for column in ("imageid", "encodedpixels") if column not in columns]
    if missing:
        raise PneumoError(
            f"The table of the {name} needs the columns image_id and encoded_pixels; it has "
            f"{', '.join(map(str, table.columns))}."
        )
    by_image: dict[str, list[rle.Runs]] = {}
    cells = zip(table[columns["imageid"]].astype(str).tolist(), table[columns["encodedpixels"]].tolist(), strict=True)
    for image_id, text in cells:
        parts = by_image.setdefault(image_id, [])
        if not rle.is_empty(text):  # most images of a data set are negative
            parts.append(rle.runs_of(text))
    empty = rle.runs_of(rle.EMPTY)
    return {image_id: rle.unite_runs(parts) if parts else empty for image_id, parts in by_image.items()}
