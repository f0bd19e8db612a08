"""Submissions aligned with the truth, and the message for every error of a row, a mask or a declaration."""

import json

import pytest
from board_lab import GOOD_PREDICTIONS, REAL, needs_real, team_folder

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.alignment import align_submission, examine_alignment
from keras_pneumo.evaluation.inputs.submission import examine_submission, read_submission
from keras_pneumo.evaluation.inputs.truth import read_truth


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("image_id,patient_id,subset,pneumothorax,encoded_pixels\na,p,test,1,10 5\nb,q,test,0,-1\n")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "split_sha256": "f" * 64}))
    return read_truth(path)


def test_a_valid_folder_is_aligned_with_the_truth(tmp_path, truth):
    answers = align_submission(read_submission(team_folder(tmp_path)), truth)
    assert answers.probability.tolist() == [0.75, 0.25]
    assert [rle.area(runs) for runs in answers.runs] == [5, 0]
    assert answers.notes == []


@pytest.mark.parametrize(
    ("predictions", "sentence"),
    [
        (GOOD_PREDICTIONS + "a,0.5,-1\n", r"gives 1 image more than one row: row 4 \('a'\)"),
        ("image_id,probability,encoded_pixels\na,0.5,-1\n", "no row for 1 of 2 images of the test subset: 'b'. Add"),
        (GOOD_PREDICTIONS + "x,0.5,-1\n", r"1 row of an image that is not in the test subset: row 4 \('x'\)"),
        (GOOD_PREDICTIONS.replace("0.75", "nan"), r"1 probability is not a number from 0 to 1: row 3 \('nan'\)"),
        (GOOD_PREDICTIONS.replace("0.75", "inf"), r"row 3 \('inf'\)"),
        (GOOD_PREDICTIONS.replace("0.75", "1.5"), r"row 3 \('1.5'\)"),
        (GOOD_PREDICTIONS.replace("0.75", "-0.01"), r"row 3 \('-0.01'\)"),
        (GOOD_PREDICTIONS.replace("0.75", ""), r"row 3 \(''\)"),
        (GOOD_PREDICTIONS.replace("12 5", "12 5 1"), r"row 3 \(a\): EncodedPixels holds 3 numbers"),
        (GOOD_PREDICTIONS.replace("12 5", "-3 5"), r"row 3 \(a\): EncodedPixels holds the negative gap -3"),
        (GOOD_PREDICTIONS.replace("12 5", "12 0"), r"row 3 \(a\): EncodedPixels holds a run of length 0"),
        (GOOD_PREDICTIONS.replace("12 5", "12 five"), r"'five', which is not a whole number"),
        (GOOD_PREDICTIONS.replace("12 5", "0 1048577"), r"ends at pixel 1048577.*--clip-runs"),
        (
            GOOD_PREDICTIONS.replace("12 5", "nan"),
            r"1 mask is wrong. row 3 \(a\): .*'nan'; write -1 where there is no mask",
        ),
        (
            GOOD_PREDICTIONS.replace("-1", "-1.0"),
            r"row 2 \(b\): EncodedPixels holds '-1.0'; write -1 where",
        ),
        (GOOD_PREDICTIONS.replace("b,0", ",0"), "row 2: the image id is blank"),
        ("image_id,probability\na,0.5\nb,0.5\n", "has no column encoded_pixels, which the task 'joint' needs"),
        ("image_id,probability,encoded_pixels\n", "has no rows"),
        ("", "is empty"),
        ("image_id,probability,probability\na,1,1\n", "names the column 'probability' twice"),
        (GOOD_PREDICTIONS + "c,0.5,-1,4,5\n", "line 4, has 5 cells, but the header has 3"),
    ],
)
def test_row_23_errors_of_the_table(tmp_path, truth, predictions, sentence):
    with pytest.raises(PneumoError, match=sentence) as raised:
        align_submission(read_submission(team_folder(tmp_path, predictions)), truth)
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
        ({"team": "\u202e\x1b"}, "the team's name must have visible characters"),
        ({"task": "detection"}, "task: "),
        ({"threshold": 1.5}, "threshold: "),
        ({"format": 2}, "format: "),
        ({"training_hours": -1}, "training_hours: "),
    ],
)
def test_errors_of_the_declaration(tmp_path, truth, info, sentence):
    with pytest.raises(PneumoError, match=sentence):
        align_submission(read_submission(team_folder(tmp_path, GOOD_PREDICTIONS, **info)), truth)


def test_an_undeclared_split_is_marked(tmp_path, truth):
    answers = align_submission(read_submission(team_folder(tmp_path, GOOD_PREDICTIONS, split_sha256=None)), truth)
    assert answers.notes == ["its split is not declared"]


def test_missing_and_extra_only_when_allowed_and_then_marked(tmp_path, truth):
    text = "image_id,probability,encoded_pixels\nb,0.5,-1\nx,0.9,0 9\n"
    read = read_submission(team_folder(tmp_path, text))
    answers = align_submission(read, truth, allow_missing=True, allow_extra=True)
    assert answers.probability.tolist() == [0.0, 0.5]
    assert [rle.area(runs) for runs in answers.runs] == [0, 0]
    assert answers.notes == [
        "1 row of other images set aside (--allow-extra)",
        "1 missing image counted as 'no pneumothorax' (--allow-missing)",
    ]
    with pytest.raises(PneumoError, match="--allow-missing"):
        align_submission(read, truth, allow_extra=True)
    with pytest.raises(PneumoError, match="--allow-extra"):
        align_submission(read, truth, allow_missing=True)


def test_ids_in_a_team_folder_may_be_file_names(tmp_path, truth):
    predictions = GOOD_PREDICTIONS.replace("a,", "a.dcm,")
    assert align_submission(read_submission(team_folder(tmp_path, predictions)), truth).notes == []


def test_kaggle_rows_of_one_image_are_united(tmp_path, truth):
    path = tmp_path / "best.csv"
    path.write_text("ImageId,EncodedPixels\na,10 4\na,12 4\nb, -1\n")
    answers = align_submission(read_submission(path), truth)
    assert [rle.area(runs) for runs in answers.runs] == [6, 0]
    assert answers.info.team == "best"
    assert answers.notes == ["a bare file: its split is not declared"]


def test_kaggle_repeats_and_contradictions(tmp_path, truth):
    path = tmp_path / "k.csv"
    path.write_text("ImageId,EncodedPixels\na,10 4\na,10 4\nb,-1\nb,\n")
    with pytest.raises(PneumoError, match=r"repeats 2 rows exactly: row 3 \('a'\), row 5 \('b'\)"):
        align_submission(read_submission(path), truth)
    answers = align_submission(read_submission(path), truth, allow_extra=True)
    assert [rle.area(runs) for runs in answers.runs] == [4, 0]
    path.write_text("ImageId,EncodedPixels\na,10 4\na,-1\nb,-1\n")
    with pytest.raises(
        PneumoError, match=r"of 1 image both that there is no mask and what the mask is, first of 'a' \(rows 2, 3\)"
    ):
        align_submission(read_submission(path), truth, allow_extra=True)


def test_clip_cuts_at_the_last_pixel_and_mends_nothing_else(tmp_path, truth):
    path = tmp_path / "k.csv"
    path.write_text("ImageId,EncodedPixels\na,1 1048576\nb,5 4 2000000 7\n")
    answers = align_submission(read_submission(path), truth, clip_runs=True)
    assert [rle.area(runs) for runs in answers.runs] == [1048575, 4]
    assert "2 masks cut at the last pixel (--clip-runs)" in answers.notes
    path.write_text("ImageId,EncodedPixels\na,1 1048576 3\nb,-1\n")
    with pytest.raises(PneumoError, match=r"row 2 \(a\): EncodedPixels holds 3 numbers"):
        align_submission(read_submission(path), truth, clip_runs=True)


def test_masks_of_another_grid_are_refused(tmp_path):
    ids = [f"i{number}" for number in range(12)]
    (tmp_path / "truth.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"{i},500000 9\n" for i in ids))
    path = tmp_path / "small.csv"
    path.write_text("ImageId,EncodedPixels\n" + "".join(f"{i},{n * 9} 50\n" for n, i in enumerate(ids)))
    with pytest.raises(PneumoError, match="all 12 masks end before pixel 262,144, as masks drawn at 512x512 do"):
        align_submission(read_submission(path), read_truth(tmp_path / "truth.csv"))


@pytest.mark.parametrize("clip_runs", [False, True])
def test_absolute_starts_are_named_and_never_clipped(tmp_path, truth, clip_runs):
    """Cut at the last pixel, such a mask would keep a run or two and be scored as nearly empty."""
    text = GOOD_PREDICTIONS.replace("12 5", "500000 30 501024 30 502048 30")
    with pytest.raises(PneumoError, match=r"1 mask would end past the last pixel, .* absolute starts") as raised:
        align_submission(read_submission(team_folder(tmp_path, text)), truth, clip_runs=clip_runs)
    assert "--clip-runs" not in str(raised.value)


def test_gaps_past_the_end_are_not_taken_for_absolute_starts(tmp_path, truth):
    text = GOOD_PREDICTIONS.replace("12 5", "1048500 30 5 60")
    with pytest.raises(PneumoError, match="--clip-runs"):
        align_submission(read_submission(team_folder(tmp_path, text)), truth)
    answers = align_submission(read_submission(tmp_path / "team"), truth, clip_runs=True)
    assert rle.area(answers.runs[0]) == 30 + 1048576 - 1048535


def test_all_errors_of_a_submission_are_told_at_once(tmp_path, truth):
    rows = "b,0.25,-1\n,0.5,-1\nx,0.5,3 4\nb,0.5,-1\n"
    folder = team_folder(tmp_path, f"image_id,probability,encoded_pixels\n{rows}", split_sha256="e" * 64)
    with pytest.raises(PneumoError) as of_reading:
        read_submission(folder)
    assert [line.split("predictions.csv")[1] for line in str(of_reading.value).splitlines()] == [
        ", row 3: the image id is blank. Complete it.",
        " gives 1 image more than one row: row 5 ('b'). Give one row per image.",
    ]
    (tmp_path / "team" / "predictions.csv").write_text("image_id,probability,encoded_pixels\nb,1,7\nx,0.5,-1\n")
    with pytest.raises(PneumoError) as of_aligning:
        align_submission(read_submission(folder), truth)
    lines = str(of_aligning.value).splitlines()
    assert len(lines) == 4
    for line, part in zip(
        lines, ("was made on the split", "row 3 ('x')", "no row for 1 of 2", "row 2 (b)"), strict=True
    ):
        assert part in line


def test_a_wrong_declaration_hides_no_wrong_row(tmp_path, truth):
    text = GOOD_PREDICTIONS.replace("0.75", "7").replace("12 5", "12 5 1")
    examined = examine_submission(team_folder(tmp_path, text, task="detection", subset=3, threshold=2, team=""))
    assert len(examined.errors) == 2
    for name in ("task: ", "subset: ", "threshold: ", "team: "):
        assert name in str(examined.errors[0])
    assert "row 3 ('7')" in str(examined.errors[1])
    _, wrong = examine_alignment(examined, truth)
    assert len(wrong) == 1
    assert "row 3 (a): EncodedPixels holds 3 numbers" in str(wrong[0])
    examined = examine_submission(tmp_path / "absent")
    assert [str(fault) for fault in examined.errors] == [f"There is no {tmp_path / 'absent'}. Check the path."]


@pytest.mark.parametrize(
    ("unknown", "note"),
    [
        ({"treshold": 0.3}, "not known and not used in submission.json: 'treshold' (is 'threshold' meant?)"),
        ({"colour": 1, "seed": 3}, "not known and not used in submission.json: 'colour', 'seed' (is 'seeds' meant?)"),
        (
            {"pretraining": {"images": "x", "image_id": []}},
            "not known and not used in submission.json: 'pretraining.image_id' (is 'pretraining.image_ids' meant?)",
        ),
    ],
)
def test_an_unknown_field_is_noted(tmp_path, truth, unknown, note):
    answers = align_submission(read_submission(team_folder(tmp_path, GOOD_PREDICTIONS, **unknown)), truth)
    assert answers.notes == [note]


def test_a_truth_without_subsets_is_not_called_the_all_subset(tmp_path):
    (tmp_path / "labels.csv").write_text("ImageId,EncodedPixels\na,10 5\nb,-1\n")
    (tmp_path / "k.csv").write_text("ImageId,EncodedPixels\na,10 4\nc,-1\n")
    with pytest.raises(PneumoError) as raised:
        align_submission(read_submission(tmp_path / "k.csv"), read_truth(tmp_path / "labels.csv"))
    assert "that is not in the truth: row 3 ('c')" in str(raised.value)
    assert "no row for 1 of 2 images of the truth: 'b'" in str(raised.value)
    assert " subset" not in str(raised.value)


def test_masks_in_the_place_of_ids_are_not_printed_whole(tmp_path):
    """A file without a header whose columns are the wrong way round."""
    code = " ".join(f"{number} 7" for number in range(1, 2000))
    (tmp_path / "labels.csv").write_text("ImageId,EncodedPixels\n1.2.3,10 5\n1.2.4,-1\n")
    (tmp_path / "k.csv").write_text(f"{code},1.2.3\n5 {code},1.2.3\n5 {code},1.2.4\n")
    with pytest.raises(PneumoError) as raised:
        align_submission(read_submission(tmp_path / "k.csv"), read_truth(tmp_path / "labels.csv"))
    assert "row 1 ('1 7 2 7" in str(raised.value)
    assert len(str(raised.value)) < 1500
    folder = tmp_path / "team"
    folder.mkdir()
    (folder / "submission.json").write_text('{"team": "T", "task": "segmentation"}')
    (folder / "predictions.csv").write_text(f"image_id,encoded_pixels\n{code},1\n{code},1\n")
    with pytest.raises(PneumoError) as raised:
        read_submission(folder)
    assert len(str(raised.value)) < 500
    (tmp_path / "ids.csv").write_text(f"{code}\n")
    with pytest.raises(PneumoError) as raised:
        read_truth(tmp_path / "labels.csv", ids=tmp_path / "ids.csv")
    assert len(str(raised.value)) < 500
    (tmp_path / "labels.csv").write_text(f"{code},5 x\n")
    with pytest.raises(PneumoError) as raised:
        read_truth(tmp_path / "labels.csv")
    assert len(str(raised.value)) < 500


@needs_real
def test_real_submissions_are_refused_by_default_where_they_should_be():
    tables = REAL / "siim_tables"
    truth = read_truth(tables / "train-rle.csv.gz", ids=tables / "stage1_test_ids.csv")
    folder = REAL / "submissions"
    align_submission(read_submission(folder / "n01z3_sx101_nf8_0.5_1000_1.csv"), truth)
    with pytest.raises(PneumoError, match="1 row of an image that is not in the test subset: row 1342"):
        align_submission(read_submission(folder / "tybrad11_Submission_v10.csv"), truth)
    with pytest.raises(PneumoError, match="3,450 rows of images"):
        align_submission(read_submission(folder / "kshannon_sample_submission.csv"), truth)
    full = read_submission(folder / "VISHAKHNAIR16_simple_submission.csv")
    with pytest.raises(PneumoError, match="10,717 rows of images"):
        align_submission(full, truth)
    with pytest.raises(PneumoError, match=r"ends at pixel 1048577.*--clip-runs"):
        align_submission(full, truth, allow_extra=True)
