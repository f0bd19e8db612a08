"""Scores heat maps against true masks.

In: heat, float (S, S), and the true mask, bool (S, S). Out: three scores per image, each beside what a map that is the
same everywhere would get, which for all three is exactly the mask's share of the image; means with intervals.

- pointing: whether the hottest pixel lies in the mask (the pointing game of Zhang et al., arXiv 1608.00507, without its
  tolerance of 15 pixels). Of several equally hot ones, the share that does: the chance of a hit if one is drawn.
- auprc: average precision of the pixels, ranked by heat, as Arun et al. (arXiv 2008.02766) score maps.
- energy: share of all heat that lies in the mask (Wang et al., Score-CAM, arXiv 1910.01279).

A map without any heat counts as a map that is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import cv2
import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.scoring.metrics import auprc
from keras_pneumo.evaluation.scoring.statistics import (
    RESAMPLES,
    Interval,
    all_alike,
    mean_by_patient,
    mean_with_interval,
)

MAP_SCORES = ("pointing", "auprc", "energy")

UNINFORMATIVE = 0.5
"""Mean rank correlation with the map of a network with random weights from which on a map is called uninformative: half
of the ranking of its pixels then comes from the radiograph and the architecture, not from training."""


def mask_at(runs: rle.Runs, side: int) -> np.ndarray:
    """The mask on a smaller grid, bool (side, side): pixels of which at least half lies in it.

    A mask too small to fill half of any pixel is every pixel that it touches, so that no positive is left out.
    """
    share = coverage_at(runs, side)
    inside = share >= 0.5
    return inside if inside.any() else share > 0


def coverage_at(runs: rle.Runs, side: int) -> np.ndarray:
    """How much of each pixel of a smaller grid lies in the mask: float32 (side, side), 0 to 1."""
    return cv2.resize(rle.draw(runs).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)


def score_map(heat: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The three scores of one map, by name."""
    mask = mask.astype(bool)
    if heat.max() <= heat.min():
        return dict.fromkeys(MAP_SCORES, float(mask.mean()))
    return {
        "pointing": float(mask[heat == heat.max()].mean()),
        "auprc": auprc(mask.ravel(), heat.ravel()),
        "energy": energy(heat, mask),
    }


def energy(heat: np.ndarray, share: np.ndarray) -> float:
    """Share of the heat that lies in a region, given as the share of each pixel that belongs to it (or bool).

    Of no heat at all, the region's share of the image.
    """
    total = float(heat.sum(dtype=np.float64))
    return float((heat * share).sum(dtype=np.float64) / total) if total > 0 else float(np.mean(share))


def centre_prior(side: int) -> np.ndarray:
    """A Gaussian map around the centre of the image, sigma a quarter of the side, that ignores the radiograph."""
    along = (np.arange(side) + 0.5) / side - 0.5
    bell = np.exp(-((along / 0.25) ** 2) / 2)
    return np.outer(bell, bell).astype(np.float32)


def summarise_maps(
    scores: Mapping[str, pd.DataFrame],
    chance: np.ndarray,
    patients: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Means of each kind of map, with intervals, beside chance.

    Args:
        scores: for each kind of map a table with a row per image and the columns :data:`MAP_SCORES`; the first kind is
            the one that is evaluated.
        chance: the masks' shares of their images, (images,).
        patients: number of each image's patient, (images,).
        resamples: of the patients, for the intervals.
        seed: of the resamples.

    Returns:
        A row per map and score: ``map, score, value, low, high, chance, above_chance, above_low, above_high, images,
        patients``; ``above_chance`` is the mean of value less chance, image by image, with its interval; ``ahead``,
        ``ahead_low``, ``ahead_high`` likewise of the first kind's value less this one's.
    """
    rows = []
    first = next(iter(scores.values()))
    for name, table in scores.items():
        for score in MAP_SCORES:
            values = table[score].to_numpy(float)
            value, interval = mean_with_interval(values, patients, resamples, seed)
            above, apart = mean_by_patient(values - chance, patients, resamples, seed)
            if all_alike(values):  # the bootstrap has no width, and would be sure of two images
                apart = Interval(interval.low - float(chance.mean()), interval.high - float(chance.mean()))
            own = first[score].to_numpy(float)
            ahead, lead = mean_by_patient(own - values, patients, resamples, seed)
            if all_alike(values) and all_alike(own) and ahead:
                _, other = mean_with_interval(own, patients, resamples, seed)
                lead = Interval(other.low - interval.high, other.high - interval.low)
            rows.append(
                {
                    "map": name,
                    "score": score,
                    "value": value,
                    "low": interval.low,
                    "high": interval.high,
                    "chance": float(chance.mean()) if len(chance) else float("nan"),
                    "above_chance": above,
                    "above_low": apart.low,
                    "above_high": apart.high,
                    "ahead": ahead,
                    "ahead_low": lead.low,
                    "ahead_high": lead.high,
                    "images": len(values),
                    "patients": len(np.unique(patients)),
                }
            )
    return pd.DataFrame(rows)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two maps, pixel by pixel, ties at their mean rank; 0 where a map is flat.

    0, and not "unknown", since a map that has become flat has certainly changed.
    """
    from scipy import stats

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 1.0 if np.ptp(first) == np.ptp(second) else 0.0
    ranks = [stats.rankdata(heat_map.ravel()) for heat_map in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def agreement(first: Iterable[np.ndarray], second: Iterable[np.ndarray]) -> dict[str, float]:
    """How alike two sets of heat maps of the same images are: ``rank_correlation`` (mean), ``lowest`` (of any image),
    ``difference`` (largest, of heat from 0 to 1) and ``same_peak`` (share of images with the same hottest pixel)."""
    correlations, differences, peaks = [], [], []
    for first_map, second_map in zip(first, second, strict=True):
        correlations.append(rank_correlation(first_map, second_map))
        differences.append(float(np.abs(first_map - second_map).max()))
        peaks.append(first_map.argmax() == second_map.argmax())
    return {
        "rank_correlation": float(np.mean(correlations)),
        "lowest": min(correlations),
        "difference": max(differences),
        "same_peak": float(np.mean(peaks)),
    }
