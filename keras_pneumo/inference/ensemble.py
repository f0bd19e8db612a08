"""Several runs that predict together: which runs may do so, on which images, and the mean of what they predict.

In: finished runs of one task, of one fold or of several, and images. Out: each image's mean probability, or its mean
probability map. What is fitted on validation (the threshold, the postprocessing of masks) needs predictions by networks
that have not learnt from an image: each validation image is predicted only by the runs that held it out. Test images,
which no run has learnt from, are predicted by all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from keras_pneumo.data.batches.images import open_source
from keras_pneumo.data.batches.pipeline import evaluation_batches
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.maps import MapSet, PackedMap, image_shapes, quantise
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor, Predictor, predict_passes
from keras_pneumo.inference.run import RunFolder, load_predictors
from keras_pneumo.storage.workers import Progress

Members = list[tuple[RunFolder, list[Predictor]]]
"""Each run with the networks that it predicts with."""

OpenedRuns = dict[Path, list[Predictor]]
"""The networks of runs that are loaded already, by run folder."""

ImagesAt = Callable[[int], np.ndarray]
"""From an image size to one batch of images at that size, float32 (B, size, size, 1) in [0, 1]."""


ALL = "all"
"""Every image of a prepared folder, whatever its subset."""


def check_together(runs: Sequence[RunFolder], prepared: PreparedFolder | None = None) -> None:
    """Refuse runs that cannot predict together, or not on this prepared folder.

    Raises:
        PneumoError: they are of several tasks or splits, some have an image head and others not, or the folder has
            another split, so that training patients could be among those predicted.
    """
    first = runs[0]
    for other in runs[1:]:
        for name in ("task", "image_head"):
            if getattr(other.experiment, name) != getattr(first.experiment, name):
                raise PneumoError(
                    f"{other.folder} and {first.folder} cannot be predicted together: they differ in {name} "
                    f"({getattr(other.experiment, name)} and {getattr(first.experiment, name)})."
                )
    for run in runs:
        split = str(run.record.get("split_sha256"))
        if prepared is not None and split != prepared.manifest["split_sha256"]:
            raise PneumoError(
                f"{prepared.folder} has the split {prepared.manifest['split_sha256'][:12]}, but {run.folder} was "
                f"trained on {split[:12]}: its test patients may have been trained on. Use the same data."
            )
        if split != str(first.record.get("split_sha256")):
            raise PneumoError(
                f"{run.folder} and {first.folder} were trained on different splits: each may have learnt from the "
                "other's test patients. Predict them apart."
            )


def check_gate(gate: Sequence[RunFolder], runs: Sequence[RunFolder]) -> None:
    """Refuse runs that cannot decide for segmenters whether an image may have a mask.

    Raises:
        PneumoError: one is not a classifier, or they held out other folds, so that the postprocessing would be fitted
            on images that the gate has learnt from.
    """
    for run in gate:
        if run.experiment.task != "classifier":
            raise PneumoError(
                f"{run.folder} is not a classifier, so it cannot be a gate. Name a run of a classifier with --gate."
            )
    folds = [sorted({run.experiment.fold for run in some}) for some in (gate, runs)]
    if gate and folds[0] != folds[1]:
        raise PneumoError(
            f"The gate held out the folds {folds[0]}, the segmenters {folds[1]}: the postprocessing would be fitted on "
            "images that the gate has learnt from. Use runs of the same folds."
        )


def has_split_of(runs: Sequence[RunFolder], prepared: PreparedFolder) -> bool:
    """Whether a prepared folder has the split that the runs were trained on."""
    return all(str(run.record.get("split_sha256")) == prepared.manifest["split_sha256"] for run in runs)


def held_out_images(
    runs: Sequence[RunFolder], prepared: PreparedFolder, subset: str
) -> list[tuple[list[RunFolder], list[str]]]:
    """Which runs predict which images of a subset: each ``validation`` image by the runs that held it out.

    All images of a folder (:data:`ALL`), and those of a folder with another split, are predicted by all runs.

    Returns:
        Groups of runs with the image ids that each group predicts; no group is without images.

    Raises:
        PneumoError: the folder has no such images.
    """
    if subset == ALL or not has_split_of(runs, prepared):
        image_ids = prepared.cases["image_id"].tolist() if subset == ALL else prepared.subset(subset)
        if not image_ids:
            raise PneumoError(f"{prepared.folder} has no {subset} images. Give --subset {ALL} for all its images.")
        return [(list(runs), image_ids)]
    folds = sorted({run.experiment.fold for run in runs})
    if subset == "validation":
        groups = [
            ([run for run in runs if run.experiment.fold == fold], prepared.subset(subset, fold=fold)) for fold in folds
        ]
    else:
        groups = [(list(runs), prepared.subset(subset, fold=runs[0].experiment.fold))]
    groups = [(group, image_ids) for group, image_ids in groups if image_ids]
    if not groups:
        raise PneumoError(f"{prepared.folder} has no {subset} images. Choose another subset.")
    if subset == "train" and len(folds) > 1:
        raise PneumoError("Runs of several folds have no training images in common; predict test or validation.")
    return groups


def predict_classifiers(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str,
    progress: Progress | None = None,
    distributed: DistributedPredictor = SINGLE_DEVICE,
    opened: OpenedRuns | None = None,
) -> pd.DataFrame:
    """``image_id, probability`` of one subset: the mean over the runs, their checkpoints and mirror images.

    ``opened`` keeps the networks that it loads, for the next subset.
    """
    groups = held_out_images(runs, prepared, subset)
    image_ids = [image_id for _, some in groups for image_id in some]
    parts: list[np.ndarray] = []
    done = 0
    for group, some in groups:
        members = open_members(group, distributed, opened)
        for images_at in prepared_batches(group, prepared, some):
            parts.append(mean_probability(members, images_at))
            done += len(parts[-1])
            if progress:
                progress(done, len(image_ids))
    return pd.DataFrame({"image_id": image_ids, "probability": np.concatenate(parts)})


def predict_map_set(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str,
    progress: Progress | None = None,
    distributed: DistributedPredictor = SINGLE_DEVICE,
    opened: OpenedRuns | None = None,
) -> MapSet:
    """The maps of one subset: the mean over the runs, their checkpoints and mirror images.

    ``opened`` keeps the networks that it loads, for the next subset.
    Nothing is held in memory but one batch and the packed maps. Runs of several image sizes are averaged at the largest
    of them.
    """
    groups = held_out_images(runs, prepared, subset)
    image_ids = [image_id for _, some in groups for image_id in some]
    packed: list[PackedMap] = []
    image_probability: list[np.ndarray] = []
    for group, some in groups:
        members = open_members(group, distributed, opened)
        for images_at in prepared_batches(group, prepared, some):
            maps, image = mean_maps(members, images_at)
            packed.extend(PackedMap.of(quantised) for quantised in quantise(maps))
            if image is not None:
                image_probability.append(image)
            if progress:
                progress(len(packed), len(image_ids))
    probability = np.concatenate(image_probability) if image_probability else None
    return MapSet(image_ids, packed, probability, image_shapes(prepared, image_ids))


def open_members(
    runs: Sequence[RunFolder],
    distributed: DistributedPredictor = SINGLE_DEVICE,
    opened: OpenedRuns | None = None,
) -> Members:
    """Load the networks of each run, except of those that are ``opened``, to which they are added."""
    kept = {} if opened is None else opened
    for run in runs:
        if run.folder not in kept:
            kept[run.folder] = load_predictors(run, distributed)
    return [(run, kept[run.folder]) for run in runs]


def prepared_batches(
    runs: Sequence[RunFolder], prepared: PreparedFolder, image_ids: Sequence[str]
) -> Iterator[ImagesAt]:
    """The prepared images, batch by batch, at each of the runs' image sizes."""
    sizes = sorted({run.experiment.image_size for run in runs})
    batch_size = min(run.experiment.global_batch_size for run in runs)
    sources = [evaluation_batches(open_source(prepared, image_ids, size), batch_size) for size in sizes]
    for batches in zip(*sources, strict=True):
        images = {size: batch.numpy() for size, batch in zip(sizes, batches, strict=True)}
        yield images.__getitem__


def mean_probability(members: Members, images_at: ImagesAt) -> np.ndarray:
    """Probability of pneumothorax by classifiers, float64 (B,); every network weighs the same."""
    means = []
    for run, networks in members:
        images = images_at(run.experiment.image_size)
        for network in networks:
            passes = predict_passes(network, images, run.experiment.flip_averaging)
            means.append(np.mean([np.asarray(probabilities.image) for probabilities in passes], axis=0))
    return np.asarray(np.mean(means, axis=0))


def mean_maps(members: Members, images_at: ImagesAt) -> tuple[np.ndarray, np.ndarray | None]:
    """Probability maps by segmenters, and the probability by their image heads; every network weighs the same.

    Returns:
        float32 (B, S, S), S the largest of the runs' image sizes, and float32 (B,), None without image heads.
    """
    side = max(run.experiment.image_size for run, _ in members)
    count = sum(len(networks) for _, networks in members)
    maps: np.ndarray | float = 0.0
    image: np.ndarray | float = 0.0
    heads = True
    for run, networks in members:
        images = images_at(run.experiment.image_size)
        run_maps = np.zeros(images.shape[:3], np.float32)
        run_image = np.zeros(len(images), np.float32)
        passes = 0
        for network in networks:
            for probabilities in predict_passes(network, images, run.experiment.flip_averaging):
                passes += 1
                assert probabilities.maps is not None  # segmenters only
                run_maps += probabilities.maps
                if probabilities.image is None:
                    heads = False
                else:
                    run_image += probabilities.image
        mean = run_maps / passes
        if mean.shape[1] != side:
            mean = np.stack([cv2.resize(each, (side, side), interpolation=cv2.INTER_LINEAR) for each in mean])
        weight = np.float32(len(networks) / count)
        maps = maps + weight * mean
        image = image + weight * (run_image / passes)
    return np.asarray(maps, np.float32), np.asarray(image) if heads else None


def joined_names(runs: Sequence[RunFolder]) -> str:
    """The names of some runs in one text, by which a gate is recorded."""
    return " + ".join(run.experiment.name for run in runs)
