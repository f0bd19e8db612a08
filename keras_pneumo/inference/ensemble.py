"""Several runs that answer as one: which may stand together, and what each may be asked about.

In: finished runs, of one fold or of several. Out: groups by fold. The rule for masks and the operating threshold are
fitted on development images, each answered only by runs that held it out; images that are nobody's are answered by all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from keras_pneumo.data.batches.images import open_source
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor, Progress, predict_probabilities
from keras_pneumo.inference.run import RunFolder, load_predictors


def check_together(runs: Sequence[RunFolder], prepared: PreparedFolder | None = None) -> None:
    """Refuse runs that cannot answer as one, or about this prepared folder.

    Raises:
        PneumoError: they are of several tasks or splits, some have an image head and others not, or the folder was
            split otherwise, so that training patients could be among those predicted.
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
                f"{run.folder} and {first.folder} were trained on different splits: either may have learnt from the "
                "other's test patients. Predict them apart."
            )


def check_gate(gate: Sequence[RunFolder], runs: Sequence[RunFolder]) -> None:
    """Refuse runs that cannot say for segmenters whether an image may have a mask.

    Raises:
        PneumoError: one is no classifier, or they held out other folds, so that the rule would be fitted on images that
            the gate has learnt from.
    """
    for run in gate:
        if run.experiment.task != "classifier":
            raise PneumoError(f"{run.folder} is no classifier, so it cannot be a gate.")
    folds = [sorted({run.experiment.fold for run in some}) for some in (gate, runs)]
    if gate and folds[0] != folds[1]:
        raise PneumoError(
            f"The gate held out the folds {folds[0]}, the segmenters {folds[1]}: the rule for masks would be fitted on "
            "images that the gate has learnt from. Use runs of the same folds."
        )


def by_fold(runs: Sequence[RunFolder]) -> list[tuple[int, list[RunFolder]]]:
    """The runs of each validation fold, folds rising."""
    folds = sorted({run.experiment.fold for run in runs})
    return [(fold, [run for run in runs if run.experiment.fold == fold]) for fold in folds]


def asked(runs: Sequence[RunFolder], prepared: PreparedFolder, subset: str) -> list[tuple[list[RunFolder], list[str]]]:
    """Which runs answer for which images of a subset: for ``validation`` each image by those that held it out.

    Raises:
        PneumoError: the folder has no such images.
    """
    if subset == "validation":
        groups = [(group, prepared.subset(subset, fold=fold)) for fold, group in by_fold(runs)]
    else:
        groups = [(list(runs), prepared.subset(subset, fold=runs[0].experiment.fold))]
    if not any(image_ids for _, image_ids in groups):
        raise PneumoError(f"{prepared.folder} has no {subset} images.")
    if subset == "train" and len(by_fold(runs)) > 1:
        raise PneumoError("Runs of several folds have no training images in common; predict test or validation.")
    return groups


def predict_classifiers(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str,
    progress: Progress | None = None,
    sharing: DistributedPredictor = SINGLE_DEVICE,
) -> pd.DataFrame:
    """``image_id, probability`` of one subset: the mean over all runs that may answer and all checkpoints they keep."""
    tables = []
    for group, image_ids in asked(runs, prepared, subset):
        summed, count = np.zeros(len(image_ids)), 0
        for run in group:
            experiment = run.experiment
            source = open_source(prepared, image_ids, experiment.image_size)
            for model in load_predictors(run, sharing):
                batch, flip = experiment.global_batch_size, experiment.flip_averaging
                summed += predict_probabilities(model, source, batch, flip, progress)
                count += 1
        tables.append(pd.DataFrame({"image_id": list(image_ids), "probability": summed / count}))
    return pd.concat(tables, ignore_index=True)
