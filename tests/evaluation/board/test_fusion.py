"""Two teams combined, checked by hand."""

import numpy as np
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.fusion import fuse
from keras_pneumo.evaluation.scoring import metrics


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=200)


def test_fusion_by_hand(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 2, seed=1))
    first, second = board.teams
    fusion = fuse(first, second, truth)
    mean = (first.probability + second.probability) / 2
    assert fusion.scores["AUROC of the mean probability"][2] == metrics.auroc(truth.pneumothorax, mean)
    right = [entry.decision == truth.pneumothorax for entry in (first, second)]
    assert fusion.both_right == int(np.sum(right[0] & right[1]))
    assert fusion.only_first == truth.cases.image_id[right[0] & ~right[1]].tolist()
    total = fusion.both_right + len(fusion.only_first) + len(fusion.only_second) + fusion.both_wrong
    assert total == len(truth.cases)
    outlined = [(e.masks.predicted_pixels > 0).to_numpy() for e in (first, second)]
    for name, answer in (("union", outlined[0] | outlined[1]), ("intersection", outlined[0] & outlined[1])):
        # All masks of these phantoms are the same 400 pixels, so Dice is 1 where the answers agree with the truth.
        assert fusion.scores[f"Dice of the {name}"][2] == pytest.approx(np.mean(answer == truth.pneumothorax))
    assert fuse(first, first, truth).error_kappa == pytest.approx(1)
    assert "is right on" in fusion.sentence
