"""A submission by one or more runs: predictions for a prepared subset, in the form in which teams are compared.

In: finished runs of one task and the prepared folder. Out: a folder with ``predictions.csv``, ``validation.csv`` and
``submission.json``, and beside these a segmenter's ``postprocess.json`` and the picture of its search. First all runs
predict validation and the subset (:func:`predict_subset`); then the threshold or the postprocessing is fitted on
validation and applied unchanged (:func:`write_predictions`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import Pretraining, SubmissionInfo, write_submission
from keras_pneumo.evaluation.scoring.metrics import fit_threshold
from keras_pneumo.inference.contamination import Contamination, contamination_by
from keras_pneumo.inference.ensemble import (
    ALL,
    OpenedRuns,
    check_gate,
    check_together,
    joined_names,
    predict_classifiers,
    predict_map_set,
)
from keras_pneumo.inference.files import own_postprocessing, require_postprocessing
from keras_pneumo.inference.maps import MapSet
from keras_pneumo.inference.postprocess import (
    FIGURE,
    OWN_HEAD,
    PostprocessingParameters,
    PostprocessingSearch,
    count_maps,
    draw_search,
    fit_postprocessing,
    postprocess_maps,
    write_postprocessing,
)
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor
from keras_pneumo.inference.provenance import LEARNED_SHA256, learned_images
from keras_pneumo.inference.run import RunFolder
from keras_pneumo.storage.workers import Progress

PREPROCESSING = (
    "grey, resized with cv2 INTER_AREA, scaled to [0, 1], ImageNet mean and standard deviation, three equal channels"
)


@dataclass(frozen=True)
class MaskPredictions:
    """Segmenters' maps, and the image-level probability that may gate their masks."""

    maps: MapSet
    image_probability: np.ndarray | None
    """(n,): by the classifiers that are the gate, else by the segmenters' own heads; None without either."""
    gate_source: str


@dataclass(frozen=True)
class SubsetPredictions:
    """Predictions of validation and of a subset, before anything is fitted; from :func:`predict_subset`."""

    runs: Sequence[RunFolder]
    prepared: PreparedFolder
    subset: str
    gate: Sequence[RunFolder]
    validation: pd.DataFrame | MaskPredictions
    """By classifiers ``image_id, probability``, by segmenters maps."""
    predictions: pd.DataFrame | MaskPredictions
    """The same of the subset."""
    engines: Set[str] = frozenset()
    """The programs that ran the networks, with versions, where Keras was not the only choice."""


@dataclass(frozen=True)
class WrittenSubmission:
    """The values fitted by :func:`write_predictions`; the last two are a segmenter's."""

    threshold: float
    """On the probability, fitted on validation."""
    search: PostprocessingSearch | None = None
    pixels: np.ndarray | None = None
    """Pixels at each level, all and true ones, of each image in the order of the subset: int32 (n, 2, 256)."""


def predict_subset(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str = "test",
    progress: Progress | None = None,
    gate: Sequence[RunFolder] = (),
    distributed: DistributedPredictor = SINGLE_DEVICE,
    opened: OpenedRuns | None = None,
) -> SubsetPredictions:
    """Predict validation and ``subset``; with several workers each of them calls this, and each gets all predictions.

    Args:
        runs: finished runs of one task, which predict together; see :mod:`keras_pneumo.inference.ensemble`.
        prepared: the prepared folder they were trained on, or another with the same split.
        subset: which images to predict.
        progress: called with images done and in all, for each subset anew.
        gate: classifiers that decide whether a segmenter's image may have a mask.
        distributed: where the networks predict.
        opened: networks of these runs that are loaded already; those that are loaded here are added.

    Raises:
        PneumoError: the runs cannot predict together, or the folder has another split.
    """
    check_together(runs, prepared)
    task = runs[0].experiment.task
    if gate and task == "classifier":
        raise PneumoError("A gate is for segmenters; these runs are classifiers. Leave it out.")
    if gate:
        check_together(gate, prepared)
        check_gate(gate, runs)

    opened = {} if opened is None else opened  # one loading and one tracing for both subsets
    validation = _predict(runs, prepared, "validation", progress, gate, distributed, opened)
    predictions = validation
    if subset != "validation":
        predictions = _predict(runs, prepared, subset, progress, gate, distributed, opened)
    return SubsetPredictions(runs, prepared, subset, gate, validation, predictions, distributed.engines)


def _predict(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str,
    progress: Progress | None,
    gate: Sequence[RunFolder],
    distributed: DistributedPredictor,
    opened: OpenedRuns,
) -> pd.DataFrame | MaskPredictions:
    if runs[0].experiment.task == "classifier":
        return predict_classifiers(runs, prepared, subset, progress, distributed, opened)
    maps = predict_map_set(runs, prepared, subset, progress, distributed, opened)
    if not gate:
        source = OWN_HEAD if maps.image_probability is not None else ""
        return MaskPredictions(maps, maps.image_probability, source)
    table = predict_classifiers(gate, prepared, subset, distributed=distributed, opened=opened).set_index("image_id")
    return MaskPredictions(maps, table["probability"].loc[maps.image_ids].to_numpy(float), joined_names(gate))


@dataclass(frozen=True, eq=False)
class FittedPredictions:
    """Predictions of other data than a run was trained on, with what was fitted at home; nothing is fitted here."""

    info: SubmissionInfo
    table: pd.DataFrame
    """``image_id, probability`` and, by segmenters, ``encoded_pixels``."""
    contamination: Contamination
    """Which of the images the runs have learned from."""

    def write(self, folder: Path) -> None:
        """Write the submission, and ``contamination.csv`` beside its table."""
        write_submission(folder, self.info, self.table, write_more=self.contamination.write)


def predict_with_fitted(
    runs: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str = ALL,
    progress: Progress | None = None,
    gate: Sequence[RunFolder] = (),
    distributed: DistributedPredictor = SINGLE_DEVICE,
    parameters: PostprocessingParameters | None = None,
) -> FittedPredictions:
    """Predict any prepared folder with a run as it is: its threshold and its postprocessing were fitted at home.

    Args:
        runs: finished runs of one task, which predict together.
        prepared: the folder, of any split.
        subset: which images; all by default.
        progress: called with images done and in all.
        gate: classifiers that decide whether a segmenter's image may have a mask.
        distributed: where the networks predict.
        parameters: how segmenters' maps become masks; None: a single run's own.

    Returns:
        The predictions. Several classifiers together have no threshold, since none was fitted to their mean.

    Raises:
        PneumoError: the runs cannot predict together, there is no such image, or segmenters have no postprocessing.
    """
    check_together(runs)
    segmenter = runs[0].experiment.task == "segmenter"
    if not segmenter and (gate or parameters is not None):
        raise PneumoError("A gate and a postprocessing are for segmenters; these runs are classifiers. Leave them out.")
    threshold = runs[0].threshold if len(runs) == 1 else None
    if segmenter:
        parameters = require_postprocessing(parameters or own_postprocessing(runs), gate)
    predicted = _predict(runs, prepared, subset, progress, gate, distributed, {})
    if isinstance(predicted, MaskPredictions):
        assert parameters is not None
        table = postprocess_maps(predicted.maps, parameters, predicted.image_probability)
        threshold = parameters.threshold
    else:
        table = predicted
    contamination = contamination_by([*runs, *gate], prepared, table["image_id"].tolist())
    task = "joint" if segmenter else "classification"
    info = submission_info([*runs, *gate], task, subset, threshold, distributed.engines)
    return FittedPredictions(on_other_data(info, prepared, contamination), table, contamination)


def on_other_data(info: SubmissionInfo, prepared: PreparedFolder, contamination: Contamination) -> SubmissionInfo:
    """A declaration of predictions of another folder: that folder's split, and its images that were learned from."""
    itself = contamination.table[["same_file", "same_pixels", "same_image", "near_duplicate"]].any(axis=1)
    seen = contamination.table.loc[itself, "image_id"].tolist()
    pretraining = Pretraining(images=info.pretraining.images, image_ids=sorted({*info.pretraining.image_ids, *seen}))
    return info.model_copy(update={"split_sha256": prepared.manifest["split_sha256"], "pretraining": pretraining})


def write_predictions(predicted: SubsetPredictions, folder: Path) -> WrittenSubmission:
    """Fit the threshold or the postprocessing on validation, and write the submission."""
    runs, prepared = predicted.runs, predicted.prepared
    validation, predictions = predicted.validation, predicted.predictions
    if isinstance(validation, MaskPredictions):
        assert isinstance(predictions, MaskPredictions)
        counts = count_maps(validation.maps, prepared)
        search = fit_postprocessing(counts, validation.image_probability, validation.gate_source)
        threshold = search.parameters.threshold
        info = submission_info([*runs, *predicted.gate], "joint", predicted.subset, threshold, predicted.engines)
        tables = [
            postprocess_maps(some.maps, search.parameters, some.image_probability) for some in (predictions, validation)
        ]
        write_submission(folder, info, tables[0], tables[1], lambda new: write_search(search, new, prepared.synthetic))
        pixels = count_maps(predictions.maps, prepared, components=(0,)).histograms
        return WrittenSubmission(threshold, search, pixels)
    assert isinstance(predictions, pd.DataFrame)
    truth = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[validation["image_id"]]
    threshold = fit_threshold(truth.to_numpy(), validation["probability"].to_numpy())
    info = submission_info(runs, "classification", predicted.subset, threshold, predicted.engines)
    write_submission(folder, info, predictions, validation)
    return WrittenSubmission(threshold)


def write_search(search: PostprocessingSearch, folder: Path, synthetic: bool = False) -> None:
    """Write the fitted postprocessing and the picture of its search, which says where images are ``synthetic``."""
    write_postprocessing(folder, search)
    draw_search(search, folder / FIGURE, synthetic)


def submission_info(
    runs: Sequence[RunFolder], task: str, subset: str, threshold: float | None, engines: Set[str] = frozenset()
) -> SubmissionInfo:
    """The content of ``submission.json`` for these runs."""
    first = runs[0]
    names = list(dict.fromkeys(run.experiment.name for run in runs))
    more = f" ({len(runs)} runs)" if len(runs) > 1 else ""
    seen = list(dict.fromkeys(run.pretraining for run in runs if run.pretraining != "none"))
    return SubmissionInfo(
        team=f"keras-pneumo {' + '.join(names)}{more}",
        framework=f"Keras {first.record['versions']['keras']}, TensorFlow {first.record['versions']['tensorflow']}"
        + (f"; predicted by {', '.join(sorted(engines))}" if engines else ""),
        task=task,  # type: ignore[arg-type]
        split_sha256=first.record["split_sha256"],
        subset=subset,
        threshold=threshold,
        pretraining=Pretraining(images=", ".join(seen) or "none", image_ids=_earlier_images(runs)),
        image_size=max(run.experiment.image_size for run in runs),
        seeds=sorted({run.experiment.seed for run in runs}),
        deterministic=all(run.experiment.deterministic for run in runs),
        training_hours=round(sum(run.record.get("training_seconds", 0.0) for run in runs) / 3600, 4),
        hardware=first.record["hardware"],
        preprocessing=PREPROCESSING,
        synthetic=any(run.synthetic for run in runs),
    )


def _earlier_images(runs: Sequence[RunFolder]) -> list[str]:
    """The radiographs (no phantoms) that the runs' starts learned from and the runs themselves did not."""
    names: set[str] = set()
    for run in runs:
        if run.record.get("start_from") and LEARNED_SHA256 in run.record:
            learned = learned_images(run)
            own = learned.loc[learned["earlier"] == 0, "image_id"]
            earlier = learned[(learned["earlier"] > 0) & (learned["synthetic"] == 0)]
            names |= set(earlier["image_id"]) - set(own)
    return sorted(names)
