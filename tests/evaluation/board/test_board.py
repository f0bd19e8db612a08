"""The board: published figures from real submissions, exact small boards, and the files of a comparison."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from board_lab import REAL, board_of, needs_real, submit, write_truth

from keras_pneumo.evaluation.board.board import SCORES, score_submissions
from keras_pneumo.evaluation.board.verdict import verdict
from keras_pneumo.evaluation.inputs.alignment import align_submission
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, read_submission, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth

PUBLISHED = {
    # file: Dice, then images with a mask: true positive, false positive, false negative, true negative
    "n01z3_sx101_nf8_0.5_1000_1": (0.8743, 198, 15, 92, 1067),
    "n01z3_sx50_nf8_0.5_1000_0": (0.8731, 206, 18, 84, 1064),
    "tybrad11_Submission_v10": (0.8312, 112, 10, 178, 1072),
    "tybrad11_Submission_v2": (0.4607, 241, 556, 49, 526),
    "yelanlan_ensemble_5fold_0.4": (0.1657, 290, 1037, 0, 45),
    "kshannon_sample_submission": (0.7886, 0, 0, 290, 1082),
}


def test_every_score_has_its_interval_around_it(tmp_path):
    truth = write_truth(tmp_path)
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 3))
    row = board.table.iloc[0]
    assert row.team == "A"
    for name in SCORES:
        assert {name, f"{name}_low", f"{name}_high"} <= set(board.table.columns)
        if np.isfinite(row[name]) and name != "calibration_error":
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name
    assert (row.images, row.patients, row.positives) == (60, 30, int(truth.pneumothorax.sum()))
    assert list(board.table.team[1:]) == ["Majority", "All empty", "Patient only", "Age, sex, view", "Times imaged"]


def test_a_team_that_learnt_from_phantoms_is_marked_on_real_images(tmp_path):
    truth = write_truth(tmp_path)
    folders = [submit(tmp_path / name, truth, name, 3, synthetic=name == "phantoms") for name in ("real", "phantoms")]
    real, phantoms = board_of(truth, *folders).teams[:2]
    if real.team != "real":
        real, phantoms = phantoms, real
    assert "trained on synthetic images (phantoms)" in phantoms.notes
    assert not any("synthetic" in note for note in real.notes)
    of_phantoms = board_of(replace(truth, synthetic=True), *folders).teams[:2]
    assert not any("trained on synthetic" in note for entry in of_phantoms for note in entry.notes)


def test_perfect_and_hopeless(tmp_path):
    truth = write_truth(tmp_path)
    positive = truth.pneumothorax
    perfect = pd.DataFrame(
        {
            "image_id": truth.cases.image_id,
            "probability": positive.astype(float),
            "encoded_pixels": truth.cases.pneumothorax.map({1: "500000 400", 0: "-1"}),
        }
    )
    info = SubmissionInfo(team="P", task="joint", split_sha256=truth.split_sha256)
    board = board_of(truth, write_submission(tmp_path / "p", info, perfect))
    point = board.teams[0].point
    for name in ("auroc", "auprc", "accuracy", "sensitivity", "specificity", "dice", "dice_positives", "iou"):
        assert point[name] == 1, name
    assert point["brier"] == point["calibration_error"] == point["positives_missed"] == 0
    assert board.teams[0].intervals["negatives_left_empty"].low < 0.95
    pairs = min(truth.cases.patient_id[truth.pneumothorax == ill].nunique() for ill in (False, True))
    assert board.teams[0].intervals["auroc"] == (pytest.approx(0.025 ** (1 / min(pairs, 15))), 1)
    low, high = board.teams[0].intervals["sensitivity"]
    patients = truth.cases.patient_id[positive].nunique()
    assert low == pytest.approx(0.025 ** (1 / patients))  # all right is not certainty: the exact bound over patients
    assert high == 1
    assert verdict(board).tone == "good"
    assert verdict(board).headline == "P beats every metadata-only baseline."
    empty = next(entry for entry in board.entries if entry.team == "All empty")
    assert empty.point["dice"] == pytest.approx((~positive).mean())
    assert empty.point["auroc"] == 0.5


def test_the_same_seed_gives_the_same_board(tmp_path):
    truth = write_truth(tmp_path)
    folder = submit(tmp_path / "a", truth, "A", 2)
    first, second = board_of(truth, folder, seed=5).table, board_of(truth, folder, seed=5).table
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(board_of(truth, folder, seed=6).table)


@pytest.mark.parametrize(("share", "word"), [(0, "negative"), (1, "positive")])
def test_one_class_only(tmp_path, share, word):
    rows = "".join(f"i{n},p{n},test,{share}\n" for n in range(5))
    (tmp_path / "truth.csv").write_text("image_id,patient_id,subset,pneumothorax\n" + rows)
    truth = read_truth(tmp_path)
    table = pd.DataFrame({"image_id": truth.cases.image_id, "probability": [0.1, 0.2, 0.6, 0.7, 0.8]})
    info = SubmissionInfo(team="A", task="classification", threshold=0.5)
    board = board_of(truth, write_submission(tmp_path / "a", info, table))
    assert np.isnan(board.table.auroc[0])
    assert board.table.accuracy[0] == pytest.approx(0.6 if share else 0.4)
    result = verdict(board)
    assert result.headline == "AUROC cannot be computed."
    assert result.sentences == [f"All 5 images are {word}, so there is nothing to rank them against."]


@needs_real
def test_published_figures():
    tables = REAL / "siim_tables"
    truth = read_truth(tables / "train-rle.csv.gz", ids=tables / "stage1_test_ids.csv", patients=tables / "nih_id.csv")
    paths = [REAL / "submissions" / f"{name}.csv" for name in PUBLISHED]
    answers = [align_submission(read_submission(path), truth, allow_extra=True) for path in paths]
    board = score_submissions(truth, answers, resamples=50)
    for entry in board.teams:
        row = board.table.set_index("team").loc[entry.team]
        counts = [int(row[f"mask_{k}"]) for k in ("true_positive", "false_positive", "false_negative", "true_negative")]
        assert [round(row.dice, 4), *counts] == list(PUBLISHED[entry.team])


@needs_real
def test_published_figure_over_all_labels():
    truth = read_truth(REAL / "siim_tables" / "train-rle.csv.gz")
    read = read_submission(REAL / "submissions" / "VISHAKHNAIR16_simple_submission.csv")
    board = score_submissions(truth, [align_submission(read, truth, allow_extra=True, clip_runs=True)], resamples=2)
    row = board.table.iloc[0]
    assert round(row.dice, 4) == 0.0059
    assert (row.mask_true_positive, row.mask_false_positive, row.images) == (2669, 9378, 12047)
    assert (
        row.notes
        == "42 rows of other images set aside (--allow-extra); 12,047 masks cut at the last pixel (--clip-runs)"
    )
