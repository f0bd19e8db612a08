"""The board as JSON and as Markdown."""

import json
import re

import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.differences import paired_difference
from keras_pneumo.evaluation.board.findings import analyse, board_json, board_markdown


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=200)


def test_the_board_for_programs(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 2, seed=1))
    content = json.loads(board_json(board, analyse(board)), parse_constant=lambda word: pytest.fail(word))
    rows = {row["team"]: row for row in content["rows"]}
    entry = board.teams[0]
    assert rows[entry.team]["scores"]["auroc"]["value"] == pytest.approx(entry.point["auroc"])
    assert rows[entry.team]["scores"]["brier"]["better"] == "lower"
    assert rows["Majority"]["scores"]["dice"]["value"] is None
    assert rows["Majority"]["rank"] is None
    assert content["scored"]["images"] == 200
    pair = next(pair for pair in content["pairs"] if pair["score"] == "auroc")
    assert abs(pair["difference"]) == pytest.approx(abs(paired_difference(*board.teams, "auroc").value))


def test_the_board_for_a_pull_request_is_escaped(tmp_path, truth):
    hostile = "|x|<img src=x onerror=y>[l](http://evil) @all `a` www.x.y"
    board = board_of(truth, submit(tmp_path / "a", truth, hostile, 2), submit(tmp_path / "b", truth, "B", 2, seed=1))
    text = board_markdown(board, analyse(board))
    assert "<img" not in text
    assert "](http" not in text
    assert "://" not in text
    assert "@all" not in text
    assert "www.x" not in text
    rows = [line for line in text.splitlines() if line.startswith("| 1 |") or line.startswith("|  |")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1  # every row has the same number of cells
    assert "Research use only" in text


def test_a_tiny_p_is_not_shown_as_zero(tmp_path, truth):
    board = board_of(
        truth, submit(tmp_path / "a", truth, "A", 6), submit(tmp_path / "b", truth, "B", 0.2, seed=1), resamples=2000
    )
    text = board_markdown(board, analyse(board))
    assert "| &lt; 0.001 | &lt; 0.001 |" in text
    assert "| 0.000 |" not in text
