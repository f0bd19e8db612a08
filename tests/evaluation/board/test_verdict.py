"""The verdict's sentences and warnings."""

from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.differences import paired_difference
from keras_pneumo.evaluation.board.verdict import verdict


def test_same_answers_differ_by_exactly_nothing(tmp_path):
    truth = write_truth(tmp_path)
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 2))
    gap = paired_difference(*board.teams, "auroc")
    assert gap.value == gap.interval.low == gap.interval.high == 0
    assert not gap.certain
    assert verdict(board).headline == "A and B cannot be told apart."


def test_a_significantly_better_team_is_named_first(tmp_path):
    truth = write_truth(tmp_path, n=300)
    board = board_of(
        truth, submit(tmp_path / "a", truth, "Weak", 0.5), submit(tmp_path / "b", truth, "Strong", 5, seed=1)
    )
    assert verdict(board).headline == "Strong beats Weak."
    assert board.table.team[0] == "Strong"
    assert "300 images of 150 patients" in verdict(board).sentences[0]


def test_too_few_resamples_for_the_pairs_give_a_warning(tmp_path):
    truth = write_truth(tmp_path)
    teams = [submit(tmp_path / name, truth, name, seed) for seed, name in enumerate("abc")]

    def warned(*folders, resamples):
        return any(
            "too few to tell" in text for text in verdict(board_of(truth, *folders, resamples=resamples)).warnings
        )

    assert warned(*teams, resamples=58), "three pairs need 3 / 0.05 = 60 swaps, the answers as they are included"
    assert not warned(*teams, resamples=59)
    assert not warned(teams[0], resamples=20), "one team makes no pair"
