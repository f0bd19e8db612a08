"""Pairs of teams, shared ranks, and the test over several seeds."""

import numpy as np
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.ranking import compare_pairs, seed_tests


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=200)


def test_pairs_and_shared_ranks(tmp_path, truth):
    board = board_of(
        truth,
        submit(tmp_path / "a", truth, "Good", 6),
        submit(tmp_path / "b", truth, "Same", 6),
        submit(tmp_path / "c", truth, "Poor", 0.3, seed=2),
        resamples=2000,
    )
    pairs = compare_pairs(board)
    assert len(pairs) == 3 * 6
    aurocs = pairs[pairs.score == "auroc"].set_index(["first", "second"])
    assert aurocs.loc[("Good", "Same"), "p"] == pytest.approx(1)
    assert aurocs.loc[("Good", "Same"), "other_test"] == "swap by patient"
    assert aurocs.loc[("Good", "Poor"), "p_holm"] < 0.01
    assert (pairs.p_holm >= pairs.p - 1e-12).all()
    for row in pairs.to_dict("records"):
        assert row["low"] <= row["difference"] <= row["high"]
    accuracy = pairs[pairs.score == "accuracy"].set_index(["first", "second"])
    assert accuracy.loc[("Good", "Poor"), "other_test"] == "McNemar, exact, by image"
    assert accuracy.loc[("Good", "Poor"), "p_other"] < 1e-6
    assert board.standings.ranks == {"Good": 1, "Same": 1, "Poor": 3}


def test_delong_and_the_swap_give_the_same_verdict(tmp_path, truth):
    board = board_of(
        truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 1.4, seed=1), resamples=5000
    )
    row = compare_pairs(board).set_index("score").loc["auroc"]
    assert row.p == pytest.approx(row.p_other, abs=0.03)


def test_seeds(tmp_path, truth):
    folders = [submit(tmp_path / f"k{n}", truth, "Keras", 5, seed=n, seeds=[n]) for n in range(3)]
    folders += [submit(tmp_path / f"t{n}", truth, "Torch", 1, seed=n, seeds=[n]) for n in range(3)]
    names = [f"{folder.name}" for folder in folders]
    board = board_of(truth, *folders, names=names)
    (test,) = seed_tests(board)
    assert (test.first, test.second, test.seeds) == ("Keras", "Torch", (3, 3))
    assert test.p == pytest.approx(0.1) == pytest.approx(test.least_p)
    means = [np.mean([board.teams[n].point["auroc"] for n in span]) for span in (range(3), range(3, 6))]
    assert test.means == pytest.approx(tuple(means))
    assert seed_tests(board_of(truth, folders[0], folders[3])) == []
