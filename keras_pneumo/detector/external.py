"""Evaluates a run or a detector on an external test set: prepare, predict every image, score, report.

In: a finished run or a detector, and folders of labelled radiographs from elsewhere (or a prepared folder). Out, in a
folder: the prepared images, a submission, ``contamination.csv``, ``per_image.csv``, ``board.csv``, ``subgroups.csv``
and ``report.html``. Nothing is fitted here: threshold, postprocessing and calibration are those that the run or the
detector has. Predictor and scorer are those of every other command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.prepared.folder import PreparedFolder, is_one_prepared, is_prepared, load_prepared, verify_files
from keras_pneumo.data.prepared.manifest import MANIFEST_NAME
from keras_pneumo.data.prepared.prepare import PrepareSummary, prepare
from keras_pneumo.detector.detector import Detector, open_detector
from keras_pneumo.detector.record import FILE as DETECTOR_FILE
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board, score_submissions
from keras_pneumo.evaluation.board.findings import own_row, read_board
from keras_pneumo.evaluation.board.subgroups import SubgroupScores, attributes_of, scores_within
from keras_pneumo.evaluation.board.verdict import verdict
from keras_pneumo.evaluation.inputs.alignment import align_submission
from keras_pneumo.evaluation.inputs.submission import Submission, read_submission, write_submission
from keras_pneumo.evaluation.inputs.truth import Truth, read_truth
from keras_pneumo.evaluation.report.external_report import external_report
from keras_pneumo.evaluation.report.pictures import image_loader
from keras_pneumo.evaluation.report.report import write_run_report
from keras_pneumo.evaluation.report.subgroup_report import subgroup_report, subgroup_table
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.inference.contamination import Contamination, contamination_by
from keras_pneumo.inference.ensemble import ALL
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor
from keras_pneumo.inference.run import RunFolder, read_run
from keras_pneumo.inference.submission import FittedPredictions, on_other_data, predict_with_fitted, submission_info
from keras_pneumo.storage.files import folder_lock, require_writable, write_bytes
from keras_pneumo.storage.tables import counted, table_text
from keras_pneumo.storage.workers import Progress

PREPARED, SUBMISSION = "prepared", "submission"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of :func:`evaluate`."""

    folder: Path
    board: Board
    """The scores over all images that were kept, with intervals by patient."""
    subgroups: pd.DataFrame
    """A row per source and subgroup: ``attribute``, ``subgroup``, ``images``, ..., each score with its interval."""
    contamination: pd.DataFrame
    """A row per image: what it shares with the images that were learned from; ``left_out`` says whether it was."""
    cautions: list[str]
    """What must be read before any score; also on top of the page."""
    sentences: list[str]
    """The result, for a person."""
    prepared: PrepareSummary | None
    """What was prepared; None where the folder was prepared before."""

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    @property
    def scores(self) -> pd.DataFrame:
        """A row per score, by its name: ``value``, ``low``, ``high``."""
        entry = self.board.teams[0]
        bounds = {name: entry.intervals[name] for name in entry.point}
        return pd.DataFrame(
            {
                "value": entry.point,
                "low": {name: low for name, (low, _) in bounds.items()},
                "high": {name: high for name, (_, high) in bounds.items()},
            }
        ).loc[list(entry.point)]


def evaluate(
    model: Path,
    data: Path | Sequence[Path],
    out: Path,
    labels: Path | Sequence[Path] | None = None,
    patients: Path | Sequence[Path] | None = None,
    options: LabelOptions | None = None,
    keep_contaminated: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
    workers: int | None = None,
    progress: Progress | None = None,
    distributed: DistributedPredictor = SINGLE_DEVICE,
    pseudonym_key: Path | None = None,
) -> Evaluation:
    """Evaluate a run or a detector on data from elsewhere, and write the report.

    Args:
        model: a run folder or a detector folder.
        data: a folder of labelled radiographs; several are sources that are scored apart; or one prepared folder.
        out: where to write; new, empty, or that of an earlier evaluation.
        labels: label file or folder of masks, as :func:`~keras_pneumo.data.prepared.prepare.prepare` takes it.
        patients: patient table, likewise; one with NIH names leads to NIH's patients.
        options: what is decided about uncertain and blank labels, and names of columns.
        keep_contaminated: whether images that were learned from are scored too; they are left out otherwise.
        seed: of the bootstrap.
        resamples: of the patients.
        workers: processes that decode.
        progress: called with images done and in all, for each pass anew.
        distributed: where the networks predict.
        pseudonym_key: key of the prepared folder that was trained on, by which patients can be compared; see
            :func:`~keras_pneumo.data.prepared.prepare.prepare`.

    Raises:
        PneumoError: ``model`` is neither a run nor a detector, the data cannot be prepared, nothing is left to score,
            or ``out`` is a folder of something else.
    """
    _require_own_folder(out)
    opened = _open(model, distributed)
    given = [data] if isinstance(data, str | Path) else list(data)
    require_writable(out)
    with folder_lock(out):
        prepared, summary = _prepared(opened, given, out, labels, patients, options, workers, progress, pseudonym_key)
        predictions, unlike = _predict(opened, prepared, progress, distributed)
        write_submission(out / SUBMISSION, predictions.info, predictions.table)
        truth = read_truth(prepared.folder, ALL)
        kept = _kept(truth, predictions.contamination, keep_contaminated)
        team = align_submission(_with_images(out / SUBMISSION, kept), kept)
        segmenter = isinstance(opened, RunFolder) and opened.experiment.task == "segmenter"
        board = score_submissions(kept, [team], seed, resamples, headline="dice" if segmenter else "")
        parts = scores_within(board, attributes_of(kept, prepared.folder))
        cautions = _cautions(opened, prepared, predictions.contamination, keep_contaminated, unlike)
        return _write(out, opened, prepared, board, parts, cautions, predictions.contamination, kept, summary)


def _require_own_folder(out: Path) -> None:
    """Refuse a folder of something else, whose report would be replaced."""
    for name in ("experiment.json", DETECTOR_FILE, MANIFEST_NAME):
        if (out / name).exists():
            raise PneumoError(f"{out} holds something else ({name}). Give a new or an empty folder with --out.")


def _open(folder: Path, distributed: DistributedPredictor) -> RunFolder | Detector:
    if not folder.is_dir():
        raise PneumoError(f"There is no folder {folder}. Name the folder of a run, or of a detector that join made.")
    return open_detector(folder, distributed) if (folder / DETECTOR_FILE).is_file() else read_run(folder)


def _members(opened: RunFolder | Detector) -> list[RunFolder]:
    """The run, or the detector's runs."""
    return [opened] if isinstance(opened, RunFolder) else opened.runs


def _prepared(
    opened: RunFolder | Detector,
    data: Sequence[Path],
    out: Path,
    labels: Path | Sequence[Path] | None,
    patients: Path | Sequence[Path] | None,
    options: LabelOptions | None,
    workers: int | None,
    progress: Progress | None,
    pseudonym_key: Path | None,
) -> tuple[PreparedFolder, PrepareSummary | None]:
    """The prepared images of all sizes that are needed, and what was prepared."""
    sizes = sorted({run.experiment.image_size for run in _members(opened)})
    if is_one_prepared(data, any(given is not None for given in (labels, patients, options, pseudonym_key))):
        prepared = load_prepared(data[0])
        for size in sizes:
            verify_files(prepared, size)
        return prepared, None
    if prepared_too := [folder for folder in data if is_prepared(folder)]:
        raise PneumoError(
            f"{prepared_too[0]} is a prepared folder, which is evaluated alone. Name the folders of radiographs."
        )
    folder = out / PREPARED
    summary = prepare(
        list(data),
        folder,
        sizes,
        labels,
        patients,
        workers=workers,
        progress=progress,
        options=options,
        test_only=True,
        pseudonym_key=pseudonym_key,
    )
    return load_prepared(folder), summary


def _predict(
    opened: RunFolder | Detector,
    prepared: PreparedFolder,
    progress: Progress | None,
    distributed: DistributedPredictor,
) -> tuple[FittedPredictions, int]:
    """Every image predicted, with what was fitted at home, and how many a detector finds unlike its training images."""
    if isinstance(opened, RunFolder):
        return predict_with_fitted([opened], prepared, ALL, progress, distributed=distributed), 0
    image_ids = prepared.cases["image_id"].tolist()
    rows, unlike = [], 0
    for image_id, answer in opened.answer_prepared(prepared, image_ids, progress):
        unlike += answer.unlike
        rows.append(
            {"image_id": image_id, "probability": answer.probability, "encoded_pixels": rle.encode(answer.mask)}
        )
    members = opened.runs
    contamination = contamination_by(members, prepared, image_ids)
    info = submission_info(members, "joint", ALL, opened.threshold, opened.engines)
    info = info.model_copy(update={"team": f"keras-pneumo {opened.name} (joined)"[:80]})
    return FittedPredictions(on_other_data(info, prepared, contamination), pd.DataFrame(rows), contamination), unlike


def _kept(truth: Truth, contamination: Contamination, keep: bool) -> Truth:
    """The truth without the images that were learned from.

    Raises:
        PneumoError: none is left.
    """
    shared = set(contamination.table.loc[contamination.shared, "image_id"])
    rows = np.flatnonzero(~truth.cases.image_id.isin(shared).to_numpy() | keep)
    if not len(rows):
        raise PneumoError(
            f"Nothing is left to score: {contamination.sentences[0]} Evaluate on other data, or give "
            "--keep-contaminated, which scores what was learned from."
        )
    return truth if len(rows) == len(truth.cases) else truth.with_rows(rows)


def _with_images(folder: Path, truth: Truth) -> Submission:
    """The submission as it was written, with the images of a truth only."""
    submission = read_submission(folder)
    wanted = submission.predictions["image_id"].isin(set(truth.cases.image_id))
    return replace(submission, predictions=submission.predictions[wanted].reset_index(drop=True))


def _cautions(
    opened: RunFolder | Detector, prepared: PreparedFolder, contamination: Contamination, keep: bool, unlike: int
) -> list[str]:
    """What must be read before any score."""
    cautions = []
    if opened.synthetic and not prepared.synthetic:
        cautions.append(
            "The network was trained on synthetic phantoms, and these are real radiographs: it has never seen one, and "
            "its scores are those of an experiment."
        )
    if prepared.synthetic and not opened.synthetic:
        cautions.append(
            "These images are synthetic phantoms, and the network was trained on radiographs: its scores here say "
            "nothing about radiographs."
        )
    if unlike:
        images = counted(len(contamination.table), "image")
        verb, them, they = ("is", "it", "it is") if unlike == 1 else ("are", "them", "they are")
        cautions.append(
            f"{unlike:,} of {images} {verb} not like the training images. keras-pneumo detect would not answer for "
            f"{them}; here {they} scored as all others."
        )
    shared = int(contamination.shared.sum())
    if contamination.by_name and not contamination.unknown:
        cautions.append(contamination.by_name)
    if contamination.unknown:
        cautions += contamination.sentences
    elif shared and keep:
        cautions.append(
            f"The scores are too good: {counted(shared, 'scored image')} that the network has or may have learned from "
            "were kept (--keep-contaminated)."
        )
    elif shared:
        cautions.append(
            f"{counted(shared, 'image')} of {len(contamination.table):,} that the network has or may have learned from "
            f"{'was' if shared == 1 else 'were'} left out; contamination.csv names {'it' if shared == 1 else 'them'}."
        )
    return cautions


def _home_scores(opened: RunFolder | Detector) -> dict[str, Any] | None:
    """The row of the network's own board, on the test images of the data it was trained on; None without a board."""
    if isinstance(opened, Detector):
        row = own_row(read_board(opened.folder / "board/board.csv", joined=True))
    else:
        row = own_row(read_board(opened.folder / "board.csv"))
    return None if row is None else {str(name): value for name, value in row.items()}


def _write(
    out: Path,
    opened: RunFolder | Detector,
    prepared: PreparedFolder,
    board: Board,
    parts: list[SubgroupScores],
    cautions: list[str],
    contamination: Contamination,
    kept: Truth,
    summary: PrepareSummary | None,
) -> Evaluation:
    """Write tables and report."""
    contamination.write(out)
    table = subgroup_table(parts)
    for name, content in (("per_image", board.per_image), ("board", board.table), ("subgroups", table)):
        write_bytes(out / f"{name}.csv", table_text(content).encode())
    shared = [] if contamination.unknown else contamination.sentences
    external = external_report(board, cautions, shared, _home_scores(opened))
    subgroups = subgroup_report(parts, board.headline)
    facts = {key: value for key, value in opened.record.items() if key not in ("files", "command", "heat")}
    facts |= {"trained_on": _members(opened)[0].record.get("trained_on")}
    write_run_report(
        out / "report.html",
        board,
        experiment=facts,
        image=image_loader(prepared.folder),
        external=external,
        subgroups=subgroups,
    )
    found = verdict(board)
    scored = set(kept.cases.image_id)
    left_out = contamination.table.assign(left_out=~contamination.table["image_id"].isin(scored))
    sentences = [
        found.headline,
        *found.sentences,
        *found.warnings,
        *(subgroups.worst.sentences if subgroups is not None else []),
        *shared,
    ]
    return Evaluation(out, board, table, left_out, cautions, sentences, summary)
