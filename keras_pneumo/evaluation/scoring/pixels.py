"""How well the pixels' scores rank, before any rule cuts a mask out of them: average precision over all pixels.

In: for each image, how many pixels have each of 256 levels of probability, of all pixels and of those truly in the mask
(on the 1024 grid). Out: the area under the precision-recall curve over the pixels of all images together, with its
interval by patient. Only positives have true pixels, but the false ones of negatives count: precision falls with them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from keras_pneumo.evaluation.scoring.statistics import (
    RESAMPLES,
    Interval,
    bca_interval,
    leave_one_out,
    resample_patients,
)


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
