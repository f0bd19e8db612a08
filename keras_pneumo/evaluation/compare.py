"""Scores one submission, or compares all submissions of a folder and writes the board and its report.

In: paths or tables. Out: :class:`Scores` of one submission, or a :class:`Comparison` and, in the output folder,
``per_image.csv``, ``pairs.csv``, ``board.csv``, ``board.json``, ``board.md`` and ``report.html``. All submissions are
read and checked before anything is computed, and one message lists all errors, each with its file and rows.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board, score_entries, score_submissions
from keras_pneumo.evaluation.board.entries import team_entry
from keras_pneumo.evaluation.board.findings import Findings, analyse, board_json, board_markdown, ranked_table
from keras_pneumo.evaluation.board.label_noise import read_adjudicated
from keras_pneumo.evaluation.board.verdict import Verdict, verdict, with_interval
from keras_pneumo.evaluation.inputs.alignment import AlignedSubmission, align_submission, examine_alignment
from keras_pneumo.evaluation.inputs.submission import (
    INFO_FILE,
    PREDICTIONS_FILE,
    Fault,
    Submission,
    SubmissionInfo,
    Task,
    examine_submission,
    read_submission,
    write_submission,
)
from keras_pneumo.evaluation.inputs.truth import Truth, read_truth
from keras_pneumo.evaluation.report.calibration_report import CalibrationReport
from keras_pneumo.evaluation.report.likeness_report import LikenessReport
from keras_pneumo.evaluation.report.pictures import ImageLoader, image_loader
from keras_pneumo.evaluation.report.report import write_comparison_report
from keras_pneumo.evaluation.report.saliency_report import SaliencyReport
from keras_pneumo.evaluation.report.subgroup_report import SubgroupReport
from keras_pneumo.evaluation.scoring.scores import COMMON_SENSITIVITY
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.storage.files import folder_lock, replacing_contents, require_writable, write_bytes
from keras_pneumo.storage.tables import column_name, listed, one_line, table_text


class Score(NamedTuple):
    """One score with the bounds of its 95% interval by patient; NaN where a number does not exist."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """``0.943 (95% interval 0.912 to 0.968)``."""
        return with_interval(self.value, (self.low, self.high))


BOARD_FILES = ("per_image.csv", "pairs.csv", "board.csv", "board.json", "board.md", "report.html")
"""Of a board, the report last: it shows that the others are there."""


@dataclass(frozen=True, eq=False)
class Scores:
    """All scores of one submission: ``scores["dice"]`` or ``scores.dice`` is a :class:`Score`."""

    team: str
    table: pd.DataFrame
    """A row per score, by its name (``auroc``, ``dice``, ...): ``value``, ``low``, ``high``."""
    per_image: pd.DataFrame
    """A row per image: ``image_id``, ``pneumothorax``, and as far as they exist ``probability``, ``dice``, ``iou``."""
    images: int
    patients: int
    positives: int
    threshold: float | None
    """The probability from which on the answer counts as yes; None for masks alone."""
    threshold_source: str
    notes: list[str] = field(default_factory=list)
    """What limits the scores: no patient table, images left out, and so on."""

    def __getitem__(self, name: str) -> Score:
        """One score by its name; a KeyError names those that exist."""
        if name not in self.table.index:
            raise KeyError(f"{name!r} was not computed; there are {', '.join(self.table.index)}")
        return Score(*map(float, self.table.loc[name]))

    def __getattr__(self, name: str) -> Score:
        """One score by its name, as an attribute."""
        if name.startswith("_") or name == "table" or name not in self.table.index:
            raise AttributeError(name)
        return self[name]


class Comparison(NamedTuple):
    """The board of all submissions and baselines, and the comparison of the teams."""

    board: Board
    findings: Findings

    @property
    def table(self) -> pd.DataFrame:
        """The board, as ``board.csv`` has it: a row per team or baseline, each score with ``_low`` and ``_high``."""
        return ranked_table(self.board, self.findings)

    @property
    def pairs(self) -> pd.DataFrame:
        """Every pair of teams on every score, with intervals and p values, as ``pairs.csv`` has it."""
        return self.findings.pairs

    @property
    def per_image(self) -> pd.DataFrame:
        """A row per image and team, as ``per_image.csv`` has it."""
        return self.board.per_image

    @property
    def verdict(self) -> Verdict:
        """The result in sentences, and the warnings that limit it."""
        return verdict(self.board)


def score(
    truth: str | Path | pd.DataFrame | Truth,
    submission: str | Path | pd.DataFrame | Submission,
    subset: str = "test",
    ids: str | Path | None = None,
    patients: str | Path | None = None,
    threshold: float | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
    clip_runs: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Scores:
    """Score one submission: every score with its 95% interval by patient.

    Args:
        truth: a prepared folder, its ``truth.csv``, a label file (see :func:`.truth.read_truth`), or a table with
            ``image_id`` and ``pneumothorax`` (0 or 1) and/or ``encoded_pixels``; ``patient_id`` makes the intervals
            those of patients.
        submission: a submission's folder, a bare file, or a table with ``image_id`` and ``probability`` and/or
            ``encoded_pixels``.
        subset: the scored subset, where the truth has subsets.
        ids: a file of the image ids to score, where the truth is a label file.
        patients: patient table, where the truth has no patients.
        threshold: for a table: the probability from which on the answer counts as yes; 0.5 by default. A folder
            declares its own.
        allow_missing: see :func:`.alignment.align_submission`, as for the next two.
        allow_extra: see there.
        clip_runs: see there.
        seed: seed of the bootstrap.
        resamples: number of resamples of the patients.

    Raises:
        PneumoError: the truth or the submission is refused; the message names file, row and reason.
    """
    ground_truth = _as_truth(truth, subset, ids, patients)
    parsed = _as_submission(submission, ground_truth, threshold)
    entry = team_entry(
        parsed.info.team,
        "submission",
        align_submission(parsed, ground_truth, allow_missing, allow_extra, clip_runs),
        ground_truth,
    )
    (entry,) = score_entries([entry], ground_truth, seed, resamples, COMMON_SENSITIVITY)
    table = pd.DataFrame(
        {"value": entry.point, "low": {n: i.low for n, i in entry.intervals.items()}}
        | {"high": {n: i.high for n, i in entry.intervals.items()}}
    ).loc[list(entry.point)]
    per_image = ground_truth.cases[["image_id", "pneumothorax"]].reset_index(drop=True)
    if entry.probability is not None:
        per_image["probability"] = entry.probability
    if entry.masks is not None:
        per_image = pd.concat([per_image, entry.masks], axis=1)
    return Scores(
        entry.team,
        table,
        per_image,
        len(ground_truth.cases),
        ground_truth.n_patients,
        int(ground_truth.pneumothorax.sum()),
        entry.threshold,
        entry.threshold_source,
        [*ground_truth.notes, *entry.notes],
    )


def compare(
    folder: str | Path,
    truth: str | Path,
    out: str | Path | None = None,
    subset: str = "test",
    ids: str | Path | None = None,
    patients: str | Path | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
    clip_runs: bool = False,
    team: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    images: ImageLoader | None = None,
    metadata: str | Path | None = None,
    adjudicated: str | Path | None = None,
    this_split: bool = False,
) -> Comparison:
    """Score one submission or all submissions of a folder, and write the board where ``out`` is given.

    Args:
        folder: a submission (folder or CSV), a run folder, or a folder that holds several of these.
        truth: see :func:`.truth.read_truth`, as are ``subset``, ``ids`` and ``patients``.
        out: folder for the results; made if it does not exist. Without it nothing is written.
        subset: the scored subset.
        ids: image ids to score, when ``truth`` is a label file.
        patients: patient table, when ``truth`` has no patients.
        allow_missing: see :func:`.alignment.align_submission`, as are ``allow_extra`` and ``clip_runs``.
        allow_extra: see there.
        clip_runs: see there.
        team: only the submission of this team (its declared name or its folder's name).
        seed: seed of the bootstrap.
        resamples: number of resamples.
        images: gives radiographs for the report; by default those of the prepared folder that ``truth`` is in.
        metadata: a table about the images, each column of which becomes a metadata-only baseline.
        adjudicated: radiologists' labels (a column Pneumothorax, yes or no), to measure how often the labels are right;
            see :mod:`.label_noise`.
        this_split: leave out submissions that were made on another split, or name none, instead of refusing them.

    Raises:
        PneumoError: nothing to score, the truth or any submission is refused (all errors in one message), or another
            comparison is being written into ``out``.
    """
    folder, truth = Path(folder), Path(truth)
    if out is not None and Path(out).resolve() == folder.resolve():
        raise PneumoError(
            f"{out} is also the folder of the submissions, so the board would be read as a submission next time. "
            "Give another --out."
        )
    ground_truth = read_truth(truth, subset, _path(ids), _path(patients), _path(metadata))
    adjudicated_labels = read_adjudicated(Path(adjudicated), ground_truth) if adjudicated is not None else None
    submissions = [examine_submission(path) for path in find_submissions(folder)]
    if team is not None:
        submissions = [submission for submission in submissions if team in (submission.info.team, submission.path.name)]
        if not submissions:
            raise PneumoError(f"{folder} has no submission of the team {team!r}. Check its name.")
    if this_split:
        submissions = [
            submission
            for submission in submissions
            if submission.errors or submission.info.split_sha256 == ground_truth.split_sha256
        ]
        if not submissions:
            raise PneumoError(f"{folder} has no submission made on the split of {truth}. Train or predict on it first.")
    aligned = align_all(submissions, ground_truth, allow_missing, allow_extra, clip_runs)
    with folder_lock(Path(out)) if out is not None else contextlib.nullcontext():
        if out is not None:
            require_writable(Path(out))  # now, not after thousands of resamples
        board = score_submissions(ground_truth, aligned, seed, resamples, names=distinct_names(submissions))
        findings = analyse(board, adjudicated_labels)
        if out is not None:
            write_board(board, Path(out), images or image_loader(truth), findings)
    return Comparison(board, findings)


def find_submissions(folder: Path) -> list[Path]:
    """The submissions at a path: itself, a run's ``submission/``, or those of its children, sorted by name.

    Raises:
        PneumoError: there is none.
    """
    folder = Path(folder)
    if not folder.exists():
        raise PneumoError(f"There is no {folder}. Check the path.")
    if not folder.is_dir():
        return [folder]
    own = _submission_in(folder)
    if own:
        return [own]
    paths = []
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        inside = _submission_in(child) if child.is_dir() else None
        if inside:
            paths.append(inside)
        elif child.is_file() and child.name.endswith((".csv", ".csv.gz")):
            paths.append(child)
    if not paths:
        raise PneumoError(
            f"{folder} holds no submission. A submission is a folder with {INFO_FILE} and predictions.csv, or a CSV "
            "with the columns ImageId and EncodedPixels. "
            "Name a folder that holds one."
        )
    return paths


def align_all(
    submissions: list[Submission],
    truth: Truth,
    allow_missing: bool = False,
    allow_extra: bool = False,
    clip_runs: bool = False,
) -> list[AlignedSubmission]:
    """Align every submission with the truth.

    Raises:
        PneumoError: one of them has errors, in its files or beside the truth; one message lists all errors of all.
    """
    aligned, faults = examine_all(submissions, truth, allow_missing, allow_extra, clip_runs)
    if faults:
        raise PneumoError("\n".join(map(str, faults)))
    return aligned


def examine_all(
    submissions: list[Submission],
    truth: Truth,
    allow_missing: bool = False,
    allow_extra: bool = False,
    clip_runs: bool = False,
) -> tuple[list[AlignedSubmission], list[Fault]]:
    """Align every submission with the truth as :func:`align_all` does, and return all faults of all of them.

    They are fit to be scored only where there is no fault.
    """
    aligned, faults = [], []
    for submission in submissions:
        one, wrong = examine_alignment(submission, truth, allow_missing, allow_extra, clip_runs)
        aligned.append(one)
        faults += [*submission.errors, *wrong]
    return aligned, faults


def check_submissions(
    folder: Path, truth: Truth, allow_missing: bool = False, allow_extra: bool = False, clip_runs: bool = False
) -> tuple[list[AlignedSubmission], list[Fault]]:
    """Check submissions by the very functions by which :func:`compare` reads them, and score nothing.

    Args:
        folder: a submission (also one without its ``submission.json``, which is then a fault), a run folder, a Kaggle
            csv, or a folder of several.
        truth: the scored images.
        allow_missing: see :func:`.alignment.align_submission`, as are ``allow_extra`` and ``clip_runs``.
        allow_extra: see there.
        clip_runs: see there.

    Returns:
        The submissions beside the truth, with their notes, and every fault; without any, ``compare`` takes them all.

    Raises:
        PneumoError: there is no submission.
    """
    undeclared = (folder / PREDICTIONS_FILE).is_file() and _submission_in(folder) is None
    paths = [folder] if undeclared else find_submissions(folder)
    return examine_all([examine_submission(path) for path in paths], truth, allow_missing, allow_extra, clip_runs)


def distinct_names(submissions: list[Submission]) -> list[str]:
    """The name of each submission: its team, followed by its folder's name where teams share a name."""
    names = [submission.info.team for submission in submissions]
    full = []
    for submission, name in zip(submissions, names, strict=True):
        folder = submission.path.parent if submission.path.name == "submission" else submission.path
        full.append(name if names.count(name) == 1 else f"{name} ({one_line(folder.name, 60)})")
    return full


def write_board(
    board: Board,
    out: Path,
    images: ImageLoader | None = None,
    findings: Findings | None = None,
    saliency: SaliencyReport | None = None,
    likeness: LikenessReport | None = None,
    subgroups: SubgroupReport | None = None,
    calibration: CalibrationReport | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write ``per_image.csv``, ``pairs.csv``, the board as CSV, JSON and Markdown, and the report.

    They take the place of an older board's together, when all are written; a board without its report is not whole.
    ``saliency`` is the saliency report of one of the teams, ``likeness`` a detector's check of its input; the others
    are those of :func:`.report.write_comparison_report`.
    """
    findings = findings or analyse(board)
    with replacing_contents(Path(out), BOARD_FILES) as new:
        write_bytes(new / "per_image.csv", table_text(board.per_image).encode())
        write_bytes(new / "pairs.csv", table_text(findings.pairs).encode())
        write_bytes(new / "board.csv", table_text(ranked_table(board, findings)).encode())
        write_bytes(new / "board.json", board_json(board, findings).encode())
        write_bytes(new / "board.md", board_markdown(board, findings).encode())
        write_comparison_report(
            new / "report.html", board, images, findings, saliency, likeness, subgroups, calibration, record
        )


def _as_truth(
    truth: str | Path | pd.DataFrame | Truth, subset: str, ids: str | Path | None, patients: str | Path | None
) -> Truth:
    if isinstance(truth, Truth):
        return truth
    if not isinstance(truth, pd.DataFrame):
        return read_truth(Path(truth), subset, _path(ids), _path(patients))
    with tempfile.TemporaryDirectory() as folder:  # through a file, so that a table passes the same checks as a file
        file = Path(folder) / "labels.csv"
        table = _plain_columns(truth)
        if "pneumothorax" in table.columns:
            table["pneumothorax"] = table.pneumothorax.replace({True: 1, False: 0})
        table.to_csv(file, index=False)
        try:
            return read_truth(file, subset, _path(ids), _path(patients))
        except PneumoError as error:
            raise PneumoError(str(error).replace(str(file), "The table of the truth")) from None


def _as_submission(
    submission: str | Path | pd.DataFrame | Submission, truth: Truth, threshold: float | None
) -> Submission:
    if isinstance(submission, Submission):
        return submission
    if not isinstance(submission, pd.DataFrame):
        if threshold is not None:
            raise PneumoError(
                "A threshold is for a table of predictions; a submission folder declares its own. "
                "Leave the threshold out."
            )
        paths = find_submissions(Path(submission))
        if len(paths) > 1:
            raise PneumoError(f"{submission} holds {len(paths)} submissions. Give one of them, or use compare.")
        return read_submission(paths[0])
    table = _plain_columns(submission)
    tasks: dict[tuple[bool, bool], Task] = {
        (True, False): "classification",
        (False, True): "segmentation",
        (True, True): "joint",
    }
    given = "probability" in table.columns, "encoded_pixels" in table.columns
    if "image_id" not in table.columns or given not in tasks:
        raise PneumoError(
            "The table of the submission needs a column image_id, and a column probability or encoded_pixels. "
            f"It has {listed(one_line(str(name), 40) for name in submission.columns)}."
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise PneumoError(f"The threshold is {threshold}, but it must be from 0 to 1.")
    info = SubmissionInfo(
        team="submission",
        task=tasks[given],
        subset=truth.subset,
        split_sha256=truth.split_sha256,
        threshold=0.5 if threshold is None and given[0] else threshold,
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "table"
        try:
            return read_submission(write_submission(target, info, table))
        except PneumoError as error:
            reasons = re.sub(rf"{re.escape(folder)}\S*/{PREDICTIONS_FILE}", "predictions", str(error))
            raise PneumoError(f"The table of the submission was refused: {reasons}") from None


def _plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with Kaggle's column names replaced by image_id and encoded_pixels, and missing cells blank."""
    names = {"imageid": "image_id", "encodedpixels": "encoded_pixels"}
    columns = {name: names.get(column_name(str(name)), str(name)) for name in table.columns}
    table = table.rename(columns=columns).copy()
    if "encoded_pixels" in table.columns:
        table["encoded_pixels"] = [
            "-1" if cell is None or (isinstance(cell, float) and np.isnan(cell)) else str(cell)
            for cell in table.encoded_pixels
        ]
    return table


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _submission_in(folder: Path) -> Path | None:
    return next((path for path in (folder, folder / "submission") if (path / INFO_FILE).is_file()), None)
