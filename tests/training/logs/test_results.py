"""Tests of what a finished run shows in a tracker: scores, curves, and radiographs without a name."""

import json

import cv2
import numpy as np
import pandas as pd
from sharing_lab import PNG, write_run

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.training.logs.results import (
    MOST_RADIOGRAPHS,
    OWN_OUTLINE,
    TRUE_OUTLINE,
    curves_of,
    radiographs_of,
    scores_of,
)


def test_scores_are_those_of_the_runs_own_row(tmp_path):
    run = write_run(tmp_path / "run")
    assert scores_of(run) == {
        "test_auroc": 0.94, "test_auroc_low": 0.85, "test_auroc_high": 0.98,
        "test_sensitivity": 0.9, "test_sensitivity_low": 0.77, "test_sensitivity_high": 0.97,
    }  # fmt: skip
    (run / "board.csv").unlink()
    assert scores_of(run) == {}


def test_curves(tmp_path):
    run = write_run(tmp_path / "run")
    assert curves_of(run) == {"curves.png": PNG}
    (run / "curves.png").unlink()
    assert curves_of(run) == {}


def test_heat_maps_are_shown_without_the_names_of_their_images(tmp_path):
    run = write_run(tmp_path / "run")
    assert radiographs_of(run, None) == {}
    (run / "explain/overlays").mkdir(parents=True)
    for number in range(MOST_RADIOGRAPHS + 2):
        (run / f"explain/overlays/1.2.3.{number}.png").write_bytes(PNG)
    assert radiographs_of(run, None) == {f"radiograph_{n}.png": PNG for n in range(1, MOST_RADIOGRAPHS + 1)}


def test_a_segmenters_positives_have_the_true_outline_and_its_own(tmp_path, prepared_folder):
    prepared = load_prepared(prepared_folder)
    run = write_run(tmp_path / "run")
    test_ids = prepared.subset("test")
    mask = np.zeros((1024, 1024), np.uint8)
    mask[400:600, 400:600] = 1
    square = rle.encode(mask)
    pd.DataFrame({"image_id": test_ids, "probability": 0.5, "encoded_pixels": square}).to_csv(
        run / "submission/predictions.csv", index=False
    )
    write_info(run, prepared.manifest["split_sha256"])
    pictures = radiographs_of(run, prepared)
    positives = prepared.cases.set_index("image_id").loc[test_ids, "pneumothorax"].astype(int).sum()
    assert len(pictures) == min(positives, MOST_RADIOGRAPHS)
    for data in pictures.values():
        picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert picture.shape == (128, 128, 3)
        for colour in (TRUE_OUTLINE, OWN_OUTLINE):
            near = np.abs(picture.astype(int) - colour).max(axis=2) < 60
            assert near.any(), "drawn in its colour"


def test_a_submission_that_does_not_fit_costs_no_score(tmp_path, prepared_folder):
    run = write_run(tmp_path / "run")
    (run / "submission/predictions.csv").write_text("nothing\n")
    assert radiographs_of(run, load_prepared(prepared_folder)) == {}


def write_info(run, split):
    info = {"format": 1, "team": "keras-pneumo shared", "task": "joint", "split_sha256": split}
    (run / "submission/submission.json").write_text(json.dumps(info))
