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
from keras_pneumo.inference.ensemble import (
    OpenedRuns,
    check_gate,
    check_together,
    joined_names,
    predict_classifiers,
    predict_map_set,
)
from keras_pneumo.inference.maps import MapSet
from keras_pneumo.inference.postprocess import (
    FIGURE,
    OWN_HEAD,
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
        raise PneumoError("A gate is for segmenters; these runs are classifiers.")
    if gate:
        check_together(gate, prepared)
        check_gate(gate, runs)

    opened = {} if opened is None else opened  # one loading and one tracing for both subsets

    def predict(some: str) -> pd.DataFrame | MaskPredictions:
        if task == "classifier":
            return predict_classifiers(runs, prepared, some, progress, distributed, opened)
        maps = predict_map_set(runs, prepared, some, progress, distributed, opened)
        if not gate:
            source = OWN_HEAD if maps.image_probability is not None else ""
            return MaskPredictions(maps, maps.image_probability, source)
        table = predict_classifiers(gate, prepared, some, distributed=distributed, opened=opened).set_index("image_id")
        return MaskPredictions(maps, table["probability"].loc[maps.image_ids].to_numpy(float), joined_names(gate))

    validation = predict("validation")
    predictions = validation if subset == "validation" else predict(subset)
    return SubsetPredictions(runs, prepared, subset, gate, validation, predictions, distributed.engines)


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
        write_submission(folder, info, *tables)
        write_search(search, folder, bool(prepared.manifest.get("synthetic")))
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
    runs: Sequence[RunFolder], task: str, subset: str, threshold: float, engines: Set[str] = frozenset()
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
