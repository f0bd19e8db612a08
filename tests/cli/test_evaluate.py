"""Tests of evaluate and of predict on other data, as commands: what they print, and their exit codes."""

import json
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from keras_pneumo.cli import app
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.evaluation.compare import compare
from keras_pneumo.inference.provenance import LEARNED, LEARNED_SHA256, used_images
from keras_pneumo.storage.files import write_table


@pytest.fixture
def home(tmp_path, tiny_runs, prepared_folder):
    """The tiny classifier with the table of what it has learned from, and a threshold."""
    folder = shutil.copytree(tiny_runs / "classifier", tmp_path / "classifier")
    digest = write_table(folder / LEARNED, used_images(load_prepared(prepared_folder), 0))
    path = folder / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {LEARNED_SHA256: digest, "threshold": 0.4}))
    return folder


@pytest.fixture
def another_split(tmp_path, phantoms):
    """The same phantoms with another split."""
    prepare(phantoms, tmp_path / "again", [64], seed=9, workers=1)
    return tmp_path / "again"


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_predict_takes_another_split_and_says_what_was_learned_from(tmp_path, home, another_split):
    test = load_prepared(another_split).subset("test")
    learned = set(pd.read_csv(home / LEARNED)["image_id"])
    done = call("predict", home, "--data", another_split, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    shared = len(learned & set(test))
    assert 0 < shared < len(test)
    assert f"{shared} of {len(test)} images are or may be among the {len(learned)}" in " ".join(done.output.split())
    table = pd.read_csv(tmp_path / "out/contamination.csv").set_index("image_id")
    assert table["same_file"].sum() == shared
    # Its table is a submission as it is, and the board says what was learned from.
    board = compare(tmp_path / "out", another_split, resamples=100)
    (team,) = board.board.teams
    assert team.threshold == 0.4
    assert any(f"contaminated: {shared} test images" in note for note in team.notes)
    again = call("predict", home, "--data", another_split, "--out", tmp_path / "out", "--subset", "all")
    assert again.exit_code == 0, again.output
    assert len(pd.read_csv(tmp_path / "out/predictions.csv")) == 40


def test_predict_does_not_replace_the_runs_own_submission(home, another_split):
    done = call("predict", home, "--data", another_split)
    assert "--out" in str(done.exception)
    assert not (home / "submission").exists()


def test_evaluate_prints_cautions_and_the_page(tmp_path, home, prepared_folder):
    done = call("evaluate", home, "--data", prepared_folder, "--out", tmp_path / "out", "--resamples", "100")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "that the network has or may have learned from were left out" in text
    assert "Its AUROC is" in text
    assert (tmp_path / "out/report.html").is_file()


def test_evaluate_refuses_label_options_of_a_prepared_folder(tmp_path, home, prepared_folder):
    done = call("evaluate", home, "--data", prepared_folder, "--out", tmp_path / "out", "--blank", "negative")
    assert "its labels and patients are in it" in str(done.exception)
    assert "There is no folder" in str(call("evaluate", home, "--data", "nowhere", "--out", tmp_path / "o").exception)
