"""The checks of prediction files: the same logits as submissions, and the referee's scores of both."""

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

PARAMETERS = PostprocessingParameters(top=0.5, area=1, bottom=0.5)
"""A mask wherever the probability, enlarged to 1024x1024, is at least one half."""

DIGITS = 12
"""Significant digits of a probability that must agree; float64 has nearly sixteen."""

SUBMISSION = "submission"


def write_prediction_files(folder: Path, image_ids: list[str], logits: np.ndarray, masks: np.ndarray) -> None:
    """Write the submission that the package makes of logits (n, 1) and mask logits (n, s, s, 1)."""
    from keras_pneumo.inference.predictor import sigmoid

    maps = quantise(sigmoid(masks[..., 0], np.float32))
    table = pd.DataFrame(
        {
            "image_id": image_ids,
            "probability": sigmoid(logits[:, 0]),
            "encoded_pixels": [rle.encode(PARAMETERS.mask(enlarge(quantised))) for quantised in maps],
        }
    )
    info = SubmissionInfo(team="ladder, Keras", task="joint", threshold=0.5, framework="Keras")
    write_submission(folder / SUBMISSION, info, table)


def texts_of(folder: Path) -> dict[str, np.ndarray]:
    """Return ids, probabilities to twelve digits, and encoded pixels of a backend's submission, as texts."""
    table = pd.read_csv(folder / SUBMISSION / PREDICTIONS_FILE, dtype=str, keep_default_na=False)
    rounded = [f"{float(text):.{DIGITS}g}" for text in table["probability"]]
    return {
        "image ids": table["image_id"].to_numpy("U"),
        "probabilities": np.array(rounded, "U"),
        "encoded pixels": table["encoded_pixels"].to_numpy("U"),
    }


def equal_to_the_last_digit(first: Path, second: Path) -> tuple[int, int]:
    """Return how many probabilities of two submissions are equal in all digits, and how many there are."""
    tables = [
        pd.read_csv(path / SUBMISSION / PREDICTIONS_FILE, dtype=str, keep_default_na=False) for path in (first, second)
    ]
    same = tables[0]["probability"].to_numpy() == tables[1]["probability"].to_numpy()
    return int(same.sum()), len(same)


def referee(truth: Path, folder: Path) -> dict[str, np.ndarray]:
    """Return the referee's AUROC and mean Dice of a backend's submission."""
    cases = read_truth(truth)
    answers = align_submission(read_submission(folder / SUBMISSION), cases)
    point = score_submissions(cases, [answers], resamples=100).teams[0].point
    return {name: np.array([point[name]]) for name in ("auroc", "dice")}


def scores_of(folder: Path, own: Path, by_itself: bool) -> dict[str, np.ndarray]:
    """Return a backend's scores twice: by the referee, and again by PyTorch's own scorer where the backend has one.

    ``own`` is the backend's folder inside the ladder's.
    """
    scores = referee(folder / "truth.csv", own)
    again = scores
    if by_itself:
        recorded = json.loads((own / "scores.json").read_text(encoding="utf-8"))
        again = {name: np.array([float(recorded[name])]) for name in scores}
    return {f"{name}, by the referee": value for name, value in scores.items()} | {
        f"{name}, by PyTorch's side": value for name, value in again.items()
    }
