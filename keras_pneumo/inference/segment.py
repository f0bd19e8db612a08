"""From runs of the segmenter and a prepared folder to masks: maps, the rule fitted on validation, encoded pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from keras_pneumo.data.batches.images import open_source
from keras_pneumo.data.batches.pipeline import evaluation_batches
from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.inference.ensemble import asked, predict_classifiers
from keras_pneumo.inference.maps import PackedMap, enlarge, level_counts, predict_maps, quantise, true_pixels
from keras_pneumo.inference.postprocess import (
    PostprocessingParameters,
    PostprocessingSearch,
    Tally,
    fit,
    gather,
    tally_one,
)
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor, Predictor, Progress
from keras_pneumo.inference.run import RunFolder, load_predictors

OWN_HEAD = "own head"

Members = list[tuple[RunFolder, list[Predictor]]]
"""Each run with the networks that it predicts with."""


@dataclass(frozen=True)
class MapSet:
    """Maps of some images, packed, and what the image-level heads say of them, (n,) or None."""

    image_ids: list[str]
    maps: list[PackedMap]
    image_probability: np.ndarray | None


def predict_map_set(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str,
    progress: Progress | None = None,
    sharing: DistributedPredictor = SINGLE_DEVICE,
) -> MapSet:
    """The maps of one subset, each the mean over all runs that may answer, their checkpoints and mirror images.

    All networks see a batch together, so nothing is held but the batch and the packed maps. Runs of several image sizes
    are averaged at the largest of them.
    """
    groups = asked(runs, prepared, subset)
    total = sum(len(image_ids) for _, image_ids in groups)
    found = MapSet([], [], None)
    heads: list[np.ndarray] = []
    for group, image_ids in groups:
        members = open_members(group, sharing)
        sizes = sorted({run.experiment.image_size for run in group})
        batch_size = min(run.experiment.global_batch_size for run in group)
        sources = [evaluation_batches(open_source(prepared, image_ids, size), batch_size) for size in sizes]
        found.image_ids.extend(image_ids)
        for batches in zip(*sources, strict=True):
            images = {size: batch.numpy() for size, batch in zip(sizes, batches, strict=True)}
            maps, image = mean_maps(members, lambda size, images=images: images[size])  # type: ignore[misc]
            found.maps.extend(PackedMap.of(one) for one in quantise(maps))
            if image is not None:
                heads.append(image)
            if progress:
                progress(len(found.maps), total)
    return MapSet(found.image_ids, found.maps, np.concatenate(heads) if heads else None)


def open_members(runs: Sequence[RunFolder], sharing: DistributedPredictor = SINGLE_DEVICE) -> Members:
    """Load the networks of each run."""
    return [(run, load_predictors(run, sharing)) for run in runs]


def mean_maps(members: Members, images_at: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean maps, float32 (B, S, S) at the largest of the runs' sizes, and mean probabilities of the image heads.

    Every network weighs the same.

    Args:
        members: from :func:`open_members`.
        images_at: gives the batch at a size, float32 (B, size, size, 1) in [0, 1].
    """
    side = max(run.experiment.image_size for run, _ in members)
    networks = sum(len(models) for _, models in members)
    maps: np.ndarray | float = 0.0
    image: np.ndarray | float = 0.0
    heads = True
    for run, models in members:
        batch = images_at(run.experiment.image_size)
        mean, head = predict_maps(models, batch, run.experiment.flip_averaging)
        share = np.float32(len(models) / networks)
        if mean.shape[1] != side:
            mean = np.stack([cv2.resize(one, (side, side), interpolation=cv2.INTER_LINEAR) for one in mean])
        maps = maps + share * mean
        if head is None:
            heads = False
        else:
            image = image + share * head
    return np.asarray(maps, np.float32), np.asarray(image) if heads else None


def image_level(
    found: MapSet,
    prepared: PreparedFolder,
    subset: str,
    gate: Sequence[RunFolder],
    sharing: DistributedPredictor = SINGLE_DEVICE,
) -> tuple[np.ndarray | None, str]:
    """What decides at the level of the image, and its name: classifiers given for it, else the own head, else none."""
    if not gate:
        return found.image_probability, OWN_HEAD if found.image_probability is not None else ""
    table = predict_classifiers(gate, prepared, subset, sharing=sharing).set_index("image_id")["probability"]
    return table.loc[found.image_ids].to_numpy(float), gate_name(gate)


def gate_name(gate: Sequence[RunFolder]) -> str:
    """How the record names the classifiers that gate."""
    return " + ".join(run.experiment.name for run in gate)


def fit_postprocessing(
    found: MapSet, prepared: PreparedFolder, image_probability: np.ndarray | None, source: str
) -> PostprocessingSearch:
    """The best rule for masks on these images, whose truth the prepared folder knows."""
    return fit(tally_of(found, prepared), image_probability, source)


def tally_of(found: MapSet, prepared: PreparedFolder) -> Tally:
    """What the search for a rule needs to know of these maps and their truth."""
    truth = true_pixels(prepared, found.image_ids)
    rows = [tally_one(enlarge(one.levels()), pixels) for one, pixels in zip(found.maps, truth, strict=True)]
    return gather(rows)


def answers(found: MapSet, rule: PostprocessingParameters, image_probability: np.ndarray | None) -> pd.DataFrame:
    """``image_id, probability, encoded_pixels`` by a rule.

    The probability is the image-level one where the rule has a gate, else what the rule ranks images by (the highest
    score that enough pixels reach); so :func:`threshold_of` the rule is its operating threshold.
    """
    rows = []
    for number, (image_id, one) in enumerate(zip(found.image_ids, found.maps, strict=True)):
        image = 1.0 if image_probability is None else float(image_probability[number])
        rows.append({"image_id": image_id, **answer(enlarge(one.levels()), rule, image)})
    return pd.DataFrame(rows)


def answer(levels: np.ndarray, rule: PostprocessingParameters, image_probability: float) -> dict[str, object]:
    """``probability`` and ``encoded_pixels`` of one map, uint8 (1024, 1024)."""
    score = float(rule.score(level_counts(levels, np.empty(0, np.int32))[None])[0])
    return {
        "probability": image_probability if rule.gate > 0 else score,
        "encoded_pixels": rle.encode(rule.mask(levels, image_probability)),
    }


def threshold_of(rule: PostprocessingParameters) -> float:
    """From which probability of :func:`answers` on the rule says yes."""
    return rule.gate if rule.gate > 0 else rule.top


def pixel_counts(found: MapSet, prepared: PreparedFolder) -> np.ndarray:
    """Pixels at each level, all and true ones, of each image: int32 (n, 2, 256), for the scores of pixels."""
    truth = true_pixels(prepared, found.image_ids)
    pairs = zip(found.maps, truth, strict=True)
    return np.stack([level_counts(enlarge(one.levels()), pixels) for one, pixels in pairs])
