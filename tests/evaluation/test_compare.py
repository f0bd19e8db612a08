"""Scoring one submission, and comparing a folder of submissions."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from board_lab import board_of, predictions_of, submit, write_truth
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.compare import Score, check_submissions, compare, find_submissions, score
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.storage.files import LOCK_NAME, folder_lock


def test_score_gives_the_boards_figures(tmp_path):
    truth = write_truth(tmp_path)
    folder = submit(tmp_path / "a", truth, "A", 2)
    entry = board_of(truth, folder, resamples=300).teams[0]
    scores = score(tmp_path, str(folder), resamples=300)
    assert scores.team == "A"
    assert (scores.images, scores.patients, scores.positives) == (60, 30, int(truth.pneumothorax.sum()))
    for name, value in entry.point.items():
        np.testing.assert_equal(scores[name], Score(value, *entry.intervals[name]))
    assert scores.dice == scores["dice"] == tuple(scores.table.loc["dice"])
    assert str(scores.auroc).startswith(f"{entry.point['auroc']:.3f} (95% interval ")
    assert scores.per_image.dice.mean() == pytest.approx(scores.dice.value)
    with pytest.raises(KeyError, match="'nonsense' was not computed; there are auroc"):
        scores["nonsense"]
    with pytest.raises(AttributeError):
        scores.nonsense  # noqa: B018


def test_tables_score_as_files_do(tmp_path):
    truth = write_truth(tmp_path)
    folder = submit(tmp_path / "a", truth, "A", 2)
    from_files = score(tmp_path, folder, resamples=300)
    labels = pd.read_csv(tmp_path / "truth.csv")
    predictions = predictions_of(truth, 2)
    from_tables = score(labels, predictions, resamples=300)
    pd.testing.assert_frame_equal(from_tables.table, from_files.table)
    assert from_tables.threshold == 0.5
    kaggle = predictions.rename(columns={"image_id": "ImageId", "encoded_pixels": "EncodedPixels"})
    masks = kaggle[["ImageId", "EncodedPixels"]].replace("-1", np.nan)
    assert score(read_truth(tmp_path), masks, resamples=300).dice == from_files.dice
    answers = pd.DataFrame({"image_id": ["a", "b", "c", "d"], "pneumothorax": [True, False, True, False]})
    probability = np.array([0.9, 0.2, 0.4, 0.6])
    small = score(answers, answers.assign(probability=probability), threshold=0.3, resamples=100)
    assert small.auroc.value == metrics.auroc(answers.pneumothorax.to_numpy(), probability)
    assert small.sensitivity.value == 1
    assert "every image counts as a patient of its own" in small.notes[0]


@pytest.mark.parametrize(
    ("predictions", "sentence"),
    [
        ({"image_id": ["a"], "p": [0.5]}, "needs a column image_id, and a column probability or encoded_pixels"),
        (
            {"image_id": ["a", "b"], "probability": [0.5, 2]},
            "submission was refused: predictions: 1 probability is",
        ),
        ({"image_id": ["a"], "probability": [0.5]}, "no row for 1 of 2 images"),
    ],
)
def test_tables_are_refused_as_files_are(predictions, sentence):
    labels = pd.DataFrame({"image_id": ["a", "b"], "pneumothorax": [1, 0]})
    with pytest.raises(PneumoError, match=sentence):
        score(labels, pd.DataFrame(predictions))
    with pytest.raises(PneumoError, match=r"^The table of the truth, row 3: image b: pneumothorax is '3'"):
        score(labels.assign(pneumothorax=[1, 3]), labels)


def test_without_out_nothing_is_written(tmp_path):
    truth = write_truth(tmp_path)
    submit(tmp_path / "teams" / "a", truth, "A", 2)
    submit(tmp_path / "teams" / "b", truth, "B", 2, seed=1)
    before = sorted(tmp_path.rglob("*"))
    comparison = compare(str(tmp_path / "teams"), str(tmp_path), resamples=100)
    assert sorted(tmp_path.rglob("*")) == before
    assert set(comparison.table.team[:2]) == {"A", "B"}
    assert {"rank", "dice", "dice_low", "dice_high"} <= set(comparison.table.columns)
    assert set(comparison.pairs.score) >= {"auroc", "dice"}
    assert len(comparison.per_image) == 120
    assert comparison.verdict.headline
    with pytest.raises(PneumoError, match="holds 2 submissions"):
        score(tmp_path, tmp_path / "teams")


def test_compare_writes_its_files(tmp_path):
    truth = write_truth(tmp_path)
    teams = tmp_path / "teams"
    submit(teams / "run1" / "submission", truth, '=HYPERLINK("http://x")<script>alert(1)</script>', 2)
    submit(teams / "b", truth, "../../x", 3, seed=1)
    (teams / "notes.txt").write_text("not a submission")
    board = compare(teams, tmp_path, tmp_path / "out", resamples=200).board
    assert len(board.teams) == 2
    table = pd.read_csv(tmp_path / "out" / "board.csv")
    assert any(name.startswith("'=HYPERLINK") for name in table.team)
    assert not any(name.startswith("=") for name in table.team)
    rows = pd.read_csv(tmp_path / "out" / "per_image.csv")
    assert len(rows) == 120
    means = rows.groupby("team").dice.mean()
    for name, dice in zip(table.team[:2], table.dice[:2], strict=True):
        assert means[name] == pytest.approx(dice, rel=1e-5)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert not (tmp_path / "x").exists()


def test_compare_looks_at_its_out_folder_before_it_resamples(tmp_path, monkeypatch):
    truth = write_truth(tmp_path)
    submit(tmp_path / "a", truth, "A", 3)
    (tmp_path / "out").write_text("a file")

    def fail(*args, **kwargs):
        raise AssertionError("resampling was begun")

    monkeypatch.setattr("keras_pneumo.evaluation.compare.score_submissions", fail)
    with pytest.raises(PneumoError, match="is a file, but a folder is to be written there"):
        compare(tmp_path / "a", tmp_path, tmp_path / "out")


def test_two_comparisons_into_one_folder_are_not_mixed(tmp_path):
    """Row 41 of the faults."""
    truth = write_truth(tmp_path)
    submit(tmp_path / "a", truth, "A", 3)
    (tmp_path / "out").mkdir()
    with folder_lock(tmp_path / "out"), pytest.raises(PneumoError, match=r"Another run is working in .*out"):
        compare(tmp_path / "a", tmp_path, tmp_path / "out", resamples=50)
    assert not (tmp_path / "out/board.csv").exists()
    compare(tmp_path / "a", tmp_path, tmp_path / "out", resamples=50)
    assert (tmp_path / "out/board.csv").exists()


def test_out_must_not_be_the_folder_of_the_submissions(tmp_path):
    truth = write_truth(tmp_path)
    submit(tmp_path / "teams" / "a", truth, "A", 3)
    with pytest.raises(PneumoError, match="is also the folder of the submissions"):
        compare(tmp_path / "teams", tmp_path, tmp_path / "teams" / ".." / "teams", resamples=50)
    assert [path.name for path in (tmp_path / "teams").iterdir()] == ["a"]


def test_compare_refuses_all_at_once_and_before_writing(tmp_path):
    truth = write_truth(tmp_path)
    teams = tmp_path / "teams"
    submit(teams / "a", truth, "A", 2)
    submit(teams / "b", truth, "B", 2, split_sha256="e" * 64)
    submit(teams / "c", truth, "C", 2, subset="validation")
    with pytest.raises(PneumoError, match=r"made on the split(.|\n)*for the subset 'validation'"):
        compare(teams, tmp_path, tmp_path / "out", resamples=50)
    assert not (tmp_path / "out").exists()
    board = compare(teams, tmp_path, tmp_path / "out", team="A", resamples=50).board
    assert [entry.team for entry in board.teams] == ["A"]
    with pytest.raises(PneumoError, match="has no submission of the team 'Z'"):
        compare(teams, tmp_path, tmp_path / "out", team="Z")


def test_this_split_leaves_out_other_splits(tmp_path):
    truth = write_truth(tmp_path)
    teams = tmp_path / "teams"
    submit(teams / "a", truth, "A", 2)
    submit(teams / "b", truth, "B", 2, split_sha256="e" * 64)
    board = compare(teams, tmp_path, tmp_path / "out", this_split=True, resamples=50).board
    assert [entry.team for entry in board.teams] == ["A"]
    with pytest.raises(PneumoError, match="no submission made on the split"):
        compare(teams / "b", tmp_path, tmp_path / "none", this_split=True)


def test_find_submissions(tmp_path):
    with pytest.raises(PneumoError, match="There is no"):
        find_submissions(tmp_path / "nowhere")
    with pytest.raises(PneumoError, match="holds no submission"):
        find_submissions(tmp_path)


def test_teams_of_the_same_name_show_their_folder(tmp_path):
    truth = write_truth(tmp_path)
    submit(tmp_path / "teams" / "seed1", truth, "Keras", 2)
    submit(tmp_path / "teams" / "seed2", truth, "Keras", 2, seed=1)
    board = compare(tmp_path / "teams", tmp_path, tmp_path / "out", resamples=50).board
    assert sorted(entry.team for entry in board.teams) == ["Keras (seed1)", "Keras (seed2)"]
    assert len({entry.slug for entry in board.entries}) == len(board.entries)


def test_compares_where_tensorflow_and_keras_are_not(tmp_path):
    """A whole comparison in a process where importing either package (or torch) fails as if it were not installed."""
    truth = write_truth(tmp_path)
    submit(tmp_path / "teams" / "a", truth, "A", 2)
    submit(tmp_path / "teams" / "b", truth, "B", 2, seed=1)
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "torch"):
            raise ModuleNotFoundError(name + " is not installed here")
sys.meta_path.insert(0, Absent())
from pathlib import Path
from keras_pneumo.evaluation.compare import compare
from keras_pneumo.evaluation.board.verdict import verdict
folder = Path({str(tmp_path)!r})
print(verdict(compare(folder / "teams", folder, folder / "out", resamples=100).board).headline)
assert not {{"tensorflow", "keras", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "A" in done.stdout
    assert "B" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()


def test_metadata_baselines_and_all_files(tmp_path):
    truth = write_truth(tmp_path, n=200)
    labels = pd.concat([truth.cases, truth.development])[["image_id", "pneumothorax"]]
    table = labels.assign(Visits=labels.pneumothorax * 2 + np.arange(len(labels)) % 2, Ward="A", Note=labels.image_id)
    table.drop(columns="pneumothorax").to_csv(tmp_path / "meta.csv", index=False)
    submit(tmp_path / "teams" / "a", truth, "A", 2)
    submit(tmp_path / "teams" / "b", truth, "B", 2, seed=1)
    board = compare(tmp_path / "teams", tmp_path, tmp_path / "out", metadata=tmp_path / "meta.csv", resamples=100).board
    entry = next(entry for entry in board.entries if entry.team == "Table: Visits")
    assert entry.point["auroc"] == 1  # Visits gives the label away; Ward never changes and Note is free text
    assert not any(entry.team in ("Table: Ward", "Table: Note") for entry in board.entries)
    names = {"board.csv", "board.json", "board.md", "pairs.csv", "per_image.csv", "report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} - {LOCK_NAME} == names


def test_errors_of_all_submissions_and_of_all_stages_are_in_one_message(tmp_path):
    truth = write_truth(tmp_path)
    for name, error in (("a", "0.5"), ("b", "1.5"), ("c", "0.5")):
        folder = submit(tmp_path / "teams" / name, truth, name, 2)
        table = (folder / "predictions.csv").read_text().splitlines()
        table[3] = f"i2,{error},7 5 3"
        (folder / "predictions.csv").write_text("\n".join(table[: -1 if name == "b" else None]) + "\n")
    (tmp_path / "teams" / "c" / "submission.json").write_text('{"team": "c"}')
    with pytest.raises(PneumoError) as raised:
        compare(tmp_path / "teams", tmp_path)
    lines = str(raised.value).splitlines()
    wanted = [
        ("a/predictions.csv", "row 4 (i2): EncodedPixels holds 3 numbers"),
        ("b/predictions.csv", "row 4 ('1.5')"),
        ("b/predictions.csv", "no row for 1 of 60 images of the test subset: 'i59'"),
        ("b/predictions.csv", "row 4 (i2)"),
        ("c/submission.json", "task: Field required"),
        ("c/predictions.csv", "row 4 (i2)"),
    ]
    assert len(lines) == len(wanted)
    for line, parts in zip(lines, wanted, strict=True):
        assert all(part in line for part in parts), (line, parts)


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory):
    """A truth of 60 test images, and the sound predictions of a team in a folder."""
    folder = tmp_path_factory.mktemp("handed_in")
    truth = write_truth(folder)
    return truth, submit(folder / "team", truth, "Team", 2)


KINDS = {
    "number": ("probability", "1.5", False),
    "placeholder": ("probability", "FILL IN", False),
    "mask": ("encoded_pixels", "5 0", False),
    "id": ("image_id", "", True),
    "other": ("image_id", "elsewhere-{}", True),
}
"""What can be wrong in a row: the column, what it holds then, and whether the row's image is then missing too."""


@given(wrong=st.dictionaries(st.integers(0, 59), st.sampled_from(sorted(KINDS)), min_size=1))
@settings(max_examples=40, deadline=None)
def test_every_wrong_row_is_named_and_no_other(handed_in, wrong):
    truth, folder = handed_in
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    with tempfile.TemporaryDirectory() as place:
        broken = Path(shutil.copytree(folder, Path(place) / "team"))
        ids = table.image_id.tolist()
        for row, kind in wrong.items():
            column, text, _ = KINDS[kind]
            table.loc[row, column] = text.format(row)
        table.to_csv(broken / "predictions.csv", index=False)
        _, faults = check_submissions(broken, truth)
    named = sorted(row for fault in faults for row, _ in fault.rows if row is not None)
    assert named == sorted(row + 2 for row in wrong)
    missing = sorted(image_id for fault in faults for row, image_id in fault.rows if row is None)
    assert missing == sorted(ids[row] for row, kind in wrong.items() if KINDS[kind][2])
    assert len(faults) == len(set(wrong.values())) + bool(missing)


def test_what_is_checked_is_what_is_compared(handed_in):
    truth, folder = handed_in
    checked, faults = check_submissions(folder, truth)
    assert faults == []
    board = compare(folder, folder.parent, resamples=200).board
    assert board.teams[0].submission.probability.tolist() == checked[0].probability.tolist()
    assert board.teams[0].submission.runs == checked[0].runs
