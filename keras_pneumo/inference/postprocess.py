"""From probability maps to the masks that are handed in, by a rule fitted on validation.

In: maps of levels at 1024x1024 (see :mod:`keras_pneumo.inference.maps`) and what an image-level answer says. Out:
masks. The rule is that of the competition's first place, the triplet: an image has a mask if enough pixels pass a top
score, and the mask is cut at a bottom score; then components that are too small go, and an image-level gate may keep
all shut. It exists because half of a Dice by the competition's rule is won by whether there is a mask at all.

Source: first place of SIIM-ACR 2019 (top score, minimum area, bottom score); the gate is second and fourth place's.

A classifier's operating threshold on the disk, in the file that holds a segmenter's rule for masks.

Like the rule it is fitted on validation, kept with the best weights during the training, and fitted again by all that
predicts (mirror images, several checkpoints) when the training is done.

The picture of a search: how the mean Dice on validation changes with the rule, so that a chance peak is seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.maps import LEVELS, level_counts
from keras_pneumo.storage.files import write_json

TOPS = tuple(round(0.1 + 0.05 * step, 2) for step in range(18))
BOTTOMS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
AREAS = (1, 50, 100, 200, 400, 600, 1000, 1500, 2000, 3000, 5000, 8000)
COMPONENTS = (0, 50, 100, 250, 500, 1000, 2000)
"""What the search tries; areas in pixels at 1024x1024."""

GATES = 9
"""Gates tried: none, and so many even quantiles of the image-level probabilities."""

FILE = "postprocess.json"


@dataclass(frozen=True)
class PostprocessingParameters:
    """How a map becomes a mask. ``gate`` 0 leaves it open whatever the image-level answer says."""

    top: float
    area: int
    """Pixels at 1024x1024 that must reach ``top``."""
    bottom: float
    component: int = 0
    """Connected parts (8 neighbours) of the mask with fewer pixels are dropped."""
    gate: float = 0.0
    """Least image-level probability of an image with a mask."""
    gate_source: str = ""
    """What the image-level probability comes from: ``own head``, a classifier's name, or nothing."""

    def mask(self, levels: np.ndarray, image_probability: float = 1.0) -> np.ndarray:
        """The mask of one map.

        Args:
            levels: uint8 (1024, 1024).
            image_probability: of any pneumothorax, 0 to 1.

        Returns:
            uint8 (1024, 1024), 0 or 1.
        """
        shut = image_probability < self.gate or np.count_nonzero(levels >= level(self.top)) < max(self.area, 1)
        if shut:
            return np.zeros(levels.shape, np.uint8)
        mask = (levels >= level(self.bottom)).astype(np.uint8)
        if self.component > 1:
            _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            kept = stats[:, cv2.CC_STAT_AREA] >= self.component
            kept[0] = False
            mask = kept[labels].astype(np.uint8)
        return mask

    def score(self, counts: np.ndarray) -> np.ndarray:
        """The highest probability that at least ``area`` pixels reach: (n,) of counts (n, 2, 256).

        The image has a mask where this is at least ``top`` (and the gate is open), so it ranks images as the rule does.
        """
        enough = above(counts)[:, 0] >= max(self.area, 1)
        return np.where(enough.any(axis=1), LEVELS - 1 - np.argmax(enough[:, ::-1], axis=1), 0) / (LEVELS - 1)


def level(probability: float) -> int:
    """The lowest level whose probability is at least this one."""
    return min(math.ceil(round(probability * (LEVELS - 1), 6)), LEVELS - 1)


def above(counts: np.ndarray) -> np.ndarray:
    """Pixels at or above each level, of pixels at each level: the last axis summed from its end."""
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


@dataclass
class Tally:
    """What the search needs to know of validation: sums over pixels, so that no map need be kept.

    ``counts`` is (n, 2, 256), see :func:`maps.level_counts`; ``areas`` and ``shared`` are (n, bottoms, components):
    pixels of the mask cut at that bottom less small components, and how many of them are true.
    """

    counts: np.ndarray
    areas: np.ndarray
    shared: np.ndarray
    components: tuple[int, ...]

    @property
    def true_pixels(self) -> np.ndarray:
        """Area of each true mask, (n,)."""
        return self.counts[:, 1].sum(axis=1)


def tally_one(
    levels: np.ndarray, truth: np.ndarray, components: Sequence[int] = COMPONENTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a :class:`Tally` for one image.

    Args:
        levels: uint8 (1024, 1024).
        truth: positions of the true mask's pixels.
        components: least component sizes to count for; only 0 is had without looking for components, and so fast.

    Returns:
        counts (2, 256), areas and shared (bottoms, components).
    """
    counts = level_counts(levels, truth)
    over = above(counts)
    areas = np.zeros((len(BOTTOMS), len(components)), np.int32)
    shared = np.zeros_like(areas)
    for row, bottom in enumerate(BOTTOMS):
        cut = level(bottom)
        areas[row], shared[row] = over[0, cut], over[1, cut]
        if over[0, cut] == 0 or max(components) <= 1:
            continue
        mask = (levels >= cut).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        sizes = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
        sizes[0] = 0
        hits = np.bincount(labels.ravel()[truth], minlength=len(sizes)) if len(truth) else np.zeros_like(sizes)
        for column, least in enumerate(components):
            kept = sizes >= max(least, 1)
            areas[row, column], shared[row, column] = sizes[kept].sum(), hits[kept].sum()
    return counts, areas, shared


def gather(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], components: Sequence[int] = COMPONENTS) -> Tally:
    """The rows of :func:`tally_one` as one table."""
    counts, areas, shared = (np.stack(part) for part in zip(*rows, strict=True))
    return Tally(counts, areas, shared, tuple(components))


@dataclass(frozen=True)
class PostprocessingSearch:
    """A fitted rule, its mean Dice on validation, and the surface that it is the top of."""

    rule: PostprocessingParameters
    dice: float
    dice_positives: float
    images: int
    surface: np.ndarray
    """Mean Dice, (tops, areas, gates, bottoms, components); NaN where the bottom is above the top."""
    gates: tuple[float, ...]
    components: tuple[int, ...]


def fit(tally: Tally, image_probability: np.ndarray | None = None, gate_source: str = "") -> PostprocessingSearch:
    """Try every rule of the grid; the one with the highest mean Dice by the competition's rule wins.

    Among equals the one with the lowest top, the smallest area and no gate or component rule wins, in this order.

    Args:
        tally: of the validation images.
        image_probability: (n,), by the image-level head or a classifier; None tries no gate.
        gate_source: where those come from, for the record.
    """
    n = len(tally.counts)
    if n == 0:
        raise PneumoError("There are no validation images to fit a rule for masks on.")
    gates: tuple[float, ...] = (0.0,)
    opened_by_gate = np.ones((1, n), bool)
    if image_probability is not None:
        quantiles = np.quantile(image_probability, np.linspace(0.1, 0.9, GATES))
        gates = (0.0, *sorted({round(float(value), 6) for value in quantiles}))
        opened_by_gate = image_probability[None] >= np.array(gates)[:, None]
    over = above(tally.counts)[:, 0]
    cuts = [level(top) for top in TOPS]
    enough = over[:, cuts].T[:, None, :] >= np.array(AREAS)[None, :, None]  # (tops, areas, n)
    opened = enough[:, :, None, :] & opened_by_gate[None, None]  # (tops, areas, gates, n)
    empty = (tally.true_pixels == 0).astype(float)
    gain = (_dice(tally) - empty[:, None, None]).reshape(n, -1)
    surface = empty.mean() + opened.reshape(-1, n).astype(np.float32) @ gain.astype(np.float32) / n
    surface = surface.reshape(*opened.shape[:3], *tally.areas.shape[1:]).astype(np.float64)
    for number, top in enumerate(TOPS):
        surface[number][:, :, [bottom > top for bottom in BOTTOMS]] = np.nan
    best = np.unravel_index(int(np.nanargmax(np.round(surface, 7))), surface.shape)
    top, area, gate, bottom, component = (int(one) for one in best)
    rule = PostprocessingParameters(
        TOPS[top],
        AREAS[area],
        BOTTOMS[bottom],
        tally.components[component],
        gates[gate],
        gate_source if image_probability is not None and gates[gate] > 0 else "",
    )
    dice = np.where(opened[top, area, gate], _dice(tally)[:, bottom, component], empty)
    positive = empty == 0
    found = float(dice[positive].mean()) if positive.any() else float("nan")
    return PostprocessingSearch(rule, float(dice.mean()), found, n, surface, gates, tally.components)


def _dice(tally: Tally) -> np.ndarray:
    """Dice of each image whose mask is open, float64 (n, bottoms, components); both empty is 1."""
    total = tally.areas + tally.true_pixels[:, None, None]
    return np.where(total == 0, 1.0, 2 * tally.shared / np.maximum(total, 1))


def write_postprocessing(folder: Path, search: PostprocessingSearch) -> None:
    """Write ``postprocess.json``: the rule, and what it was worth on the images it was fitted on."""
    fitted = {"dice": search.dice, "dice_positives": search.dice_positives, "images": search.images}
    plain: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in fitted.items()}
    write_json(folder / FILE, {"rule": asdict(search.rule), "fitted_on_validation": plain})


def read_postprocessing(path: Path) -> PostprocessingParameters:
    """The rule of a ``postprocess.json``.

    Raises:
        PneumoError: there is none, or it is not one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["rule"]
        rule = PostprocessingParameters(**values)
        numbers = (rule.top, rule.bottom, rule.gate)
        whole = isinstance(rule.area, int) and isinstance(rule.component, int) and isinstance(rule.gate_source, str)
        if whole and all(0 <= number <= 1 for number in numbers) and min(rule.area, rule.component) >= 0:
            return rule
    except FileNotFoundError:
        raise PneumoError(
            f"There is no {path}. Predict a prepared folder first; that fits the rule for masks."
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise PneumoError(f"{path} holds no rule for masks. Predict the prepared folder again; that writes it anew.")


def write_threshold(folder: Path, threshold: float, images: int) -> None:
    """Write ``postprocess.json``: the threshold on the probability, and on how many images it was fitted."""
    write_json(folder / FILE, {"threshold": threshold, "fitted_on_validation": {"images": images}})


def read_threshold(folder: Path) -> float | None:
    """The threshold of a folder's ``postprocess.json``; None where there is none."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["threshold"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) and 0 <= found <= 1 else None
