"""Calibration before and after, on exact small cases."""

import numpy as np
from board_lab import board_of, submit, write_truth
from sklearn.metrics import brier_score_loss, log_loss

from keras_pneumo.evaluation.report.calibration_report import calibration_report


def test_scores_are_those_of_scikit_learn_and_the_change_is_their_difference(tmp_path):
    truth = write_truth(tmp_path)
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2))
    after = board.teams[0].probability
    before = after**3
    report = calibration_report(board, before, after, ["Fitted."])
    brier, loss = report.rows
    positive = truth.pneumothorax
    assert brier["before"] == f"{brier_score_loss(positive, before):.3f}"
    assert loss["after"] == f"{log_loss(positive, after):.3f}"
    change = log_loss(positive, after) - log_loss(positive, before)
    assert loss["change"] == f"{change:.3f}".replace("-", "−")
    low, high = (float(bound.replace("−", "-")) for bound in loss["change_span"].split(" to "))
    assert low < change < high
    assert report.sentences == ["Fitted.", "Scored on 60 images of 30 patients; lower is better, for both scores."]
    assert report.chart.count("<path") == 2


def test_probabilities_of_0_and_1_have_a_loss(tmp_path):
    truth = write_truth(tmp_path)
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2))
    certain = truth.pneumothorax.astype(float)
    report = calibration_report(board, 1 - certain, certain, [])
    assert report.rows[1]["after"] == "0.000"
    assert np.isclose(float(report.rows[1]["before"]), -np.log(1e-6), atol=1e-3)
