"""Submissions: read back as written, laid against the truth; every fault of rows 11, 23 and 24 has its sentence."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_lab import FORMS

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.alignment import check_submission
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, read_submission, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.storage.tables import one_line, slug, spreadsheet_safe, table_text

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "submissions").exists(), reason="the real submissions are not at hand")


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("image_id,patient_id,subset,pneumothorax,encoded_pixels\na,p,test,1,10 5\nb,q,test,0,-1\n")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "split_sha256": "f" * 64}))
    return read_truth(path)


def folder(tmp_path, predictions, **info):
    place = tmp_path / "team"
    place.mkdir()
    declared = {"format": 1, "team": "Team", "task": "joint", "split_sha256": "f" * 64} | info
    (place / "submission.json").write_text(json.dumps(declared))
    (place / "predictions.csv").write_text(predictions)
    return place


GOOD = "image_id,probability,encoded_pixels\nb,0.25,-1\na,0.75,12 5\n"


def test_good_folder_in_the_truths_order(tmp_path, truth):
    answers = check_submission(read_submission(folder(tmp_path, GOOD)), truth)
    assert answers.probability.tolist() == [0.75, 0.25]
    assert [rle.area(runs) for runs in answers.runs] == [5, 0]
    assert answers.notes == []


@pytest.mark.parametrize(
    ("predictions", "sentence"),
    [
        (GOOD + "a,0.5,-1\n", r"gives 1 images more than one row: row 4 \('a'\)"),
        ("image_id,probability,encoded_pixels\na,0.5,-1\n", "no row for 1 of 2 images of the test subset: 'b'"),
        (GOOD + "x,0.5,-1\n", r"1 rows of images that are not in the test subset: row 4 \('x'\)"),
        (GOOD.replace("0.75", "nan"), r"1 probabilities are not numbers from 0 to 1: row 3 \('nan'\)"),
        (GOOD.replace("0.75", "inf"), r"row 3 \('inf'\)"),
        (GOOD.replace("0.75", "1.5"), r"row 3 \('1.5'\)"),
        (GOOD.replace("0.75", "-0.01"), r"row 3 \('-0.01'\)"),
        (GOOD.replace("0.75", ""), r"row 3 \(''\)"),
        (GOOD.replace("12 5", "12 5 1"), r"row 3 \(a\): EncodedPixels holds 3 numbers"),
        (GOOD.replace("12 5", "-3 5"), r"row 3 \(a\): EncodedPixels holds the negative gap -3"),
        (GOOD.replace("12 5", "12 0"), r"row 3 \(a\): EncodedPixels holds a run of length 0"),
        (GOOD.replace("12 5", "12 five"), r"'five', which is not a whole number"),
        (GOOD.replace("12 5", "0 1048577"), r"ends at pixel 1048577.*--clip-runs"),
        (GOOD.replace("12 5", "nan"), r"'nan', which is not a whole number"),
        (GOOD.replace("b,0", ",0"), "row 2: the image id is blank"),
        ("image_id,probability\na,0.5\nb,0.5\n", "has no column encoded_pixels, which the task 'joint' needs"),
        ("image_id,probability,encoded_pixels\n", "has no rows"),
        ("", "is empty"),
        ("image_id,probability,probability\na,1,1\n", "names the column 'probability' twice"),
        (GOOD + "c,0.5,-1,4,5\n", "line 4, has 5 cells, but the header has 3"),
    ],
)
def test_faults_of_the_table(tmp_path, truth, predictions, sentence):
    with pytest.raises(PneumoError, match=sentence) as raised:
        check_submission(read_submission(folder(tmp_path, predictions)), truth)
    assert "predictions.csv" in str(raised.value)


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (
            {"split_sha256": "e" * 64},
            "was made on the split 'eeeeeeeeeeee', but the truth has the split 'ffffffffffff'",
        ),
        ({"subset": "validation"}, "holds predictions for the subset 'validation', but 'test' is scored"),
        ({"team": ""}, "team: "),
        ({"team": "\u202e\x1b"}, "a team needs a name that can be seen"),
        ({"task": "detection"}, "task: "),
        ({"threshold": 1.5}, "threshold: "),
        ({"format": 2}, "format: "),
        ({"training_hours": -1}, "training_hours: "),
    ],
)
def test_faults_of_the_declaration(tmp_path, truth, info, sentence):
    with pytest.raises(PneumoError, match=sentence):
        check_submission(read_submission(folder(tmp_path, GOOD, **info)), truth)


def test_an_undeclared_split_is_marked(tmp_path, truth):
    answers = check_submission(read_submission(folder(tmp_path, GOOD, split_sha256=None)), truth)
    assert answers.notes == ["its split is not declared"]


def test_missing_and_extra_only_when_allowed_and_then_marked(tmp_path, truth):
    text = "image_id,probability,encoded_pixels\nb,0.5,-1\nx,0.9,0 9\n"
    read = read_submission(folder(tmp_path, text))
    answers = check_submission(read, truth, allow_missing=True, allow_extra=True)
    assert answers.probability.tolist() == [0.0, 0.5]
    assert [rle.area(runs) for runs in answers.runs] == [0, 0]
    assert answers.notes == [
        "1 row of other images set aside (--allow-extra)",
        "1 missing image counted as 'no pneumothorax' (--allow-missing)",
    ]
    with pytest.raises(PneumoError, match="--allow-missing"):
        check_submission(read, truth, allow_extra=True)
    with pytest.raises(PneumoError, match="--allow-extra"):
        check_submission(read, truth, allow_missing=True)


@pytest.mark.parametrize("content", FORMS)
def test_a_bare_file_is_read_as_a_label_file_is(tmp_path, content):
    path = tmp_path / "team.csv"
    path.write_bytes(content.encode())
    rows = read_submission(path).predictions
    assert dict(zip(rows.image_id, rows.encoded_pixels.map(rle.is_empty), strict=True)) == {"a": True, "b": False}


def test_ids_in_a_team_folder_may_be_file_names(tmp_path, truth):
    answers = check_submission(read_submission(folder(tmp_path, GOOD.replace("a,", "a.dcm,"))), truth)
    assert answers.notes == []


def test_kaggle_rows_of_one_image_are_united(tmp_path, truth):
    path = tmp_path / "best.csv"
    path.write_text("ImageId,EncodedPixels\na,10 4\na,12 4\nb, -1\n")
    answers = check_submission(read_submission(path), truth)
    assert [rle.area(runs) for runs in answers.runs] == [6, 0]
    assert answers.info.team == "best"
    assert answers.notes == ["a bare file: its split is not declared"]


def test_kaggle_repeats_and_contradictions(tmp_path, truth):
    path = tmp_path / "k.csv"
    path.write_text("ImageId,EncodedPixels\na,10 4\na,10 4\nb,-1\nb,\n")
    with pytest.raises(PneumoError, match=r"repeats 2 rows word for word: row 3 \('a'\), row 5 \('b'\)"):
        check_submission(read_submission(path), truth)
    answers = check_submission(read_submission(path), truth, allow_extra=True)
    assert [rle.area(runs) for runs in answers.runs] == [4, 0]
    path.write_text("ImageId,EncodedPixels\na,10 4\na,-1\nb,-1\n")
    with pytest.raises(
        PneumoError, match=r"both that they are empty and that they have a mask, first of 'a' \(rows 2, 3\)"
    ):
        check_submission(read_submission(path), truth, allow_extra=True)


def test_clip_cuts_at_the_last_pixel_and_mends_nothing_else(tmp_path, truth):
    path = tmp_path / "k.csv"
    path.write_text("ImageId,EncodedPixels\na,1 1048576\nb,5 4 2000000 7\n")
    answers = check_submission(read_submission(path), truth, clip_runs=True)
    assert [rle.area(runs) for runs in answers.runs] == [1048575, 4]
    assert "2 masks cut at the last pixel (--clip-runs)" in answers.notes
    path.write_text("ImageId,EncodedPixels\na,1 1048576 3\nb,-1\n")
    with pytest.raises(PneumoError, match=r"row 2 \(a\): EncodedPixels holds 3 numbers"):
        check_submission(read_submission(path), truth, clip_runs=True)


def test_masks_of_another_grid_are_refused(tmp_path):
    ids = [f"i{number}" for number in range(12)]
    (tmp_path / "truth.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"{i},500000 9\n" for i in ids))
    path = tmp_path / "small.csv"
    path.write_text("ImageId,EncodedPixels\n" + "".join(f"{i},{n * 9} 50\n" for n, i in enumerate(ids)))
    with pytest.raises(PneumoError, match="all 12 masks end before pixel 262,144, as masks drawn at 512x512 do"):
        check_submission(read_submission(path), read_truth(tmp_path / "truth.csv"))


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
def test_declarations_that_are_none(tmp_path, content):
    place = folder(tmp_path, GOOD)
    (place / "submission.json").write_bytes(content)
    with pytest.raises(PneumoError, match=r"submission\.json"):
        read_submission(place)


def test_absent_files(tmp_path):
    with pytest.raises(PneumoError, match="There is no"):
        read_submission(tmp_path / "nobody")
    with pytest.raises(PneumoError, match=r"has no submission\.json"):
        read_submission(tmp_path)
    place = folder(tmp_path, GOOD)
    (place / "predictions.csv").unlink()
    with pytest.raises(PneumoError, match=r"has no predictions\.csv"):
        read_submission(place)


def test_written_and_read_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"{n}" for n in range(50)], "probability": rng.random(50) ** 9})
    info = SubmissionInfo(team="Keras", task="classification", threshold=1 / 3, seeds=[1, 2])
    place = write_submission(tmp_path / "sub mission é", info, table, table.head(3))
    read = read_submission(place)
    assert read.info == info
    assert read.predictions.probability.tolist() == table.probability.tolist()
    assert read.predictions.image_id.tolist() == table.image_id.tolist()
    assert len(read.validation) == 3
    assert sorted(path.name for path in place.iterdir()) == ["predictions.csv", "submission.json", "validation.csv"]


def test_writing_replaces_whole_or_leaves_the_old(tmp_path):
    info = SubmissionInfo(team="Keras", task="classification")
    place = write_submission(tmp_path / "s", info, pd.DataFrame({"image_id": ["a"], "probability": [0.5]}))
    write_submission(place, info, pd.DataFrame({"image_id": ["b"], "probability": [0.25]}))
    assert read_submission(place).predictions.image_id.tolist() == ["b"]
    with pytest.raises(PneumoError, match="not numbers from 0 to 1"):
        write_submission(place, info, pd.DataFrame({"image_id": ["c"], "probability": [2.0]}))
    with pytest.raises(PneumoError, match="has no column probability"):
        write_submission(place, info, pd.DataFrame({"image_id": ["c"]}))
    assert read_submission(place).predictions.image_id.tolist() == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("clip_runs", [False, True])
def test_absolute_starts_are_named_and_never_clipped(tmp_path, truth, clip_runs):
    """Cut at the last pixel, such a mask would keep a run or two and be scored as nearly empty."""
    text = GOOD.replace("12 5", "500000 30 501024 30 502048 30")
    with pytest.raises(PneumoError, match=r"1 mask would end past the last pixel, .* absolute starts") as raised:
        check_submission(read_submission(folder(tmp_path, text)), truth, clip_runs=clip_runs)
    assert "--clip-runs" not in str(raised.value)


def test_gaps_past_the_end_are_not_taken_for_absolute_starts(tmp_path, truth):
    text = GOOD.replace("12 5", "1048500 30 5 60")
    with pytest.raises(PneumoError, match="--clip-runs"):
        check_submission(read_submission(folder(tmp_path, text)), truth)
    answers = check_submission(read_submission(tmp_path / "team"), truth, clip_runs=True)
    assert rle.area(answers.runs[0]) == 30 + 1048576 - 1048535


@pytest.mark.parametrize(
    ("cell", "logits"), [("1.5", True), ("-3.2", True), ("", False), ("nan", False), ('"0,1"', False)]
)
def test_only_numbers_are_taken_for_logits(tmp_path, cell, logits):
    place = folder(tmp_path, GOOD.replace("0.75", cell))
    with pytest.raises(PneumoError, match="probabilities are not numbers from 0 to 1") as raised:
        read_submission(place)
    assert ("sigmoid" in str(raised.value)) == logits


def test_a_bare_file_of_probabilities_is_told_where_it_belongs(tmp_path):
    (tmp_path / "answers.csv").write_text("image_id,probability\na,0.5\nb,0.25\n")
    with pytest.raises(PneumoError, match=r"has a column probability; .* with a submission\.json"):
        read_submission(tmp_path / "answers.csv")


def test_writing_deletes_nothing_but_an_older_submission(tmp_path, monkeypatch):
    info = SubmissionInfo(team="Keras", task="classification")
    table = pd.DataFrame({"image_id": ["a"], "probability": [0.5]})
    thesis = tmp_path / "work" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("three years")
    with pytest.raises(PneumoError, match=r"holds what is no part of a submission \('thesis.txt'\)"):
        write_submission(thesis.parent, info, table)
    with pytest.raises(PneumoError, match="is a file, but a submission is a folder"):
        write_submission(thesis, info, table)
    monkeypatch.chdir(thesis.parent)
    with pytest.raises(PneumoError, match="holds what is no part of a submission"):
        write_submission(Path(), info, table)
    (tmp_path / "run" / "predictions.csv").mkdir(parents=True)  # a folder of that name is no table of ours
    with pytest.raises(PneumoError, match="no part of a submission"):
        write_submission(tmp_path / "run", info, table)
    assert thesis.read_text() == "three years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "work"]
    (tmp_path / "old").mkdir()
    for name in ("postprocess.json", "postprocess.png", ".predictions.csv.a1b2c3d4.part"):
        (tmp_path / "old" / name).write_text("")
    write_submission(tmp_path / "old", info, table)
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["predictions.csv", "submission.json"]


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_names_are_harmless_everywhere(text):
    name = slug(text, taken=["team"])
    assert name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name != "team"
    line = one_line(text, 40)
    assert len(line) <= 40
    assert line.isprintable() or line == ""
    assert not spreadsheet_safe(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_names_that_attack():
    assert spreadsheet_safe('=HYPERLINK("http://x","y")') == '\'=HYPERLINK("http://x","y")'
    assert slug("../../x") == "x"
    assert slug("<script>alert(1)</script>") == "script-alert-1-script"
    assert slug("Team", ["team", "team-2"]) == "team-3"
    assert one_line("a\x1b[31mred\u202egnp.exe") == "a [31mred gnp.exe"
    text = table_text(pd.DataFrame({"team": ["=1+1", "ok"], "dice": [-0.5, 0.25]}))
    assert text == "team,dice\n'=1+1,-0.5\nok,0.25\n"


@needs_real
def test_real_submissions_are_refused_by_default_where_they_should_be():
    tables = REAL / "siim_tables"
    truth = read_truth(tables / "train-rle.csv.gz", ids=tables / "stage1_test_ids.csv")
    folder = REAL / "submissions"
    check_submission(read_submission(folder / "n01z3_sx101_nf8_0.5_1000_1.csv"), truth)
    with pytest.raises(PneumoError, match="1 rows of images that are not in the test subset: row 1342"):
        check_submission(read_submission(folder / "tybrad11_Submission_v10.csv"), truth)
    with pytest.raises(PneumoError, match="3,450 rows of images"):
        check_submission(read_submission(folder / "kshannon_sample_submission.csv"), truth)
    full = read_submission(folder / "VISHAKHNAIR16_simple_submission.csv")
    with pytest.raises(PneumoError, match="10,717 rows of images"):
        check_submission(full, truth)
    with pytest.raises(PneumoError, match=r"ends at pixel 1048577.*--clip-runs"):
        check_submission(full, truth, allow_extra=True)
