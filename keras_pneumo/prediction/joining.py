"""From finished runs to a detector: what joins them is fitted on validation, and shown beside the parts on test.

In: classifier and segmenter runs of the same split and folds, and the prepared folder. Out: a detector folder (see
:mod:`keras_pneumo.prediction.detector`) with the detector's submission, those of its parts, a check of where the
classifier looks, and a board of the three. How they are joined is told in :mod:`keras_pneumo.prediction.joint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from keras_pneumo.data.prepared import Prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board import Board, score
from keras_pneumo.evaluation.compare import check_all, image_loader, write_board
from keras_pneumo.evaluation.statistics import RESAMPLES
from keras_pneumo.evaluation.submission import read_submission
from keras_pneumo.evaluation.truth import read_truth
from keras_pneumo.evaluation.where import FOLDER, read_where
from keras_pneumo.prediction import explain
from keras_pneumo.prediction.choice import choose
from keras_pneumo.prediction.detector_files import write_members, write_record, write_submissions
from keras_pneumo.prediction.ensemble import check_gate, check_together, predict_classifiers
from keras_pneumo.prediction.joint import Asked, Joint, fit_joint, joined_answers
from keras_pneumo.prediction.positives import outlined
from keras_pneumo.prediction.predict import Progress
from keras_pneumo.prediction.run import Run, load_model
from keras_pneumo.prediction.segment import predict_map_set


def join(
    classifiers: Sequence[Run],
    segmenters: Sequence[Run],
    prepared: Prepared,
    folder: Path,
    name: str = "detector",
    progress: Progress | None = None,
    resamples: int = RESAMPLES,
) -> tuple[Joint, Board]:
    """Fit on validation what joins these runs, and write the detector folder with its board on the test subset.

    Args:
        classifiers: finished runs, of the same folds as the segmenters.
        segmenters: finished runs.
        prepared: the folder they were trained on, or another with the same split.
        folder: an empty or new folder.
        name: how the detector calls itself, in its answers and on the board.
        progress: called with images done and in all, for each pass anew.
        resamples: of the patients, for the intervals of the board and of where the classifier looks.

    Raises:
        PneumoError: the runs cannot stand together, or the folder was split otherwise.
    """
    if any(run.experiment.task != "segmenter" for run in segmenters) or not segmenters:
        raise PneumoError("--segmenter names a run that is no segmenter. Give one made by train-segmenter.")
    check_together(segmenters, prepared)
    check_together(classifiers, prepared)
    check_gate(classifiers, segmenters)
    held_out = _ask(classifiers, segmenters, prepared, "validation", progress)
    joint = fit_joint(held_out, prepared)
    asked = _ask(classifiers, segmenters, prepared, "test", progress)
    choice = heat_choice(classifiers[0], prepared)
    places = write_members(folder, classifiers, segmenters)
    write_record(folder, name, joint, places, prepared, choice)
    write_submissions(folder, name, joint, classifiers, segmenters, held_out, asked, prepared)
    if choice is not None and outlined(classifiers[0], prepared, "test"):
        table = joined_answers(asked, joint).set_index("image_id")["probability"]
        _explain(folder, classifiers, segmenters, prepared, choice, table, joint.threshold, progress, resamples)
    return joint, _write_board(folder, prepared, resamples)


def _ask(
    classifiers: Sequence[Run], segmenters: Sequence[Run], prepared: Prepared, subset: str, progress: Progress | None
) -> Asked:
    table = predict_classifiers(classifiers, prepared, subset, progress).set_index("image_id")["probability"]
    maps = predict_map_set(segmenters, prepared, subset, progress)
    return Asked(maps, table.loc[maps.image_ids].to_numpy(float))


def heat_choice(run: Run, prepared: Prepared) -> pd.DataFrame | None:
    """Methods and stages of the heat maps by how well they point on validation positives; see :func:`choice.choose`.

    One network is asked, the run's best; runs that answer as one are of one kind. None where no validation positive is
    outlined, so that there is nothing to choose by.
    """
    return choose(load_model(run), run, prepared) if outlined(run, prepared, "validation") else None


def _explain(
    folder: Path,
    classifiers: Sequence[Run],
    segmenters: Sequence[Run],
    prepared: Prepared,
    choice: pd.DataFrame,
    probability: pd.Series,
    threshold: float,
    progress: Progress | None,
    resamples: int,
) -> None:
    """Check on test where the first classifier looks, beside the joined segmenters' map and by the detector's answers.

    It is made anew rather than taken from the classifier's run: there neither the segmenter nor the detector is known.
    """
    wanted = explain.Asked(choice=choice, segmenters=segmenters)
    names = tuple(run.experiment.name for run in classifiers)
    answers = explain.Answers(probability, threshold, names)
    explain.explain_prepared(classifiers[0], prepared, folder / FOLDER, wanted, answers, resamples, progress)


def _write_board(folder: Path, prepared: Prepared, resamples: int) -> Board:
    """Scores of the detector beside its parts, from the submissions as they were written, in ``board``."""
    truth = read_truth(prepared.folder)
    read = [read_submission(folder / place) for place in ("submission", "parts/segmenter", "parts/classifier")]
    board = score(truth, check_all(read, truth, False, False, False), resamples=resamples)
    write_board(board, folder / "board", image_loader(prepared.folder), where=read_where(folder / FOLDER))
    return board
