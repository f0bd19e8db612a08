"""The rungs of what is handed in: the same logits as prediction files, and the referee's scores of both files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.board.board import score_submissions
from keras_pneumo.evaluation.inputs.alignment import align_submission
from keras_pneumo.evaluation.inputs.submission import (
    PREDICTIONS_FILE,
    SubmissionInfo,
    read_submission,
    write_submission,
)
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.inference.maps import enlarge, quantise
from keras_pneumo.inference.postprocess import PostprocessingParameters

RULE = PostprocessingParameters(top=0.5, area=1, bottom=0.5)
"""A mask wherever the probability, enlarged to 1024x1024, is at least one half."""

DIGITS = 12
"""Significant digits of a probability that must agree; float64 has nearly sixteen."""

SUBMISSION = "submission"


def write_predictions(folder: Path, image_ids: list[str], logits: np.ndarray, masks: np.ndarray) -> None:
    """The submission that the package makes of logits (n, 1) and mask logits (n, s, s, 1)."""
    from keras_pneumo.inference.predictor import sigmoid

    levels = quantise(sigmoid(masks[..., 0], np.float32))
    table = pd.DataFrame(
        {
            "image_id": image_ids,
            "probability": sigmoid(logits[:, 0]),
            "encoded_pixels": [rle.encode(RULE.mask(enlarge(one))) for one in levels],
        }
    )
    info = SubmissionInfo(team="ladder, Keras", task="joint", threshold=0.5, framework="Keras")
    write_submission(folder / SUBMISSION, info, table)


def texts_of(folder: Path) -> dict[str, np.ndarray]:
    """Ids, probabilities to twelve digits, and encoded pixels, of a column's submission, as texts."""
    table = pd.read_csv(folder / SUBMISSION / PREDICTIONS_FILE, dtype=str, keep_default_na=False)
    rounded = [f"{float(text):.{DIGITS}g}" for text in table["probability"]]
    return {
        "image ids": table["image_id"].to_numpy("U"),
        "probabilities": np.array(rounded, "U"),
        "encoded pixels": table["encoded_pixels"].to_numpy("U"),
    }


def equal_to_the_last_digit(first: Path, second: Path) -> tuple[int, int]:
    """How many probabilities of two submissions are equal with all their digits, and how many there are."""
    tables = [
        pd.read_csv(path / SUBMISSION / PREDICTIONS_FILE, dtype=str, keep_default_na=False) for path in (first, second)
    ]
    same = tables[0]["probability"].to_numpy() == tables[1]["probability"].to_numpy()
    return int(same.sum()), len(same)


def referee(truth: Path, folder: Path) -> dict[str, np.ndarray]:
    """The referee's AUROC and mean Dice of a column's submission."""
    known = read_truth(truth)
    answers = align_submission(read_submission(folder / SUBMISSION), known)
    point = score_submissions(known, [answers], resamples=100).teams[0].point
    return {name: np.array([point[name]]) for name in ("auroc", "dice")}


def scores_of(folder: Path, own: Path, by_itself: bool) -> dict[str, np.ndarray]:
    """A column's scores twice: by the referee, and again by PyTorch's own scorer where the column has one.

    ``own`` is the column's folder inside the ladder's.
    """
    found = referee(folder / "truth.csv", own)
    again = found
    if by_itself:
        said = json.loads((own / "scores.json").read_text(encoding="utf-8"))
        again = {name: np.array([float(said[name])]) for name in found}
    return {f"{name}, by the referee": value for name, value in found.items()} | {
        f"{name}, by PyTorch's side": value for name, value in again.items()
    }
