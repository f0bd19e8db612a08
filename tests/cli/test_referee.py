"""The options of compare: each allows what its name says, and the board cites only options that were given."""

import io
import re

import pandas as pd
import pytest
from board_lab import board_of, submit, write_truth
from command_lab import refused, run
from rich.console import Console

from keras_pneumo.cli import referee
from keras_pneumo.evaluation.board.findings import analyse, terminal_rows


@pytest.fixture
def masks(tmp_path):
    """A Kaggle file with one row of another image and one mask that ends past the last pixel."""
    truth = write_truth(tmp_path)
    rows = [f"{image_id},-1" for image_id in truth.cases.image_id[1:]]
    rows += [f"{truth.cases.image_id[0]},1 1048576", "elsewhere,-1"]
    (tmp_path / "masks.csv").write_text("ImageId,EncodedPixels\n" + "\n".join(rows) + "\n")
    return tmp_path


def compare(folder, *options):
    out = ("--out", folder / "board", "--resamples", 200)
    return run("compare", folder / "masks.csv", "--truth", folder, *out, *options)


@pytest.mark.parametrize("options", [["--allow-extra"], ["--allow-extra", "--no-clip-runs"]])
def test_allow_extra_does_not_cut_masks(masks, options):
    refused(compare(masks, *options), "ends at pixel 1048577", "--clip-runs")
    assert not (masks / "board").exists()


def test_the_board_cites_the_options_that_were_given(masks):
    result = compare(masks, "--allow-extra", "--clip-runs")
    assert result.returncode == 0, result.stderr
    notes = pd.read_csv(masks / "board" / "board.csv").notes[0]
    assert "1 row of other images set aside (--allow-extra)" in notes
    assert "1 mask cut at the last pixel (--clip-runs)" in notes


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of a board of masks, with a name that is longer than a window."""
    folder = tmp_path_factory.mktemp("board")
    truth = write_truth(folder)
    names = ("A", "keras-pneumo resnet50_unet with five folds [bold]", "B" * 60)
    teams = [submit(folder / str(number), truth, name, 2, seed=number) for number, name in enumerate(names)]
    board = board_of(truth, *teams, headline="dice")
    return terminal_rows(board, analyse(board))


def shown(monkeypatch, rows, width, terminal=True):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    monkeypatch.setattr(referee, "out", console)
    monkeypatch.setattr("keras_pneumo.cli.console.out", console)
    referee.show_board(*rows, "out/board.csv")
    return stream.getvalue()


def test_the_most_important_scores_come_first(rows):
    names = ["rank", "team", "Dice", "Dice on positives", "Negatives left empty", "Positives missed", "AUROC"]
    assert rows[0][: len(names)] == names
    assert rows[0][-1] == "notes"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 260])
def test_the_board_is_as_wide_as_the_window_and_says_what_it_leaves_out(monkeypatch, rows, width):
    text = shown(monkeypatch, rows, width)
    found = re.search(r"No room in this window for (.*): see out/board.csv[.]", text)
    table = text[: found.start()] if found else text
    left_out = found[1].split(", ") if found else []
    names = rows[0][2:-1]
    kept = names[: len(names) - len(left_out)]
    assert kept
    assert [*kept, *left_out] == names, "the most important ones are kept"
    assert bool(left_out) == (width <= 160)
    assert max(len(line) for line in table.splitlines()) <= width
    value, span = rows[1][0][2].rstrip(")").split(" (")
    assert value in table
    assert span in table
    assert "…" not in table
    assert "[bold]" in table, "a name is no markup"


def test_in_a_pipe_each_team_is_a_line_with_every_score(monkeypatch, rows):
    lines = shown(monkeypatch, rows, 80, terminal=False).splitlines()
    assert all(name in lines[1] or name in lines[0] for name in rows[0][:-1])
    for row in rows[1]:
        assert any(all(cell in line for cell in row[1:-1]) for line in lines)
