"""The errors by kind: which images, in which order, and how many of how many."""

import numpy as np
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, write_submission
from keras_pneumo.evaluation.report.error_gallery import error_groups


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path)


def ids(group):
    return [card["image_id"] for card in group["cards"]]


def test_the_most_confident_errors_come_first(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 0.5))
    entry = board.teams[0]
    missed, alarms, low = error_groups(entry, board, None, most=4)
    wrong = np.flatnonzero(truth.pneumothorax & ~entry.decision)
    expected = truth.cases.image_id.to_numpy()[wrong[np.argsort(entry.probability[wrong])]]
    assert ids(missed) == expected[:4].tolist()
    assert missed["shown"] == f"4 of {len(wrong)} shown, lowest probability first"
    wrong = np.flatnonzero(~truth.pneumothorax & entry.decision)
    expected = truth.cases.image_id.to_numpy()[wrong[np.argsort(-entry.probability[wrong])]]
    assert ids(alarms) == expected[:4].tolist()
    found = int((truth.pneumothorax & (entry.masks.predicted_pixels > 0).to_numpy()).sum())
    assert low["shown"] == f"4 of {found} shown, lowest first"


def test_the_lowest_dice_comes_first(tmp_path, truth):
    text = np.where(truth.pneumothorax, "500000 400", "-1")
    first, second, third = np.flatnonzero(truth.pneumothorax)[:3]
    text[[first, second, third]] = ["500200 400", "500300 400", "500001 400"]  # 200, 100 and 399 pixels overlap
    table = truth.cases[["image_id"]].assign(encoded_pixels=text)
    info = SubmissionInfo(team="A", task="segmentation", split_sha256=truth.split_sha256)
    board = board_of(truth, write_submission(tmp_path / "a", info, table))
    missed, alarms, low = error_groups(board.teams[0], board, lambda name: np.zeros((8, 8), np.uint8))
    assert missed["cards"] == alarms["cards"] == []
    assert missed["shown"] == alarms["shown"] == "none"
    assert ids(low)[:3] == [f"i{second}", f"i{first}", f"i{third}"]
    assert [card["dice"] for card in low["cards"][:2]] == ["0.250", "0.500"]
    assert low["cards"][0]["true_pixels"] == rle.area(truth.runs[second]) == 400
    assert low["cards"][0]["picture"].startswith("data:image/jpeg")
    assert low["cards"][0]["prediction"].startswith("M")
