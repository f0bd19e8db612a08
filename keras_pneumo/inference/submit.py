"""The answer of one or more runs as a submission, the form in which teams are compared; and predictions for files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import Pretraining, SubmissionInfo, write_submission
from keras_pneumo.evaluation.scoring.metrics import fit_threshold
from keras_pneumo.inference.ensemble import check_gate, check_together, predict_classifiers
from keras_pneumo.inference.files import predict_files
from keras_pneumo.inference.postprocess import FILE as RULE_FILE
from keras_pneumo.inference.postprocess import PostprocessingSearch, read_postprocessing, write_postprocessing
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor, Progress
from keras_pneumo.inference.run import RunFolder
from keras_pneumo.inference.search_figure import draw_search
from keras_pneumo.inference.segment import (
    MapSet,
    answers,
    fit_postprocessing,
    image_level,
    pixel_counts,
    predict_map_set,
    threshold_of,
)
from keras_pneumo.storage.files import write_table
from keras_pneumo.storage.tables import safe_columns, write_quarantine

PREPROCESSING = (
    "grey, resized with cv2 INTER_AREA, scaled to [0, 1], ImageNet mean and standard deviation, three equal channels"
)


@dataclass(frozen=True)
class Written:
    """What came of :func:`write_predicted`; the last two are a segmenter's."""

    threshold: float
    """On the probability, fitted on validation."""
    search: PostprocessingSearch | None = None
    pixels: np.ndarray | None = None
    """Pixels at each level, all and true ones, of each image in the order of the subset: int32 (n, 2, 256)."""


@dataclass(frozen=True)
class Predicted:
    """What runs say of validation images and of a subset, before anything is fitted; from :func:`predict_subset`."""

    runs: Sequence[RunFolder]
    prepared: PreparedFolder
    subset: str
    gate: Sequence[RunFolder]
    held_out: pd.DataFrame | Outlined
    """Of validation: classifiers' ``image_id, probability``, or segmenters' maps."""
    found: pd.DataFrame | Outlined
    """Of the subset."""


@dataclass(frozen=True)
class Outlined:
    """Segmenters' maps, and what decides at the level of the image; see :func:`segment.image_level`."""

    maps: MapSet
    image: np.ndarray | None
    source: str


def predict_subset(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str = "test",
    progress: Progress | None = None,
    gate: Sequence[RunFolder] = (),
    sharing: DistributedPredictor = SINGLE_DEVICE,
) -> Predicted:
    """Predict validation and ``subset``; with several workers each of them calls this, and each gets all answers.

    Args:
        runs: finished runs of one task, which answer as one; see :mod:`keras_pneumo.inference.ensemble`.
        prepared: the prepared folder they were trained on, or another with the same split.
        subset: which patients to answer for.
        progress: called with images done and in all, for each subset anew.
        gate: classifiers that decide whether a segmenter's image may have a mask.
        sharing: where the networks predict.

    Raises:
        PneumoError: the runs cannot stand together, or the folder was split otherwise.
    """
    check_together(runs, prepared)
    task = runs[0].experiment.task
    if gate and task == "classifier":
        raise PneumoError("A gate is for segmenters; these runs are classifiers.")
    if gate:
        check_together(gate, prepared)
        check_gate(gate, runs)

    def ask(some: str) -> pd.DataFrame | Outlined:
        if task == "classifier":
            return predict_classifiers(runs, prepared, some, progress, sharing)
        maps = predict_map_set(runs, prepared, some, progress, sharing)
        return Outlined(maps, *image_level(maps, prepared, some, gate, sharing))

    held_out = ask("validation")
    found = held_out if subset == "validation" else ask(subset)
    return Predicted(runs, prepared, subset, gate, held_out, found)


def write_predicted(predicted: Predicted, folder: Path) -> Written:
    """Fit on validation what is to be fitted, and write a submission.

    Segmenters' rule for masks and its search go beside ``predictions.csv`` (``postprocess.json``, ``.png``).
    """
    runs, prepared, held_out, found = predicted.runs, predicted.prepared, predicted.held_out, predicted.found
    if isinstance(held_out, Outlined):
        assert isinstance(found, Outlined)
        search = fit_postprocessing(held_out.maps, prepared, held_out.image, held_out.source)
        threshold = threshold_of(search.rule)
        info = info_of([*runs, *predicted.gate], "joint", predicted.subset, threshold)
        tables = [answers(one.maps, search.rule, one.image) for one in (found, held_out)]
        write_submission(folder, info, *tables)
        keep_search(search, folder)
        return Written(threshold, search, pixel_counts(found.maps, prepared))
    assert isinstance(found, pd.DataFrame)
    truth = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[held_out["image_id"]]
    threshold = fit_threshold(truth.to_numpy(), held_out["probability"].to_numpy())
    write_submission(folder, info_of(runs, "classification", predicted.subset, threshold), found, held_out)
    return Written(threshold)


def keep_search(search: PostprocessingSearch, folder: Path) -> None:
    """Write the rule for masks and the picture of its search."""
    write_postprocessing(folder, search)
    draw_search(search, folder / "postprocess.png")


def info_of(runs: Sequence[RunFolder], task: str, subset: str, threshold: float) -> SubmissionInfo:
    """What the submission of these runs declares."""
    first = runs[0]
    names = list(dict.fromkeys(run.experiment.name for run in runs))
    more = f" ({len(runs)} runs)" if len(runs) > 1 else ""
    seen = list(dict.fromkeys(run.pretraining for run in runs if run.pretraining != "none"))
    return SubmissionInfo(
        team=f"keras-pneumo {' + '.join(names)}{more}",
        framework=f"Keras {first.record['versions']['keras']}, TensorFlow {first.record['versions']['tensorflow']}",
        task=task,  # type: ignore[arg-type]
        split_sha256=first.record["split_sha256"],
        subset=subset,
        threshold=threshold,
        pretraining=Pretraining(images=", ".join(seen) or "none"),
        image_size=max(run.experiment.image_size for run in runs),
        seeds=sorted({run.experiment.seed for run in runs}),
        training_hours=round(sum(run.record.get("training_seconds", 0.0) for run in runs) / 3600, 4),
        hardware=first.record["hardware"],
        preprocessing=PREPROCESSING,
    )


@dataclass(frozen=True)
class FilesSummary:
    """What :func:`predict_folder` did."""

    path: Path
    predicted: int
    set_aside: int

    def __str__(self) -> str:
        """A sentence for the user."""
        text = f"{self.predicted} radiographs predicted: {self.path}"
        return (
            f"{text}; {self.set_aside} set aside: {self.path.with_name('quarantine.csv')}" if self.set_aside else text
        )


def predict_folder(
    runs: Sequence[RunFolder],
    data: Path,
    folder: Path,
    progress: Progress | None = None,
    rule_file: Path | None = None,
    gate: Sequence[RunFolder] = (),
    sharing: DistributedPredictor = SINGLE_DEVICE,
) -> FilesSummary:
    """Predict every radiograph under ``data``, which needs no labels; write predictions.csv and quarantine.csv.

    Args:
        runs: finished runs of one task.
        data: the folder.
        folder: where to write.
        progress: called with files done and in all.
        rule_file: the rule for masks; by default a single run's own.
        gate: classifiers that the rule asks.
        sharing: where the networks predict.

    Raises:
        PneumoError: there is no radiograph, or none that can be read; or segmenters have no rule for masks.
    """
    rule = None
    threshold = runs[0].threshold if len(runs) == 1 else None
    if runs[0].experiment.task == "classifier" and (gate or rule_file is not None):
        raise PneumoError(
            "--gate and --postprocess are for segmenters' masks; these runs are classifiers. Leave them out."
        )
    if runs[0].experiment.task == "segmenter":
        if rule_file is None and len(runs) == 1:
            rule_file = runs[0].folder / RULE_FILE
        rule = read_postprocessing(rule_file) if rule_file else None
        threshold = threshold_of(rule) if rule else None
    predictions, refused = predict_files(runs, data, progress, rule, gate, sharing)
    folder.mkdir(parents=True, exist_ok=True)
    if threshold is not None:
        predictions["above_threshold"] = (predictions["probability"] >= threshold).astype(int)
    predictions["probability"] = np.round(predictions["probability"], 6)
    write_table(folder / "predictions.csv", safe_columns(predictions, "image_id", "file"))
    files_and_reasons = zip(refused["file"], refused["reason"], strict=True)
    write_quarantine(folder, [{"file": file, "reason": reason} for file, reason in files_and_reasons])
    return FilesSummary(folder / "predictions.csv", len(predictions), len(refused))
