"""The report of a trained run: predict the test images, score them beside the metadata-only baselines, write the page.

In: a run folder with its best weights, and the prepared folder. Out, in the run folder: ``submission/``, the fitted
postprocessing, ``board.csv``, ``per_image.csv``,
``subgroups.csv``, ``explain/`` and ``report.html``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_pneumo.data.labels.pseudonyms import key_free_names
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.detector.calibration import fit_calibration
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board, score_submissions
from keras_pneumo.evaluation.board.subgroups import attributes_of, scores_within, with_fewer_resamples
from keras_pneumo.evaluation.board.verdict import verdict
from keras_pneumo.evaluation.inputs.alignment import align_submission
from keras_pneumo.evaluation.inputs.submission import read_submission
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.report.calibration_report import CalibrationReport, calibration_report
from keras_pneumo.evaluation.report.history_report import read_history
from keras_pneumo.evaluation.report.mask_report import MaskFindings, mask_findings
from keras_pneumo.evaluation.report.pictures import image_loader
from keras_pneumo.evaluation.report.report import write_run_report
from keras_pneumo.evaluation.report.saliency_report import FOLDER, read_saliency_report
from keras_pneumo.evaluation.report.subgroup_report import subgroup_report, subgroup_table
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.explain.positives import can_be_checked
from keras_pneumo.explain.saliency_check import SubsetProbabilities, explain_prepared
from keras_pneumo.inference.postprocess import FILE as POSTPROCESS
from keras_pneumo.inference.postprocess import write_threshold
from keras_pneumo.inference.run import POSTPROCESS_SHA256, RunFolder, load_predictors
from keras_pneumo.inference.submission import SubsetPredictions, predict_subset, write_predictions, write_search
from keras_pneumo.storage.files import read_json, sha256_file, write_bytes
from keras_pneumo.storage.tables import counted, table_text
from keras_pneumo.storage.workers import Progress
from keras_pneumo.training.distributed.strategy import ONE_DEVICE, Distribution, lost_workers
from keras_pneumo.training.run_folder import write_record


@dataclass(frozen=True)
class RunReport:
    """The path of a run's report, and its findings in sentences."""

    path: Path
    sentences: list[str]


def report_run(
    run: RunFolder,
    prepared: PreparedFolder,
    progress: Progress | None = None,
    resamples: int = RESAMPLES,
    distribution: Distribution = ONE_DEVICE,
    model: keras.Model | None = None,
) -> RunReport | None:
    """Predict with a run, score the predictions and write the report; the fitted postprocessing is kept with the run.

    All devices predict, and the chief writes. The scores are made from the submission as it was written, the same way
    as any other team's.

    Args:
        run: a finished training; every worker calls this for the same one.
        prepared: the prepared folder that it was trained on.
        progress: called with the images predicted and all images, for each subset anew.
        resamples: number of resamples of the patients for the intervals.
        distribution: the devices.
        model: the run's network with its best weights, where it is in memory; see :class:`~.trainer.TrainingResult`.

    Returns:
        The report; None on a worker that does not write.

    Raises:
        PneumoError: the prepared folder has another split than the run, or a worker sees other weights than the chief.
        Stopped: another worker is lost.
    """
    with lost_workers(distribution):
        if distribution.workers > 1:
            weights = sha256_file(run.weights)
            if distribution.broadcast_text(weights) != weights:
                raise PneumoError(
                    f"Worker {distribution.worker} sees other weights in {run.weights} than worker 0. The run folder "
                    "must be on a disk that all workers share. Start all workers again."
                )
        distributed = distribution.distributed_predictor()
        opened = {} if model is None else {run.folder: load_predictors(run, distributed, [model])}
        predictions = predict_subset([run], prepared, progress=progress, distributed=distributed, opened=opened)
    return _write_report(run, predictions, resamples, model) if distribution.chief else None


def rewrite_report(run: RunFolder, prepared: PreparedFolder) -> Path:
    """Write a classifier's report again, with the saliency report that it has now; the scores are its submission's.

    Raises:
        PneumoError: the submission does not fit the prepared folder.
    """
    truth = read_truth(prepared.folder)
    team = align_submission(read_submission(run.folder / "submission"), truth)
    board = score_submissions(truth, [team], run.experiment.seed)
    return _write_page(run, prepared, board, run.record)


def _write_report(
    run: RunFolder, predictions: SubsetPredictions, resamples: int, model: keras.Model | None
) -> RunReport:
    """Write the submission and the postprocessing, score the submission, and write everything about the scores."""
    prepared, folder = predictions.prepared, run.folder / "submission"
    written = write_predictions(predictions, folder)
    if written.search is not None:
        write_search(written.search, run.folder, prepared.synthetic)
    else:
        write_threshold(run.folder, written.threshold, len(prepared.subset("validation", fold=run.experiment.fold)))
    fitted = sha256_file(run.folder / POSTPROCESS)
    record = run.record | {"threshold": written.threshold, POSTPROCESS_SHA256: fitted}
    write_record(run.folder, record)

    truth = read_truth(prepared.folder)
    team = align_submission(read_submission(folder), truth)
    headline = "dice" if run.experiment.task == "segmenter" else "auroc"
    board = score_submissions(truth, [team], run.experiment.seed, resamples, headline=headline)
    table, masks = board.table, None
    if written.pixels is not None:
        row_of = {image_id: row for row, image_id in enumerate(prepared.subset("test", fold=run.experiment.fold))}
        masks = mask_findings(board, written.pixels[[row_of[image_id] for image_id in truth.cases.image_id]])
        table = masks.on_board(table)
        distances = masks.surface.assign(image_id=truth.cases.image_id.to_numpy())
        write_bytes(run.folder / "surface.csv", table_text(distances).encode())
    write_bytes(run.folder / "per_image.csv", table_text(board.per_image).encode())
    write_bytes(run.folder / "board.csv", table_text(table).encode())
    if run.experiment.task == "classifier" and can_be_checked(run, prepared):
        probability = pd.Series(board.teams[0].probability, index=truth.cases.image_id)
        answers = SubsetProbabilities(probability, written.threshold)
        explain_prepared(run, prepared, run.folder / FOLDER, predicted=answers, resamples=resamples, model=model)
    path = _write_page(run, prepared, board, record, masks)
    saliency = read_saliency_report(run.folder / FOLDER)
    findings = verdict(board)
    heat = [f"Where it looks ({saliency.title}): {saliency.sentences[0]}"] if saliency is not None else []
    return RunReport(path, [findings.headline, *findings.sentences, *findings.warnings, *heat])


def _write_page(
    run: RunFolder,
    prepared: PreparedFolder,
    board: Board,
    record: Mapping[str, Any],
    masks: MaskFindings | None = None,
) -> Path:
    """Write ``report.html`` and ``subgroups.csv`` from the board and from what lies in the run folder."""
    parts = scores_within(with_fewer_resamples(board), attributes_of(board.truth, prepared.folder))
    write_bytes(run.folder / "subgroups.csv", table_text(subgroup_table(parts)).encode())
    return write_run_report(
        run.folder / "report.html",
        board,
        pd.read_csv(run.folder / "log.csv"),
        {**record, **ladder_fact(run)},
        image_loader(prepared.folder),
        masks,
        read_saliency_report(run.folder / FOLDER),
        subgroups=subgroup_report(parts, board.headline),
        calibration=calibration_of(board),
        history=read_history(run.folder),
    )


def calibration_of(board: Board) -> CalibrationReport | None:
    """What calibration would change, fitted on the submission's validation predictions; None where that cannot be."""
    team, known = board.teams[0], board.truth.development.set_index("image_id")
    validation = team.submission.validation if team.submission is not None else None
    if team.probability is None or validation is None or not validation["image_id"].isin(known.index).all():
        return None
    images = known.loc[validation["image_id"]]
    positive, patients = images["pneumothorax"].to_numpy() == 1, key_free_names(images.index, images["patient_id"])
    fit = fit_calibration(positive, validation["probability"].to_numpy(float), np.array(patients), board.seed)
    if fit.calibration.kind == "none":
        return None
    sentences = [
        f"{fit.sentence} Fitted on {counted(len(images), 'validation image')} for this report only: the run gives the "
        "probabilities before. keras-pneumo join makes a detector that gives those after."
    ]
    return calibration_report(board, team.probability, fit.calibration.apply(team.probability), sentences)


def ladder_fact(run: RunFolder) -> dict[str, str]:
    """Says whether the run can be compared with PyTorch, from the ladder beside it; nothing where there is none.

    The ladder (``parity/parity.json`` beside the run folder) counts only where it was made for this run's encoder,
    image size and package versions.
    """
    path = run.folder.parent / "parity/parity.json"
    try:
        ladder = read_json(path)
        verdict_text = str(ladder["verdict"])
        own = {"encoder": run.experiment.encoder, "image size": run.experiment.image_size}
        theirs = {"encoder": ladder["encoder"], "image size": ladder["size"]}
        versions = {"keras_pneumo": ladder.get("keras_pneumo", "an earlier version"), **ladder["versions"]["keras"]}
        run_versions = run.record.get("versions", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    own |= {name: version for name, version in run_versions.items() if name in versions and name != "python"}
    theirs |= {name: versions[name] for name in own if name in versions}
    differing = [f"{name} {theirs[name]} (this run: {value})" for name, value in own.items() if theirs[name] != value]
    if not differing:
        return {"comparable with PyTorch": verdict_text}
    return {
        "comparable with PyTorch": f"Not checked for this run. The ladder in {path.parent.name} is of another "
        f"{', '.join(differing)}. Check this one with keras-pneumo parity --encoder {run.experiment.encoder} --size "
        f"{run.experiment.image_size}."
    }
