"""The answer of one or more runs as a submission, the form in which teams are compared; and predictions for files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_pneumo.data.files import write_table
from keras_pneumo.data.prepared import Prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.metrics import fit_threshold
from keras_pneumo.evaluation.submission import Pretraining, SubmissionInfo, write_submission
from keras_pneumo.prediction.ensemble import check_gate, check_together, predict_classifiers
from keras_pneumo.prediction.files import predict_files
from keras_pneumo.prediction.postprocess import FILE as RULE_FILE
from keras_pneumo.prediction.postprocess import Search, read_rule, write_rule
from keras_pneumo.prediction.predict import Progress
from keras_pneumo.prediction.run import Run
from keras_pneumo.prediction.search_figure import draw_search
from keras_pneumo.prediction.segment import (
    answers,
    fit_rule,
    image_level,
    pixel_counts,
    predict_map_set,
    threshold_of,
)

PREPROCESSING = (
    "grey, resized with cv2 INTER_AREA, scaled to [0, 1], ImageNet mean and standard deviation, three equal channels"
)


@dataclass(frozen=True)
class Written:
    """What came of :func:`write_run_submission`; the last two are a segmenter's."""

    threshold: float
    """On the probability, fitted on validation."""
    search: Search | None = None
    pixels: np.ndarray | None = None
    """Pixels at each level, all and true ones, of each image in the order of the subset: int32 (n, 2, 256)."""


def write_run_submission(
    runs: Sequence[Run],
    prepared: Prepared,
    folder: Path,
    subset: str = "test",
    progress: Progress | None = None,
    gate: Sequence[Run] = (),
) -> Written:
    """Predict validation and ``subset``, fit on validation what is to be fitted, write both as a submission.

    Segmenters' rule for masks and its search go beside ``predictions.csv`` (``postprocess.json``, ``.png``).

    Args:
        runs: finished runs of one task, which answer as one; see :mod:`keras_pneumo.prediction.ensemble`.
        prepared: the prepared folder they were trained on, or another with the same split.
        folder: the submission's folder.
        subset: which patients to answer for.
        progress: called with images done and in all, for each subset anew.
        gate: classifiers that decide whether a segmenter's image may have a mask.

    Raises:
        PneumoError: the runs cannot stand together, or the folder was split otherwise.
    """
    check_together(runs, prepared)
    if gate and runs[0].experiment.task == "classifier":
        raise PneumoError("A gate is for segmenters; these runs are classifiers.")
    if runs[0].experiment.task == "segmenter":
        if gate:
            check_together(gate, prepared)
            check_gate(gate, runs)
        return _segmenters(runs, prepared, folder, subset, progress, gate)
    validation = predict_classifiers(runs, prepared, "validation", progress)
    found = validation if subset == "validation" else predict_classifiers(runs, prepared, subset, progress)
    truth = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[validation["image_id"]]
    threshold = fit_threshold(truth.to_numpy(), validation["probability"].to_numpy())
    write_submission(folder, info_of(runs, "classification", subset, threshold), found, validation)
    return Written(threshold)


def _segmenters(
    runs: Sequence[Run],
    prepared: Prepared,
    folder: Path,
    subset: str,
    progress: Progress | None,
    gate: Sequence[Run],
) -> Written:
    held_out = predict_map_set(runs, prepared, "validation", progress)
    image, source = image_level(held_out, prepared, "validation", gate)
    search = fit_rule(held_out, prepared, image, source)
    validation = answers(held_out, search.rule, image)
    found = held_out
    if subset != "validation":
        found = predict_map_set(runs, prepared, subset, progress)
        image, _ = image_level(found, prepared, subset, gate)
    threshold = threshold_of(search.rule)
    info = info_of([*runs, *gate], "joint", subset, threshold)
    write_submission(folder, info, answers(found, search.rule, image), validation)
    keep_search(search, folder)
    return Written(threshold, search, pixel_counts(found, prepared))


def keep_search(search: Search, folder: Path) -> None:
    """Write the rule for masks and the picture of its search."""
    write_rule(folder, search)
    draw_search(search, folder / "postprocess.png")


def info_of(runs: Sequence[Run], task: str, subset: str, threshold: float) -> SubmissionInfo:
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
    runs: Sequence[Run],
    data: Path,
    folder: Path,
    progress: Progress | None = None,
    rule_file: Path | None = None,
    gate: Sequence[Run] = (),
) -> FilesSummary:
    """Predict every radiograph under ``data``, which needs no labels; write predictions.csv and quarantine.csv.

    Args:
        runs: finished runs of one task.
        data: the folder.
        folder: where to write.
        progress: called with files done and in all.
        rule_file: the rule for masks; by default a single run's own.
        gate: classifiers that the rule asks.

    Raises:
        PneumoError: there is no radiograph, or none that can be read; or segmenters have no rule for masks.
    """
    rule = None
    threshold = runs[0].threshold if len(runs) == 1 else None
    if runs[0].experiment.task == "segmenter":
        if rule_file is None and len(runs) == 1:
            rule_file = runs[0].folder / RULE_FILE
        rule = read_rule(rule_file) if rule_file else None
        threshold = threshold_of(rule) if rule else None
    predictions, refused = predict_files(runs, data, progress, rule, gate)
    folder.mkdir(parents=True, exist_ok=True)
    if threshold is not None:
        predictions["above_threshold"] = (predictions["probability"] >= threshold).astype(int)
    predictions["probability"] = np.round(predictions["probability"], 6)
    write_table(folder / "predictions.csv", predictions)
    if len(refused):
        write_table(folder / "quarantine.csv", refused)
    return FilesSummary(folder / "predictions.csv", len(predictions), len(refused))
