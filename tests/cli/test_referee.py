"""The referee's commands: what each option of compare allows, templates of submissions, and their check."""

import io
import json
import re
from pathlib import Path

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


def test_a_template_is_refused_until_its_last_placeholder_is_gone(tmp_path):
    truth = write_truth(tmp_path)
    team = tmp_path / "submissions" / "our_team"
    written = run("submission-template", "--truth", tmp_path, "--out", team, "--validation")
    assert written.returncode == 0, written.stderr
    assert "60 images of the test subset" in written.stdout
    command = written.stdout.strip().splitlines()[-1].split()
    assert command[:3] == ["keras-pneumo", "check-submission", str(team)]
    predictions = pd.read_csv(team / "predictions.csv")
    assert predictions.image_id.tolist() == truth.cases.image_id.tolist()
    left = refused_rows(team, tmp_path, "'FILL IN' in team, framework, pretraining.images, preprocessing, hardware")
    assert left.groupby(["file", "fault"]).size().tolist() == [60, 60, 1, 18, 18]
    again = run("submission-template", "--truth", tmp_path, "--out", team)
    refused(again, "holds a submission already", "nothing was changed")

    for name in ("predictions.csv", "validation.csv"):
        table = pd.read_csv(team / name).assign(probability=0.25, encoded_pixels="-1")
        table.to_csv(team / name, index=False)
    info = json.loads((team / "submission.json").read_text())
    info |= {"team": "Ours", "framework": "PyTorch", "pretraining": {"images": "none"}}
    del info["hardware"]
    (team / "submission.json").write_text(json.dumps(info))
    left = refused_rows(team, tmp_path, "'FILL IN' in preprocessing. Write there")
    assert (len(left), left.row.isna().all()) == (1, True)
    (team / "submission.json").write_text(json.dumps(info | {"preprocessing": "", "colour": 1}))
    checked = run("check-submission", team.parent, "--truth", tmp_path)
    assert checked.returncode == 0, checked.stderr
    said = "Ours: joint, 60 images of the test subset. No fault."
    assert checked.stdout == f"{said} Threshold 0.125 (fitted on the team's validation predictions).\n"
    assert "Note: Ours: not known and not used in submission.json: 'colour'" in checked.stderr
    of_test = "image_id,probability,encoded_pixels\ni0,1,-1\n"
    (team / "validation.csv").write_text(of_test)
    checked = run("check-submission", team.parent, "--truth", tmp_path)
    assert checked.stdout == f"{said} Threshold 0.5 (none declared).\n"
    assert "Note: Ours: no threshold from validation.csv: " in checked.stderr
    board = run("compare", team.parent, "--truth", tmp_path, "--out", tmp_path / "board", "--resamples", 200)
    assert board.returncode == 0, board.stderr


def refused_rows(team, truth, *words):
    """The csv of wrong rows of a submission that check-submission refuses; compare refuses it with the same words."""
    rows = truth / "rows.csv"
    checked = run("check-submission", team, "--truth", truth, "--rows", rows)
    refused(checked, "Every wrong row: ", *words)
    compared = run("compare", team, "--truth", truth, "--out", truth / "board")
    assert checked.stderr.strip().rsplit("\n", 1)[0] == compared.stderr.strip()
    return pd.read_csv(rows)


def test_all_faults_are_named_at_once_by_file_and_row(tmp_path):
    truth = write_truth(tmp_path)
    folder = submit(tmp_path / "submissions" / "team", truth, "Team", 2, split_sha256="0" * 64)
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    table.loc[:7, "probability"] = "2.5"
    table.loc[10:19, "encoded_pixels"] = "5 0"
    table.loc[59, "image_id"] = "elsewhere"
    table.to_csv(folder / "predictions.csv", index=False)
    words = (
        "8 probabilities are not numbers",
        "10 masks are wrong",
        "row 61 ('elsewhere')",
        "no row for 1 of 60 images",
    )
    rows = refused_rows(folder, tmp_path, "was made on the split '000000000000'", *words)
    faults = {fault: group.row.dropna().astype(int).tolist() for fault, group in rows.groupby("fault", sort=False)}
    assert list(faults.values()) == [[*range(2, 10)], [], [61], [], [*range(12, 22)]]
    assert rows.image_id.tolist()[-11:] == ["i59", *(f"i{number}" for number in range(10, 20))]
    assert {Path(file).name for file in rows.file} == {"team", "predictions.csv"}


def test_a_folder_without_a_declaration_is_said_to_lack_it(tmp_path):
    write_truth(tmp_path)
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "predictions.csv").write_text("image_id,probability\ni0,2\n")
    result = run("check-submission", tmp_path / "team", "--truth", tmp_path)
    refused(result, "team has no submission.json", "row 2 ('2')", "no row for 59 of 60 images")


def test_a_template_asks_for_no_masks_where_the_truth_has_none(tmp_path):
    (tmp_path / "labels.csv").write_text("image_id,pneumothorax\na,1\nb,0\n")
    line = ["submission-template", "--truth", tmp_path / "labels.csv"]
    refused(run(*line, "--out", tmp_path / "team", "--task", "joint"), "has no masks")
    refused(run(*line, "--out", tmp_path / "team", "--validation"), "has no validation images beside the truth")
    assert run(*line, "--out", tmp_path / "team").returncode == 0
    assert (tmp_path / "team" / "predictions.csv").read_text() == "image_id,probability\na,FILL IN\nb,FILL IN\n"
    assert json.loads((tmp_path / "team" / "submission.json").read_text())["task"] == "classification"
