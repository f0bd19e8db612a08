"""From a folder of submissions and a truth to a board, its files and its report: what ``keras-pneumo compare`` calls.

In: paths. Out: a folder with ``per_image.csv``, ``pairs.csv``, ``board.csv``, ``board.json``, ``board.md`` and
``report.html``, and the :class:`Board`. All
submissions are read and checked before anything is computed, and all that is wrong with them is said at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board, score_submissions
from keras_pneumo.evaluation.board.findings import Findings, analyse, board_json, board_markdown, ranked_table
from keras_pneumo.evaluation.board.label_noise import read_adjudicated
from keras_pneumo.evaluation.inputs.alignment import AlignedSubmission, align_submission
from keras_pneumo.evaluation.inputs.submission import INFO_FILE, Submission, read_submission
from keras_pneumo.evaluation.inputs.truth import Truth, read_truth
from keras_pneumo.evaluation.report.pictures import ImageLoader, image_loader
from keras_pneumo.evaluation.report.report import write_comparison_report
from keras_pneumo.evaluation.report.saliency_report import SaliencyReport
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.storage.files import require_writable, write_bytes
from keras_pneumo.storage.tables import one_line, table_text


class Comparison(NamedTuple):
    """All scores, and what they say of the teams side by side."""

    board: Board
    findings: Findings


def compare(
    folder: Path,
    truth: Path,
    out: Path,
    subset: str = "test",
    ids: Path | None = None,
    patients: Path | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
    clip_runs: bool = False,
    team: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    images: ImageLoader | None = None,
    metadata: Path | None = None,
    adjudicated: Path | None = None,
    this_split: bool = False,
) -> Comparison:
    """Score one submission or all submissions of a folder, and write the results.

    Args:
        folder: a submission (folder or CSV), a run folder, or a folder that holds several of these.
        truth: see :func:`truth.read_truth`, as are ``subset``, ``ids`` and ``patients``.
        out: where the results go; made if need be.
        subset: the scored subset.
        ids: image ids to score, when ``truth`` is a label file.
        patients: patient table, when ``truth`` has no patients.
        allow_missing: see :func:`matching.align_submission`, as are ``allow_extra`` and ``clip_runs``.
        allow_extra: see there.
        clip_runs: see there.
        team: only the submission of this team (its declared name or its folder's name).
        seed: seed of the bootstrap.
        resamples: number of resamples.
        images: gives radiographs for the report; by default those of the prepared folder that ``truth`` is in.
        metadata: a table about the images, each column of which becomes a no-pixel answer.
        this_split: pass over submissions that were made on another split, or name none, instead of refusing them.
        adjudicated: radiologists' labels (a column Pneumothorax, yes or no), for the ceiling; see :mod:`ceiling`.

    Raises:
        PneumoError: nothing to score, or the truth or any submission is refused (all refusals in one message).
    """
    if Path(out).resolve() == Path(folder).resolve():
        raise PneumoError(
            f"{out} is the folder of the submissions themselves; the board would be taken for one. Give another --out."
        )
    known = read_truth(truth, subset, ids, patients, metadata)
    judged = read_adjudicated(adjudicated, known) if adjudicated is not None else None
    found = [read for read in read_all(folder) if team is None or team in (read.info.team, read.path.name)]
    if not found:
        raise PneumoError(f"{folder} has no submission of the team {team!r}.")
    if this_split:
        found = [read for read in found if read.info.split_sha256 == known.split_sha256]
        if not found:
            raise PneumoError(f"{folder} has no submission made on the split of {truth}. Train or predict on it first.")
    answers = align_all(found, known, allow_missing, allow_extra, clip_runs)
    require_writable(Path(out))  # now, not when thousands of resamples are done
    board = score_submissions(known, answers, seed, resamples, names=distinct_names(found))
    comparison = Comparison(board, analyse(board, judged))
    write_board(board, out, images or image_loader(truth), comparison.findings)
    return comparison


def find_submissions(folder: Path) -> list[Path]:
    """The submissions at a path: itself, a run's ``submission/``, or those of its children, sorted by name.

    Raises:
        PneumoError: there is none.
    """
    folder = Path(folder)
    if not folder.exists():
        raise PneumoError(f"There is no {folder}.")
    if not folder.is_dir():
        return [folder]
    found = _submission_in(folder)
    if found:
        return [found]
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
            "with the columns ImageId and EncodedPixels."
        )
    return paths


def read_all(folder: Path) -> list[Submission]:
    """Every submission at a path, read; refusals of all of them in one message."""
    found, faults = [], []
    for path in find_submissions(folder):
        try:
            found.append(read_submission(path))
        except PneumoError as error:
            faults.append(str(error))
    if faults:
        raise PneumoError("\n".join(faults))
    return found


def align_all(
    submissions: list[Submission], truth: Truth, allow_missing: bool, allow_extra: bool, clip_runs: bool
) -> list[AlignedSubmission]:
    """Every submission laid against the truth; refusals of all of them in one message."""
    found, faults = [], []
    for submission in submissions:
        try:
            found.append(align_submission(submission, truth, allow_missing, allow_extra, clip_runs))
        except PneumoError as error:
            faults.append(str(error))
    if faults:
        raise PneumoError("\n".join(faults))
    return found


def distinct_names(submissions: list[Submission]) -> list[str]:
    """What to call each submission: its team, with its folder's name behind it where teams share a name."""
    names = [submission.info.team for submission in submissions]
    full = []
    for submission, name in zip(submissions, names, strict=True):
        where = submission.path.parent if submission.path.name == "submission" else submission.path
        full.append(name if names.count(name) == 1 else f"{name} ({one_line(where.name, 60)})")
    return full


def write_board(
    board: Board,
    out: Path,
    images: ImageLoader | None = None,
    findings: Findings | None = None,
    saliency: SaliencyReport | None = None,
) -> None:
    """Write ``per_image.csv`` first, then ``pairs.csv``, the board as CSV, JSON and Markdown, and the report.

    Each file appears whole or not at all. ``saliency`` is the saliency report of one of the teams.
    """
    findings = findings or analyse(board)
    out = Path(out)
    write_bytes(out / "per_image.csv", table_text(board.per_image).encode())
    write_bytes(out / "pairs.csv", table_text(findings.pairs).encode())
    write_bytes(out / "board.csv", table_text(ranked_table(board, findings)).encode())
    write_bytes(out / "board.json", board_json(board, findings).encode())
    write_bytes(out / "board.md", board_markdown(board, findings).encode())
    write_comparison_report(out / "report.html", board, images, findings, saliency)


def _submission_in(folder: Path) -> Path | None:
    for place in (folder, folder / "submission"):
        if (place / INFO_FILE).is_file():
            return place
    return None
