"""Measures shortcut regions (borders, text, leads, tubes) in heat maps, and accuracy with and without a chest tube.

In: heat maps, true masks, and the positions of devices where known; answers with the patients' devices. Out: tables.
A chest tube is there because a pneumothorax was treated, so a network that finds tubes scores well and finds nothing
new (Oakden-Rayner et al., arXiv 1909.12475). A region's share of the heat means something only beside its share of the
image; what belongs to the pneumothorax itself is taken out of every region first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.scoring.saliency import energy
from keras_pneumo.evaluation.scoring.statistics import (
    RESAMPLES,
    Interval,
    bca_interval,
    leave_one_out,
    mean_by_patient,
    mean_with_interval,
    resample_patients,
)

BORDER = 1 / 16
"""How deep the border reaches in, as a share of the side."""

BORDER_REGION = "border"
"""The region's name; the others are named as in the table of devices."""


def border(side: int) -> np.ndarray:
    """The border of an image: bool (side, side)."""
    deep = max(1, round(side * BORDER))
    inside = np.zeros((side, side), bool)
    inside[deep:-deep, deep:-deep] = True
    return ~inside


def region_shares(heat: np.ndarray, mask: np.ndarray, region: np.ndarray) -> tuple[float, float]:
    """Share of the heat and share of the image that a region has, less what lies in the true mask.

    Args:
        heat: float (S, S).
        mask: bool (S, S).
        region: how much of each pixel belongs to the region, 0 to 1, (S, S).
    """
    outside = region * ~mask.astype(bool)
    return energy(heat, outside), float(outside.mean())


def shares_table(
    shares: Mapping[str, Sequence[tuple[float, float]] | np.ndarray],
    patients: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean shares of each region, with the interval of heat less area by patient.

    Args:
        shares: by the region's name, for each image the share of the heat and of the image; NaN where an image has no
            such thing.
        patients: number of each image's patient, (images,).
        resamples: of the patients.
        seed: of the resamples.

    Returns:
        ``region, images, heat, area, excess, low, high``; excess is heat less area.
    """
    rows = []
    for name, pairs in shares.items():
        heat_and_area = np.asarray(pairs, float)
        measured = np.isfinite(heat_and_area[:, 0])
        excess, interval = mean_by_patient(heat_and_area[:, 0] - heat_and_area[:, 1], patients, resamples, seed)
        heat, area = heat_and_area[measured].mean(axis=0) if measured.any() else (float("nan"), float("nan"))
        rows.append((name, int(measured.sum()), heat, area, excess, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["region", "images", "heat", "area", "excess", "low", "high"])


def accuracy_by_tube(
    positive: np.ndarray,
    decision: np.ndarray,
    tube: np.ndarray,
    patients: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy with and without a chest tube on the radiograph, for positives and for negatives.

    Args:
        positive: truth, bool (images,).
        decision: the answer, bool (images,).
        tube: whether there is a tube, bool (images,).
        patients: number of each image's patient, (images,).
        resamples: of the patients.
        seed: of the resamples.

    Returns:
        ``images_of`` (positives, negatives), ``tube`` (with, without, difference), ``images``, ``right``, ``low``,
        ``high``. Right on positives is the sensitivity, on negatives the specificity.
    """
    rows: list[tuple[str, str, int, float, float, float]] = []
    right = (decision == positive).astype(float)
    for name, chosen in (("positives", positive), ("negatives", ~positive)):
        for word, group in (("with", chosen & tube), ("without", chosen & ~tube)):
            value, interval = mean_with_interval(np.where(group, right, np.nan), patients, resamples, seed)
            rows.append((name, word, int(group.sum()), value, *interval))
        both = (chosen & tube, chosen & ~tube)
        difference, interval = _difference(right, both, patients, resamples, seed)
        rows.append((name, "difference", int(chosen.sum()), difference, *interval))
    return pd.DataFrame(rows, columns=["images_of", "tube", "images", "right", "low", "high"])


def _difference(
    right: np.ndarray, groups: tuple[np.ndarray, np.ndarray], patients: np.ndarray, resamples: int, seed: int
) -> tuple[float, Interval]:
    """Mean of the first group less mean of the second, and its interval.

    There is none where a group has one patient or is all right or all wrong: resampling would show no uncertainty
    there. Both are NaN where a group is empty.
    """
    undefined = Interval(float("nan"), float("nan"))
    if not all(group.any() for group in groups):
        return float("nan"), undefined
    total = int(patients.max()) + 1
    sums = [np.bincount(patients[group], weights=right[group], minlength=total) for group in groups]
    counts = [np.bincount(patients[group], minlength=total) for group in groups]

    def of(drawn: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            first, second = ((drawn @ s) / (drawn @ c) for s, c in zip(sums, counts, strict=True))
            return first - second

    value = float(of(np.ones((1, total)))[0])
    if any(np.ptp(right[group]) == 0 or np.ptp(patients[group]) == 0 for group in groups):
        return value, undefined
    replicates = np.concatenate([of(drawn) for drawn in resample_patients(total, resamples, seed)])
    return value, bca_interval(replicates, value, np.concatenate([of(drawn) for drawn in leave_one_out(total)]))
