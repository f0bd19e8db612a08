"""What a heat map has to be better than: maps of the same positives that come from elsewhere, or know nothing.

In: a run, positives, and perhaps segmenters and the PyTorch twin's maps. Out: for each kind of map one map per
positive, made when it is asked for: at full size all of them would not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from keras_pneumo.data.prepared.folder import PreparedFolder, verify_files
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.saliency import centre_prior
from keras_pneumo.explain.gradcam import RawMaps, shown
from keras_pneumo.explain.positives import batches_of, pixels_of, usual_place
from keras_pneumo.inference.ensemble import check_together, mean_maps, open_members
from keras_pneumo.inference.run import RunFolder

HEAT, TWIN, SEGMENTER, CENTRE, USUAL = "heat map", "PyTorch twin", "segmenter", "centre", "training masks"
"""Kinds of map that are scored: the last two know nothing of the image."""


def rivals(
    run: RunFolder,
    prepared: PreparedFolder,
    image_ids: list[str],
    twin: RawMaps | None,
    segmenters: Sequence[RunFolder],
) -> dict[str, Iterator[np.ndarray]]:
    """Maps, float (S, S) at the run's size, by the name of their kind, in the order of ``image_ids``."""
    size = run.experiment.image_size
    found: dict[str, Iterator[np.ndarray]] = {}
    if twin is not None:
        found[TWIN] = each_heat(twin.maps, size)
    if segmenters:
        found[SEGMENTER] = _segmented(segmenters, prepared, image_ids, size)
    found[CENTRE] = _always(centre_prior(size), len(image_ids))
    found[USUAL] = _always(usual_place(run, prepared, size), len(image_ids))
    return found


def check_segmenters(segmenters: Sequence[RunFolder], prepared: PreparedFolder) -> None:
    """Refuse a run that has no masks, or was trained on another split.

    Raises:
        PneumoError: it is so.
    """
    for one in segmenters:
        if one.experiment.task != "segmenter":
            raise PneumoError(f"{one.folder} is no segmenter, so it has no map to compare with.")
    if segmenters:
        check_together(segmenters, prepared)


def each_heat(maps: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Heat, as it is shown, of each raw map, (n, h, w)."""
    for one in maps:
        yield shown(one[None], size)[0]


def _always(heat: np.ndarray, count: int) -> Iterator[np.ndarray]:
    return (heat for _ in range(count))


def _segmented(
    segmenters: Sequence[RunFolder], prepared: PreparedFolder, image_ids: list[str], size: int
) -> Iterator[np.ndarray]:
    """The segmenters' mean probabilities of each image, brought to another size."""
    sizes = {run.experiment.image_size for run in segmenters}
    for one in sizes:
        verify_files(prepared, one, image_ids)
    members = open_members(segmenters)
    for some in batches_of(image_ids):
        pixels = {one: pixels_of(prepared, some, one) for one in sizes}
        maps, _ = mean_maps(members, pixels.__getitem__)
        for one in maps:
            method = cv2.INTER_AREA if len(one) > size else cv2.INTER_LINEAR
            yield one if len(one) == size else cv2.resize(one, (size, size), interpolation=method)
