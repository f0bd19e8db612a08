"""From probability maps to masks, by parameters that a search fits on validation.

In: quantised maps at 1024x1024 (see :mod:`keras_pneumo.inference.maps`) and the probability that the image shows a
pneumothorax. Out: masks. The steps are those of the competition's first place, the triplet: an image has a mask if
enough pixels reach a top score, and the mask is cut at a bottom score; then components that are too small go, and an
image-level gate may forbid a mask. They exist because half of the mean Dice by the competition's rule is decided by
whether there is a mask at all.

Source: first place of SIIM-ACR 2019 (top score, minimum area, bottom score); the gate is second and fourth place's.

``postprocess.json`` holds the fitted parameters of a segmenter, or the operating threshold of a classifier. Both are
written with the best weights during the training, and fitted again when it is done, for all that predicts then (mirror
images, several checkpoints).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.maps import LEVELS, MapSet, level_histogram, true_pixels
from keras_pneumo.storage.files import fits_content_hash, read_json, with_content_hash, write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOPS = tuple(round(0.1 + 0.05 * step, 2) for step in range(18))
BOTTOMS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
AREAS = (1, 50, 100, 200, 400, 600, 1000, 1500, 2000, 3000, 5000, 8000)
COMPONENTS = (0, 50, 100, 250, 500, 1000, 2000)
"""What the search tries; areas in pixels at 1024x1024."""

GATES = 9
"""Gates tried: none, and so many even quantiles of the image-level probabilities."""

FILE = "postprocess.json"
FIGURE = "postprocess.png"

OWN_HEAD = "own head"
"""The gate's source where it is the segmenter's image head."""

INK, BEST = "#333a45", "#c2410c"


@dataclass(frozen=True)
class PostprocessingParameters:
    """How a map becomes a mask. ``gate`` 0 allows a mask whatever the image-level probability is."""

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

    @property
    def threshold(self) -> float:
        """From which probability of :func:`postprocess_maps` on an image counts as positive."""
        return self.gate if self.gate > 0 else self.top

    def mask(self, quantised: np.ndarray, image_probability: float = 1.0) -> np.ndarray:
        """The mask of one map.

        Args:
            quantised: uint8 (1024, 1024).
            image_probability: of any pneumothorax, 0 to 1.

        Returns:
            uint8 (1024, 1024), 0 or 1.
        """
        enough = np.count_nonzero(quantised >= lowest_level(self.top)) >= max(self.area, 1)
        if image_probability < self.gate or not enough:
            return np.zeros(quantised.shape, np.uint8)
        mask = (quantised >= lowest_level(self.bottom)).astype(np.uint8)
        if self.component > 1:
            _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            kept = stats[:, cv2.CC_STAT_AREA] >= self.component
            kept[0] = False
            mask = kept[labels].astype(np.uint8)
        return mask

    def score(self, counts: np.ndarray) -> np.ndarray:
        """The highest probability that at least ``area`` pixels reach: (n,) of counts (n, 2, 256).

        The image has a mask where this is at least ``top`` (and the gate allows it), so it ranks images as masks do.
        """
        enough = at_or_above(counts)[:, 0] >= max(self.area, 1)
        return np.where(enough.any(axis=1), LEVELS - 1 - np.argmax(enough[:, ::-1], axis=1), 0) / (LEVELS - 1)


def postprocess_maps(
    maps: MapSet, parameters: PostprocessingParameters, image_probability: np.ndarray | None
) -> pd.DataFrame:
    """``image_id, probability, encoded_pixels`` of some images; see :func:`postprocess_map`.

    Args:
        maps: the segmenters' maps.
        parameters: how they become masks.
        image_probability: what the gate is applied to, (n,); None where there is no such probability.
    """
    rows = []
    for number, (image_id, quantised) in enumerate(zip(maps.image_ids, maps.enlarged(), strict=True)):
        image = 1.0 if image_probability is None else float(image_probability[number])
        rows.append({"image_id": image_id, **postprocess_map(quantised, parameters, image)})
    return pd.DataFrame(rows)


def postprocess_map(
    quantised: np.ndarray, parameters: PostprocessingParameters, image_probability: float
) -> dict[str, object]:
    """``probability`` and ``encoded_pixels`` of one map, uint8 (1024, 1024).

    The probability is the image-level one where the parameters have a gate, else the score by which they rank images
    (the highest probability that enough pixels reach); ``parameters.threshold`` is its operating threshold.
    """
    score = float(parameters.score(level_histogram(quantised, np.empty(0, np.int32))[None])[0])
    return {
        "probability": image_probability if parameters.gate > 0 else score,
        "encoded_pixels": rle.encode(parameters.mask(quantised, image_probability)),
    }


def lowest_level(probability: float) -> int:
    """The lowest level whose probability is at least this one."""
    return min(math.ceil(round(probability * (LEVELS - 1), 6)), LEVELS - 1)


def at_or_above(counts: np.ndarray) -> np.ndarray:
    """Pixels at or above each level, of pixels at each level: the last axis summed from its end."""
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


@dataclass
class PixelCounts:
    """Counts of pixels from which every candidate of the search follows, so that no map need be kept.

    ``histograms`` is (n, 2, 256), see :func:`maps.level_histogram`. ``areas`` and ``overlaps`` are (n, bottoms,
    components): pixels of the mask cut at that bottom less small components, and how many of them are true.
    """

    histograms: np.ndarray
    areas: np.ndarray
    overlaps: np.ndarray
    components: tuple[int, ...]

    @property
    def true_pixels(self) -> np.ndarray:
        """Area of each true mask, (n,)."""
        return self.histograms[:, 1].sum(axis=1)


ImageCounts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""One image's rows of :class:`PixelCounts`: histogram (2, 256), areas and overlaps (bottoms, components)."""


def count_maps(maps: MapSet, prepared: PreparedFolder, components: Sequence[int] = COMPONENTS) -> PixelCounts:
    """The counts of some maps; the prepared folder knows their true masks."""
    truth = true_pixels(prepared, maps.image_ids)
    pairs = zip(maps.enlarged(), truth, strict=True)
    rows = [count_pixels(quantised, pixels, components) for quantised, pixels in pairs]
    return stack_counts(rows, components)


def count_pixels(quantised: np.ndarray, truth: np.ndarray, components: Sequence[int] = COMPONENTS) -> ImageCounts:
    """The counts of one image.

    Args:
        quantised: uint8 (1024, 1024).
        truth: positions of the true mask's pixels.
        components: least component sizes to count for; only 0 needs no search for components, and so is fast.
    """
    histogram = level_histogram(quantised, truth)
    over = at_or_above(histogram)
    areas = np.zeros((len(BOTTOMS), len(components)), np.int32)
    overlaps = np.zeros_like(areas)
    for row, bottom in enumerate(BOTTOMS):
        cut = lowest_level(bottom)
        areas[row], overlaps[row] = over[0, cut], over[1, cut]
        if over[0, cut] == 0 or max(components) <= 1:
            continue
        mask = (quantised >= cut).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        sizes = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
        sizes[0] = 0
        hits = np.bincount(labels.ravel()[truth], minlength=len(sizes)) if len(truth) else np.zeros_like(sizes)
        for column, least in enumerate(components):
            kept = sizes >= max(least, 1)
            areas[row, column], overlaps[row, column] = sizes[kept].sum(), hits[kept].sum()
    return histogram, areas, overlaps


def stack_counts(rows: Sequence[ImageCounts], components: Sequence[int] = COMPONENTS) -> PixelCounts:
    """The counts of several images as one table."""
    histograms, areas, overlaps = (np.stack(part) for part in zip(*rows, strict=True))
    return PixelCounts(histograms, areas, overlaps, tuple(components))


@dataclass(frozen=True)
class PostprocessingSearch:
    """Fitted parameters, their mean Dice on validation, and the surface of which they are the highest point."""

    parameters: PostprocessingParameters
    dice: float
    dice_positives: float
    images: int
    surface: np.ndarray
    """Mean Dice, (tops, areas, gates, bottoms, components); NaN where the bottom is above the top."""
    gates: tuple[float, ...]
    components: tuple[int, ...]


def fit_postprocessing(
    counts: PixelCounts, image_probability: np.ndarray | None = None, gate_source: str = ""
) -> PostprocessingSearch:
    """Try all parameters of the grid and keep those with the highest mean Dice by the competition's rule.

    Among equals those with the lowest top, the smallest area and no gate or component size win, in this order.

    Args:
        counts: of the validation images.
        image_probability: (n,), by the image-level head or a classifier; None tries no gate.
        gate_source: where those come from, for the record.

    Raises:
        PneumoError: there is no image.
    """
    n = len(counts.histograms)
    if n == 0:
        raise PneumoError(
            "There are no validation images to fit the postprocessing of masks on. Prepare data with validation images."
        )
    gates: tuple[float, ...] = (0.0,)
    gate_allows = np.ones((1, n), bool)
    if image_probability is not None:
        quantiles = np.quantile(image_probability, np.linspace(0.1, 0.9, GATES))
        gates = (0.0, *sorted({round(float(value), 6) for value in quantiles}))
        gate_allows = image_probability[None] >= np.array(gates)[:, None]
    over = at_or_above(counts.histograms)[:, 0]
    cuts = [lowest_level(top) for top in TOPS]
    enough = over[:, cuts].T[:, None, :] >= np.array(AREAS)[None, :, None]  # (tops, areas, n)
    has_mask = enough[:, :, None, :] & gate_allows[None, None]  # (tops, areas, gates, n)
    empty = (counts.true_pixels == 0).astype(float)
    gain = (_dice(counts) - empty[:, None, None]).reshape(n, -1)
    surface = empty.mean() + has_mask.reshape(-1, n).astype(np.float32) @ gain.astype(np.float32) / n
    surface = surface.reshape(*has_mask.shape[:3], *counts.areas.shape[1:]).astype(np.float64)
    for number, top in enumerate(TOPS):
        surface[number][:, :, [bottom > top for bottom in BOTTOMS]] = np.nan
    best = np.unravel_index(int(np.nanargmax(np.round(surface, 7))), surface.shape)
    top, area, gate, bottom, component = (int(index) for index in best)
    parameters = PostprocessingParameters(
        TOPS[top],
        AREAS[area],
        BOTTOMS[bottom],
        counts.components[component],
        gates[gate],
        gate_source if image_probability is not None and gates[gate] > 0 else "",
    )
    dice = np.where(has_mask[top, area, gate], _dice(counts)[:, bottom, component], empty)
    positive = empty == 0
    dice_positives = float(dice[positive].mean()) if positive.any() else float("nan")
    return PostprocessingSearch(parameters, float(dice.mean()), dice_positives, n, surface, gates, counts.components)


def _dice(counts: PixelCounts) -> np.ndarray:
    """Dice of each image if it gets its mask, float64 (n, bottoms, components); both empty is 1."""
    total = counts.areas + counts.true_pixels[:, None, None]
    return np.where(total == 0, 1.0, 2 * counts.overlaps / np.maximum(total, 1))


def write_postprocessing(folder: Path, search: PostprocessingSearch) -> None:
    """Write ``postprocess.json``: the parameters, and the Dice on the images that they were fitted on."""
    fitted = {"dice": search.dice, "dice_positives": search.dice_positives, "images": search.images}
    plain: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in fitted.items()}
    write_json(folder / FILE, with_content_hash({"rule": asdict(search.parameters), "fitted_on_validation": plain}))


def read_postprocessing(path: Path) -> PostprocessingParameters:
    """The parameters of a ``postprocess.json``.

    Raises:
        PneumoError: the file is missing, was changed, or holds no parameters.
    """
    try:
        record = read_json(path)
        values = record["rule"]
        _require_unchanged(record, path)
        parameters = PostprocessingParameters(**values)
        shares = (parameters.top, parameters.bottom, parameters.gate)
        areas = (parameters.area, parameters.component)
        typed = all(isinstance(area, int) for area in areas) and isinstance(parameters.gate_source, str)
        if typed and all(0 <= share <= 1 for share in shares) and min(areas) >= 0:
            return parameters
    except FileNotFoundError:
        raise PneumoError(
            f"There is no {path}. Predict a prepared folder first; that fits the postprocessing of masks."
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise PneumoError(f"{path} holds no postprocessing of masks. Predict the prepared folder again to write a new one.")


def _require_unchanged(record: dict[str, Any], path: Path) -> None:
    """Refuse a record whose values are not those that were written; one of an earlier version has no hash of them."""
    if not fits_content_hash(record):
        raise PneumoError(
            f"{path} was changed after it was written: its hash does not match. Copy it again, or predict the prepared "
            "folder again to write a new one."
        )


def write_threshold(folder: Path, threshold: float, images: int) -> None:
    """Write ``postprocess.json``: the threshold on the probability, and on how many images it was fitted."""
    record = {"threshold": threshold, "fitted_on_validation": {"images": images}}
    write_json(folder / FILE, with_content_hash(record))


def read_threshold(folder: Path) -> float | None:
    """The threshold of a folder's ``postprocess.json``; None where there is none.

    Raises:
        PneumoError: the file was changed after it was written.
    """
    try:
        record = read_json(folder / FILE)
        threshold = record["threshold"]
        _require_unchanged(record, folder / FILE)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(threshold) if isinstance(threshold, int | float) and 0 <= threshold <= 1 else None


def draw_search(search: PostprocessingSearch, path: Path, synthetic: bool = False) -> None:
    """Draw how the mean Dice changes with the parameters, so that a chance peak is seen; a PNG file.

    Three surfaces: over top and bottom score, over top score and area, and over gate and component; the rest as fitted.
    Where the images are ``synthetic``, phantoms, the picture says so.
    """
    from matplotlib.figure import Figure

    parameters = search.parameters
    top, area = TOPS.index(parameters.top), AREAS.index(parameters.area)
    gate, bottom = search.gates.index(parameters.gate), BOTTOMS.index(parameters.bottom)
    component = search.components.index(parameters.component)
    surface = search.surface
    figure = Figure(figsize=(14, 4.6), layout="constrained")  # not pyplot, which would change a notebook's backend
    axes = figure.subplots(1, 3)
    _surface(axes[0], surface[:, area, gate, :, component], "top score", TOPS, "bottom score", BOTTOMS, (top, bottom))
    _surface(axes[1], surface[:, :, gate, bottom, component], "top score", TOPS, "pixels over it", AREAS, (top, area))
    gates = [f"{value:.3f}" if value else "none" for value in search.gates]
    best = (gate, component)
    _surface(axes[2], surface[top, area, :, bottom, :], "gate", gates, "component", search.components, best)
    images = "synthetic validation images" if synthetic else "validation images"
    figure.suptitle(
        f"Mean Dice on {search.images} {images}; {search.dice:.4f} with the parameters that are kept. "
        "Research use only.",
        color=INK,
        fontsize=11,
    )
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    write_bytes(path, content.getvalue(), durable=False)


def _surface(
    axis: Axes, values: np.ndarray, x_name: str, x: object, y_name: str, y: object, best: tuple[int, int]
) -> None:
    """One surface, shape (x, y), x to the right and y upwards."""
    image = axis.imshow(values.T, origin="lower", aspect="auto", cmap="viridis")
    axis.plot(*best, "o", markersize=12, fillstyle="none", color=BEST, markeredgewidth=2)
    for name, labels, ticks, set_labels, set_name in (
        (x_name, x, axis.set_xticks, axis.set_xticklabels, axis.set_xlabel),
        (y_name, y, axis.set_yticks, axis.set_yticklabels, axis.set_ylabel),
    ):
        texts = list(map(str, labels))  # type: ignore[call-overload]
        ticks(range(len(texts)))
        set_labels(texts, fontsize=7, rotation=90 if name == x_name else 0)
        set_name(name)
    axis.figure.colorbar(image, ax=axis, shrink=0.85)
