"""Submissions written and read back, and the message for every error in their files."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from board_lab import GOOD_PREDICTIONS, team_folder
from label_lab import FORMS

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import (
    Fault,
    SubmissionInfo,
    examine_submission,
    read_submission,
    write_faults,
    write_submission,
    write_template,
)


@pytest.mark.parametrize("content", FORMS)
def test_a_bare_file_is_read_as_a_label_file_is(tmp_path, content):
    path = tmp_path / "team.csv"
    path.write_bytes(content.encode())
    rows = read_submission(path).predictions
    assert dict(zip(rows.image_id, rows.encoded_pixels.map(rle.is_empty), strict=True)) == {"a": True, "b": False}


def test_a_huge_file_is_refused_before_reading(tmp_path):
    path = tmp_path / "huge.csv"
    with path.open("wb") as stream:
        stream.truncate(2 * 1024**3)  # sparse: no byte of it is on the disk
    with pytest.raises(PneumoError, match="has 2,147,483,648 bytes"):
        read_submission(path)


def test_a_small_gzip_that_unpacks_to_much_is_refused(tmp_path):
    import gzip

    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a,1 1\n" * 100_000))
    with pytest.raises(PneumoError, match="unpacks to more than 10,000 bytes"):
        read_submission(path, max_bytes=10_000)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"{", b"[" * 100_000, b'{"team": "x"}'])
def test_invalid_declarations_are_refused(tmp_path, content):
    folder = team_folder(tmp_path)
    (folder / "submission.json").write_bytes(content)
    with pytest.raises(PneumoError, match=r"submission\.json"):
        read_submission(folder)


def test_absent_files(tmp_path):
    with pytest.raises(PneumoError, match="There is no"):
        read_submission(tmp_path / "nobody")
    with pytest.raises(PneumoError, match=r"has no submission\.json"):
        read_submission(tmp_path)
    folder = team_folder(tmp_path)
    (folder / "predictions.csv").unlink()
    with pytest.raises(PneumoError, match=r"has no predictions\.csv"):
        read_submission(folder)


def test_written_and_read_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"{n}" for n in range(50)], "probability": rng.random(50) ** 9})
    info = SubmissionInfo(team="Keras", task="classification", threshold=1 / 3, seeds=[1, 2])
    folder = write_submission(tmp_path / "sub mission é", info, table, table.head(3))
    read = read_submission(folder)
    assert read.info == info
    assert read.predictions.probability.tolist() == table.probability.tolist()
    assert read.predictions.image_id.tolist() == table.image_id.tolist()
    assert len(read.validation) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.csv", "submission.json", "validation.csv"]


def test_writing_replaces_whole_or_leaves_the_old(tmp_path):
    info = SubmissionInfo(team="Keras", task="classification")
    folder = write_submission(tmp_path / "s", info, pd.DataFrame({"image_id": ["a"], "probability": [0.5]}))
    write_submission(folder, info, pd.DataFrame({"image_id": ["b"], "probability": [0.25]}))
    assert read_submission(folder).predictions.image_id.tolist() == ["b"]
    with pytest.raises(PneumoError, match="not a number from 0 to 1"):
        write_submission(folder, info, pd.DataFrame({"image_id": ["c"], "probability": [2.0]}))
    with pytest.raises(PneumoError, match="has no column probability"):
        write_submission(folder, info, pd.DataFrame({"image_id": ["c"]}))
    assert read_submission(folder).predictions.image_id.tolist() == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("cell", "logits"), [("1.5", True), ("-3.2", True), ("", False), ("nan", False), ('"0,1"', False)]
)
def test_only_numbers_are_taken_for_logits(tmp_path, cell, logits):
    folder = team_folder(tmp_path, GOOD_PREDICTIONS.replace("0.75", cell))
    with pytest.raises(PneumoError, match="1 probability is not a number from 0 to 1") as raised:
        read_submission(folder)
    assert ("sigmoid" in str(raised.value)) == logits


@pytest.mark.parametrize("header", ["image_id,probability", "ImageId, Probability"])
def test_a_single_file_of_probabilities_is_read(tmp_path, header):
    path = tmp_path / "answers.csv"
    path.write_text(f"{header}\na,0.5\nb,0.25\n")
    submission = read_submission(path)
    assert (submission.info.team, submission.info.task, submission.bare) == ("answers", "classification", True)
    assert submission.predictions.to_dict("list") == {"image_id": ["a", "b"], "probability": [0.5, 0.25], "row": [2, 3]}
    path.write_text("image_id,EncodedPixels,probability\na,-1,0.5\nb,1 2,0.25\n")
    submission = read_submission(path)
    assert submission.info.task == "joint"
    assert list(submission.predictions.encoded_pixels) == ["-1", "1 2"]
    path.write_text("image_id,probability\na,1.5\na,0.25\n")
    with pytest.raises(PneumoError, match=r"(?s)more than one row: row 3 .*sigmoid") as raised:
        read_submission(path)
    assert "answers.csv" in str(raised.value)


def test_writing_deletes_nothing_but_an_older_submission(tmp_path, monkeypatch):
    info = SubmissionInfo(team="Keras", task="classification")
    table = pd.DataFrame({"image_id": ["a"], "probability": [0.5]})
    thesis = tmp_path / "work" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("three years")
    with pytest.raises(PneumoError, match=r"holds files that are not part of a submission \('thesis.txt'\)"):
        write_submission(thesis.parent, info, table)
    with pytest.raises(PneumoError, match="is a file, but a submission is a folder"):
        write_submission(thesis, info, table)
    monkeypatch.chdir(thesis.parent)
    with pytest.raises(PneumoError, match="holds files that are not part of a submission"):
        write_submission(Path(), info, table)
    (tmp_path / "run" / "predictions.csv").mkdir(parents=True)  # a folder of that name is no table of ours
    with pytest.raises(PneumoError, match="not part of a submission"):
        write_submission(tmp_path / "run", info, table)
    assert thesis.read_text() == "three years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "work"]
    (tmp_path / "old").mkdir()
    for name in ("postprocess.json", "postprocess.png", ".predictions.csv.a1b2c3d4.part"):
        (tmp_path / "old" / name).write_text("")
    write_submission(tmp_path / "old", info, table)
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["predictions.csv", "submission.json"]


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("classification", ["probability"]),
        ("segmentation", ["encoded_pixels"]),
        ("joint", ["probability", "encoded_pixels"]),
    ],
)
def test_a_template_names_each_placeholder_and_nothing_else(tmp_path, task, columns):
    folder = write_template(tmp_path / "team", ["b", "a"], task, split_sha256="f" * 64, validation_ids=["c"])
    examined = examine_submission(folder)
    assert examined.predictions.image_id.tolist() == ["b", "a"]
    assert examined.info.model_fields_set >= {"task", "split_sha256", "subset"}
    assert examined.notes == [], "it has no field that is not known"
    in_tables = [fault for fault in examined.errors if fault.file.suffix == ".csv"]
    assert [fault.rows for fault in in_tables] == [((2, "b"), (3, "a"))] * len(columns) + [((2, "c"),)] * len(columns)
    (declared,) = (fault for fault in examined.errors if fault not in in_tables)
    for name in ("team", "framework", "pretraining.images", "preprocessing", "hardware"):
        assert f"{name}" in declared.sentence
    with pytest.raises(PneumoError, match="still has the template's placeholder 'FILL IN'"):
        read_submission(folder)


def test_a_placeholder_that_was_left_hides_no_other_fault(tmp_path):
    rows = "b,FILL IN,5 0\na, FILL IN ,FILL IN\nc,7,-1\n"
    folder = team_folder(tmp_path, f"image_id,probability,encoded_pixels\n{rows}", team="FILL IN: us", threshold=2)
    declared, wrong_field, probabilities, masks, numbers = examine_submission(folder).errors
    assert "'FILL IN' in team. Write" in declared.sentence
    assert "threshold: " in wrong_field.sentence
    assert probabilities.rows == ((2, "b"), (3, "a"))
    assert masks.rows == ((3, "a"),)
    assert numbers.rows == ((4, "c"),)


def test_wrong_rows_are_written_safely_for_a_spreadsheet(tmp_path):
    faults = [Fault("It is wrong.", tmp_path, ((2, "=cmd()"), (None, "b"))), Fault("The whole file.")]
    write_faults(tmp_path / "rows.csv", faults)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0] == "file,row,image_id,fault"
    assert lines[1:] == [f"{tmp_path},2,'=cmd(),It is wrong.", f"{tmp_path},,b,It is wrong.", ",,,The whole file."]


def test_the_example_of_the_hand_in_page_is_a_submission(tmp_path):
    page = (Path(__file__).parents[3] / "docs/hand-in.md").read_text()
    blocks = dict(re.findall(r"^```(json|csv|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    (tmp_path / "submission.json").write_text(blocks["json"])
    (tmp_path / "predictions.csv").write_text(blocks["csv"])
    read = read_submission(tmp_path)
    assert (read.info.team, read.info.threshold, read.notes) == ("Our team", 0.4, [])
    assert [rle.area(rle.runs_of(text)) for text in read.predictions.encoded_pixels] == [5, 0]
    names = {}
    exec(compile(blocks["python"], "hand-in.md", "exec"), names)
    rng = np.random.default_rng(0)
    drawn = [np.zeros((1024, 1024), bool), np.ones((1024, 1024), bool), rng.random((1024, 1024)) < 0.01]
    for mask in drawn:
        assert names["encode"](mask) == rle.encode(mask)
