"""A small truth, and submissions of a chosen quality, for tests of the board and its reports."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_pneumo.data.prepared.split import split_sha256
from keras_pneumo.evaluation.board.board import score_submissions
from keras_pneumo.evaluation.inputs.alignment import align_submission
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, read_submission, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[2] / "shared"))
"""Folder of real submissions and SIIM's tables. Without it, the tests that need it are skipped."""
needs_real = pytest.mark.skipif(not (REAL / "siim_tables").exists(), reason="the real tables are not on this machine")


def write_truth(folder, n=60, seed=0):
    """Writes and reads a prepared folder's truth: two images a patient, a third positive, masks of 400 pixels."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(2 * n):
        patient = number // 2
        rows.append(
            {
                "image_id": f"i{number}",
                "patient_id": f"p{patient}",
                "subset": "test" if number < n else ("validation" if number < 1.3 * n else "train"),
                "pneumothorax": int(rng.random() < 0.35),
            }
        )
    table = pd.DataFrame(rows).assign(fold=-1, sex="M", age=rng.integers(20, 80, 2 * n), view="PA", pixel_spacing_mm="")
    table["encoded_pixels"] = np.where(table.pneumothorax == 1, "500000 400", "-1")
    table.to_csv(folder / "truth.csv", index=False)
    (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "split_sha256": split_sha256(table)} | {"patients": "table"})
    )
    return read_truth(folder)


def predictions_of(truth, skill, seed=0, shift=0):
    rng = np.random.default_rng(seed)
    logit = skill * (truth.pneumothorax - 0.5) + rng.normal(size=len(truth.cases))
    probability = 1 / (1 + np.exp(-logit))
    text = np.where(probability > 0.5, f"{500000 + shift} 400", "-1")
    return pd.DataFrame({"image_id": truth.cases.image_id, "probability": probability, "encoded_pixels": text})


def submit(folder, truth, team, skill, seed=0, **info):
    declared = {"team": team, "task": "joint", "split_sha256": truth.split_sha256, "threshold": 0.5} | info
    return write_submission(folder, SubmissionInfo(**declared), predictions_of(truth, skill, seed))


def board_of(truth, *folders, **options):
    answers = [align_submission(read_submission(folder), truth) for folder in folders]
    return score_submissions(truth, answers, resamples=options.pop("resamples", 400), **options)


GOOD_PREDICTIONS = "image_id,probability,encoded_pixels\nb,0.25,-1\na,0.75,12 5\n"


def team_folder(tmp_path, predictions=GOOD_PREDICTIONS, **info):
    """Writes a team's folder as another framework would, with right or wrong content."""
    folder = tmp_path / "team"
    folder.mkdir()
    declared = {"format": 1, "team": "Team", "task": "joint", "split_sha256": "f" * 64} | info
    (folder / "submission.json").write_text(json.dumps(declared))
    (folder / "predictions.csv").write_text(predictions)
    return folder
